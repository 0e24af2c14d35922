"""Two steps of every recipe of the laws on the tiny SD3, and of one recipe with every kind of adapter."""

from __future__ import annotations

from typing import Any

from tests.golden.record import fingerprint, one_thread
from tests.laws.cases import ADAPTERS, RECIPES, batch_for, looping

CASES = {
    **{recipe: (recipe, "lora") for recipe in RECIPES},
    **{f"masked_flow_dpo-{kind}": ("masked_flow_dpo", kind) for kind in ADAPTERS if kind != "lora"},
}


def result(name: str) -> dict[str, Any]:
    """Losses and metrics of each chunk of two steps, and the trained weights, average included."""
    recipe, adapter = CASES[name]
    with one_thread(), looping(recipe, adapter) as loop:
        chunks = []
        for _ in range(2):
            for chunk in loop.chunks(batch_for(loop.session.micro_step)):
                chunk.loss.backward()
                metrics = {key: float(value) for key, value in chunk.metrics.items()}
                chunks.append({"loss": float(chunk.loss), "passes": chunk.passes, "metrics": _known(metrics)})
            loop.optimizer.step()
            loop.optimizer.zero_grad()
            loop.session.updated()
        return {"chunks": chunks, "weights": fingerprint(loop.session.parameters())}


def _known(metrics: dict[str, float]) -> dict[str, float | str]:
    """NaN is a word: JSON has no NaN, and it equals nothing."""
    return {name: value if value == value else "nan" for name, value in metrics.items()}

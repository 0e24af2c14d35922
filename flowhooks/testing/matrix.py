"""What works on which pipeline, found by doing it: ``python -m flowhooks.testing.matrix`` writes ``docs/pipelines.md``.

Each check runs on a tiny pipeline of the real classes and raises when something does not hold.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flowhooks
from flowhooks.adapters.names import LORA_FILE
from flowhooks.errors import FlowhooksError
from flowhooks.kernel.view import Batch
from flowhooks.probe import FlowModel, probe
from flowhooks.testing.tiny import PIPELINES, tiny

PROMPTS = ("a photo of two", "one")
RUN = {
    "adapter": {"type": "lora", "rank": 4, "alpha": 8},
    "hooks": [
        {"type": "flow_dpo", "norm_type": "mean", "beta": 100.0},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
    ],
}


class Failed(AssertionError):
    """Something that a column claims does not hold."""


def learnt(name: str, **changes: Any) -> FlowModel:
    """The probe's model of a tiny pipeline."""
    pipe = tiny(name)
    if changes:
        pipe = pipe.to(**changes)
    return probe(pipe, arguments=PIPELINES[name].arguments)


def pairs(model: FlowModel) -> Batch:
    """Two pairs of random latents with two prompts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(PROMPTS), *model.sample_shape)
    clean, rejected = (torch.randn(shape, generator=generator) for _ in range(2))
    return Batch(clean=clean, rejected=rejected, condition=model.encode_prompts(PROMPTS))


def gradients(model: FlowModel) -> dict[str, Tensor]:
    """The adapter's gradients after one Flow-DPO step away from its start."""
    torch.manual_seed(0)
    with flowhooks.attach(model, RUN) as session:
        step(session, model)
        session.step(pairs(model)).loss.backward()
        return {name: p.grad.clone() for name, p in session.parameters().items() if p.grad is not None}


def step(session: Any, model: FlowModel) -> None:
    """One Flow-DPO update of every adapter parameter."""
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-2)
    loss = session.step(pairs(model)).loss
    loss.backward()
    if not bool(loss.isfinite()):
        raise Failed(f"the loss is {float(loss)}")
    optimizer.step()
    optimizer.zero_grad()


def check_probe(name: str) -> None:
    learnt(name)


def check_flow_dpo(name: str) -> None:
    model = learnt(name)
    found = gradients(model)
    dead = [key for key, gradient in found.items() if not gradient.any() and _matters(model, key)]
    if not found or dead:
        raise Failed(f"no gradient reaches {dead[:3] or 'the adapter'}")


def _matters(model: FlowModel, key: str) -> bool:
    """Whether the base layer that an adapter's parameter sits on has any say in the prediction; a last block's text
    layers often have none."""
    layer = model.transformer.get_submodule(key.partition(".lora_")[0].removeprefix("transformer."))
    batch = pairs(model)
    with torch.enable_grad():
        layer.weight.requires_grad_(True)
        noisy, sigma = batch.clean, torch.full((len(batch.clean),), sum(model.sigma_range) / 2)
        model.predict(noisy, sigma, batch.condition).square().sum().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    layer.weight.requires_grad_(False)
    return gradient is not None and bool(gradient.any())


def check_lora(name: str) -> None:
    """Trained, saved, loaded by the stock pipeline: the same latents as the trained one, other than the base's."""
    model = learnt(name)
    torch.manual_seed(0)
    base = latents(model)
    with tempfile.TemporaryDirectory() as folder, flowhooks.attach(model, RUN) as session:
        for _ in range(2):
            step(session, model)
        session.adapter.save(Path(folder), {})
        trained = latents(model)
        fresh = learnt(name)
        load_lora(fresh.pipe, folder)
        loaded = latents(fresh)
    if torch.equal(trained, base):
        raise Failed("training changes no latents")
    if not torch.allclose(trained, loaded, atol=1e-4 * float(trained.abs().max())):
        away = float((trained - loaded).abs().max())
        raise Failed(f"the file loaded by stock Diffusers gives latents {away:.2g} away")


def check_checkpointing(name: str) -> None:
    model = learnt(name)
    plain = gradients(model)
    model.transformer.enable_gradient_checkpointing()
    saved = gradients(model)
    for key, gradient in plain.items():
        if not torch.allclose(gradient, saved[key], rtol=1e-3, atol=1e-6):
            raise Failed(f"the gradient of {key} changes")


def check_bf16(name: str) -> None:
    model = learnt(name, dtype=torch.bfloat16)
    if not all(bool(g.isfinite().all()) for g in gradients(model).values()):
        raise Failed("a gradient is not finite")


def load_lora(pipe: Any, folder: str) -> None:
    """By Diffusers' own loader: the pipeline's, or the network's where the pipeline class has none."""
    if "transformer" in getattr(pipe, "_lora_loadable_modules", ()):
        pipe.load_lora_weights(folder)
    elif hasattr(pipe.transformer, "load_lora_adapter"):
        pipe.transformer.load_lora_adapter(folder, prefix="transformer", weight_name=LORA_FILE)
    else:
        raise Failed(f"Diffusers has no LoRA loader for {type(pipe).__name__}")


@torch.no_grad()
def latents(model: FlowModel) -> Tensor:
    """What the stock pipeline draws in two steps, before decoding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model.pipe(
            prompt=PROMPTS[0],
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **model.call(),
        )
    first = output[0]
    return first if isinstance(first, Tensor) else torch.stack(list(first))


COLUMNS: Mapping[str, Callable[[str], None]] = {
    "probe": check_probe,
    "Flow-DPO step": check_flow_dpo,
    "LoRA in stock Diffusers": check_lora,
    "gradient checkpointing": check_checkpointing,
    "bf16": check_bf16,
}


@dataclass(frozen=True)
class Row:
    """One pipeline: column -> None when it holds, else the reason."""

    name: str
    pipeline: str
    cells: Mapping[str, str | None]


def examine(name: str) -> Row:
    """Try every column on one pipeline; after a failed probe the others are not tried."""
    cells: dict[str, str | None] = {}
    for column, check in COLUMNS.items():
        if cells.get("probe"):
            cells[column] = "not probed"
            continue
        try:
            check(name)
            cells[column] = None
        except (
            FlowhooksError,
            AssertionError,
            ValueError,
            RuntimeError,
            TypeError,
            AttributeError,
            NotImplementedError,
        ) as error:
            cells[column] = str(error).splitlines()[0][:200]
    return Row(name, type(tiny(name)).__name__, cells)


def markdown(rows: Sequence[Row]) -> str:
    """The page: a table of yes and no, and the reasons under it."""
    lines = [
        "# Pipelines",
        "",
        "Made by `python -m flowhooks.testing.matrix` from a run on tiny pipelines of the real classes; never by hand.",
        "",
        f"{sum(not any(r.cells.values()) for r in rows)} of {len(rows)} rows hold in every column.",
        "",
        f"| name | pipeline | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    reasons: list[str] = []
    for row in rows:
        cells = []
        for column in COLUMNS:
            reason = row.cells[column]
            if reason is None:
                cells.append("yes")
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"no ({reasons.index(reason) + 1})")
        lines.append(f"| `{row.name}` | {row.pipeline} | {' | '.join(cells)} |")
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pipelines to examine (default: all)")
    parser.add_argument("--output", type=Path, default=Path("docs/pipelines.md"))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.names or PIPELINES:
        row = examine(name)
        print(name, {column: reason or "yes" for column, reason in row.cells.items()}, flush=True)
        rows.append(row)
    if not arguments.names:
        arguments.output.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

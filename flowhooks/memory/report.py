"""The plan of a run's memory as lines, and the cheapest change under which it fits a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowhooks.checks.pipeline import pipeline_folder, read_index
from flowhooks.checks.sizes import edge_step
from flowhooks.config import Run
from flowhooks.config.run import offload_share
from flowhooks.memory.plan import Planned, changed
from flowhooks.memory.step import HOOKS, OPTIMIZER, TRAINED, WEIGHTS, Needs
from flowhooks.stage import VAE

GIB = 2**30
#: What a card holds beside tensors, in bytes: the driver's context and the libraries' workspaces. Not measured here.
CONTEXT = GIB // 2
#: Share of the tensors' bytes by which an allocator holds more, for gaps that fit nothing. Not measured here.
GAPS = 0.1
Changes = tuple[tuple[str, Any], ...]


def shown(number: int) -> str:
    """``64 KiB``, ``512.0 MiB``, ``22.2 GiB``."""
    if number < 2**20:
        return f"{number / 2**10:,.0f} KiB"
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.1f} MiB"


def on_card(tensors: int) -> int:
    """Bytes that a card must have for so many bytes of tensors, its context and its allocator's gaps included."""
    return int(tensors * (1 + GAPS)) + CONTEXT


def weights_before(planned: Planned, run: Run) -> dict[str, int]:
    """Return the bytes of weights that are on the card before training, by phase: the text encoders together while
    prompts are encoded, the VAE while images are; see :class:`flowhooks.stage.Stage`."""
    return {"prompts": planned.encoders(run), "images": planned.bytes(run, VAE) if VAE in planned.parts else 0}


def _weights(planned: Planned, run: Run) -> int:
    """Bytes of the weights of the largest phase: the network that is trained, without the blocks that are on the host,
    the text encoders, or the VAE."""
    network = planned.bytes(run, planned.model.component) * (1 - offload_share(run.model))
    return max(int(network), *weights_before(planned, run).values())


def _most(planned: Planned, run: Run, needs: Needs) -> int:
    """Bytes of a card that this run needs."""
    return on_card(max(needs.peak, *weights_before(planned, run).values()))


def lines(planned: Planned, needs: Needs) -> Iterator[str]:
    """A line for each part, then the largest moment, and what comes before training."""
    network = planned.model.component
    rows = (
        (f"{network}, frozen" if needs.trained else network, needs.weights),
        ("trained", needs.trained),
        ("gradients", needs.gradients),
        ("optimiser", needs.optimizer),
        ("kept by hooks", needs.hooks),
        ("held between forward and backward", needs.activations),
    )
    for name, number in rows:
        if number >= 2**10:
            yield f"{name:<34} {shown(number):>10}"
    parts = needs.at_peak
    computed = needs.peak - sum(parts.get(part, 0) for part in (WEIGHTS, TRAINED, OPTIMIZER, HOOKS))
    yield f"{'largest moment':<34} {shown(needs.peak):>10}, in {needs.phase}, {shown(computed)} of it computed there"
    before = weights_before(planned, planned.run)
    phase = max(before, key=lambda each: before[each])
    yield f"{'weights before training':<34} {shown(before[phase]):>10}, while {phase} are encoded"
    most = shown(_most(planned, planned.run, needs))
    yield f"{'on a card':<34} {most:>10}, with {shown(CONTEXT)} for its context and {GAPS:.0%} for its allocator"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether a run fits a card, and a sentence that says by how much, or what makes it fit."""

    fits: bool
    sentence: str


def fitting(planned: Planned, needs: Needs, card: int) -> Fit:
    """Whether the run fits a card of so many bytes; where it does not, the cheapest change under which it does. Each
    candidate is counted as the run was.

    Raises:
        NotCounted: a candidate cannot be counted.
    """
    most = _most(planned, planned.run, needs)
    if most <= card:
        return Fit(fits=True, sentence=f"fits a card of {shown(card)}, with {shown(card - most)} to spare")
    start = f"needs {shown(most)} and does not fit a card of {shown(card)}"
    least, best, weights = most, "", most
    for changes, scale in candidates(planned):
        run = changed(planned.run, changes)
        alone = on_card(_weights(planned, run))
        weights = min(weights, alone)
        if alone > card:
            # The weights of one phase alone are too much, so there is nothing to count.
            continue
        size = _scaled(planned, scale)
        found = _most(planned, run, planned.needs(run, size=size))
        said = [f"`{place}` {json.dumps(value)}" for place, value in changes]
        said += [] if scale == 1 else [f"samples of at most {size[1]}x{size[0]} pixels"]
        if found <= card:
            return Fit(fits=False, sentence=f"{start}; with {' and '.join(said)} it needs {shown(found)} and fits")
        if found < least:
            least, best = found, f", with {' and '.join(said)}"
    if not best:
        return Fit(fits=False, sentence=f"{start}; the weights of one phase alone need {shown(weights)} at the least")
    return Fit(fits=False, sentence=f"{start}; nothing that was tried fits, and the least was {shown(least)}{best}")


def candidates(planned: Planned) -> Iterator[tuple[Changes, float]]:
    """Changes with the share of both edges that is left, from those that cost least: smaller micro-batches with the
    same samples in an update, computing activations anew, half precision of frozen weights, fewer bits of them, blocks
    on the host, both, a lower rank, smaller samples."""
    run = planned.run
    batch, accumulation = run.training["train_batch_size"], run.training["gradient_accumulation_steps"]
    smaller = [
        (("training.train_batch_size", part), ("training.gradient_accumulation_steps", accumulation * batch // part))
        for part in range(batch - 1, 0, -1)
        if batch % part == 0
    ]
    steps: list[Changes] = list(smaller)
    smallest: Changes = smaller[-1] if smaller else ()
    base: Changes = ()
    if not run.model["gradient_checkpointing"]:
        base = (("model.gradient_checkpointing", True),)
        steps += [(*base, *each) for each in ((), *smaller)]
    if run.adapter is not None and run.model["dtype"] == "fp32":
        base = (*base, ("model.dtype", "bf16"))
        steps.append((*base, *smallest))
    lighter = [(*base, *each) for each in _lighter(run)]
    steps += [(*each, *smallest) for each in lighter]
    least = lighter[-1] if lighter else base
    rank = run.adapter["rank"] if run.adapter is not None else 0
    while rank > 4:
        rank //= 2
        steps.append((*least, *smallest, ("adapter.rank", rank)))
    yield from ((changes, 1.0) for changes in steps)
    yield from (((*least, *smallest), scale) for scale in (0.75, 0.5))


def _lighter(run: Run) -> Iterator[Changes]:
    """Ways to hold less of frozen weights, from those that cost least of a step's time: what is computed with is made
    of fewer bits, or brought from the host."""
    if run.training["trainable"] == "transformer":
        return
    fewer: list[Changes] = []
    if run.model["quantization"] is None:
        fewer = [(("model.quantization", kind),) for kind in ("int8", "nf4")]
    yield from fewer
    if offload_share(run.model) < 1:
        shares: list[Any] = [{"blocks": 0.5}] if not offload_share(run.model) else []
        away: list[Changes] = [(("model.offload", share),) for share in (*shares, "blocks")]
        yield from away
        if fewer:
            yield (*fewer[-1], *away[-1])


def _scaled(planned: Planned, scale: float) -> tuple[int, int, int | None]:
    height, width, frames = planned.size
    folder = pipeline_folder(planned.run.model)
    step = None if folder is None else edge_step(folder, read_index(folder)[0])
    height, width = (max(step or 1, int(edge * scale) // (step or 1) * (step or 1)) for edge in (height, width))
    return height, width, frames

"""The plan of a run's memory as lines, and the cheapest change under which it fits a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowhooks.checks.pipeline import NETWORKS, pipeline_folder, read_index
from flowhooks.checks.sizes import edge_step
from flowhooks.config import Run
from flowhooks.memory.plan import Planned, changed
from flowhooks.memory.step import HOOKS, OPTIMIZER, TRAINED, WEIGHTS, Needs
from flowhooks.pretrained import DTYPES
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
    each = DTYPES[run.model["dtype"]].itemsize
    phases = {"prompts": 0, "images": 0}
    for name, number in planned.weights.items():
        if name not in NETWORKS:
            phases["images" if name == VAE else "prompts"] += number * each
    return phases


def _weights(planned: Planned, run: Run) -> int:
    """Bytes of the weights of the largest phase: the network that is trained, the text encoders, or the VAE."""
    network = planned.weights[planned.model.component] * DTYPES[run.model["dtype"]].itemsize
    return max(network, *weights_before(planned, run).values())


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
    least, best = most, ""
    for changes, scale in candidates(planned):
        run = changed(planned.run, changes)
        if on_card(_weights(planned, run)) > card:
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
        run = changed(planned.run, (("model.dtype", "bf16"),))
        weights = shown(on_card(_weights(planned, run)))
        return Fit(fits=False, sentence=f"{start}; the weights of one phase alone need {weights} in bf16")
    return Fit(fits=False, sentence=f"{start}; nothing that was tried fits, and the least was {shown(least)}{best}")


def candidates(planned: Planned) -> Iterator[tuple[Changes, float]]:
    """Changes with the share of both edges that is left, from those that cost least: smaller micro-batches with the
    same samples in an update, half precision of frozen weights, computing activations anew, a lower rank, smaller
    samples."""
    run = planned.run
    batch, accumulation = run.training["train_batch_size"], run.training["gradient_accumulation_steps"]
    smaller = [
        (("training.train_batch_size", part), ("training.gradient_accumulation_steps", accumulation * batch // part))
        for part in range(batch - 1, 0, -1)
        if batch % part == 0
    ]
    steps: list[Changes] = [()]
    smallest: Changes = smaller[-1] if smaller else ()
    steps += smaller
    base: Changes = ()
    if not run.model["gradient_checkpointing"]:
        base = (("model.gradient_checkpointing", True),)
        steps += [(*base, *each) for each in ((), *smaller)]
    if run.model["dtype"] == "fp32" and run.adapter is not None:
        base = (*base, ("model.dtype", "bf16"))
        steps.append((*base, *smallest))
    rank = run.adapter["rank"] if run.adapter is not None else 0
    while rank > 4:
        rank //= 2
        steps.append((*base, *smallest, ("adapter.rank", rank)))
    yield from ((changes, 1.0) for changes in steps[1:])
    yield from (((*base, *smallest), scale) for scale in (0.75, 0.5))


def _scaled(planned: Planned, scale: float) -> tuple[int, int, int | None]:
    height, width, frames = planned.size
    folder = pipeline_folder(planned.run.model)
    step = None if folder is None else edge_step(folder, read_index(folder)[0])
    height, width = (max(step or 1, int(edge * scale) // (step or 1) * (step or 1)) for edge in (height, width))
    return height, width, frames

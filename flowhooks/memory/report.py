"""The plan of a run's memory as lines, and the cheapest change under which it fits a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowhooks.checks.pipeline import pipeline_folder, read_index, trained_network
from flowhooks.checks.quantization import quantized
from flowhooks.checks.sizes import edge_step
from flowhooks.config import Run
from flowhooks.config.run import offload_share
from flowhooks.memory.plan import Planned, changed
from flowhooks.memory.step import HOOKS, OPTIMIZER, TRAINED, WEIGHTS, Needs
from flowhooks.quantization.table import METHOD
from flowhooks.stage import VAE

GIB = 2**30
#: What a card holds beside tensors, in bytes: the driver's context and the libraries' workspaces. Not measured here.
CONTEXT = GIB // 2
#: Share of the tensors' bytes by which an allocator holds more, for gaps that fit nothing. Not measured here.
GAPS = 0.1
Changes = tuple[tuple[str, Any], ...]
_RECOMPUTE, _OFFLOAD, _DTYPE, _BITS = (
    "model.gradient_checkpointing",
    "model.offload",
    "model.dtype",
    "model.quantization",
)
#: A place that changes only together with another one.
_KEPT_WITH = {"training.gradient_accumulation_steps": "training.train_batch_size"}


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
    held = planned.run.adapter is not None and planned.run.adapter["training_adapter"] is not None
    rows = (
        (f"{network}, frozen" if needs.trained else network, needs.weights),
        ("trained", needs.trained),
        ("gradients", needs.gradients),
        ("optimiser", needs.optimizer),
        ("kept by hooks, training adapter" if held else "kept by hooks", needs.hooks),
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
        alone = on_card(_weights(planned, changed(planned.run, changes)))
        weights = min(weights, alone)
        if alone > card:
            # The weights of one phase alone are too much, so there is nothing to count.
            continue
        size = _scaled(planned, scale)
        found = _counted(planned, changes, size)
        if found <= card:
            changes, found = _needed(planned, changes, size, found, card)
            sentence = f"{start}; with {_said(changes, scale, size)} it needs {shown(found)} and fits"
            return Fit(fits=False, sentence=sentence)
        if found < least:
            least, best = found, f", with {_said(changes, scale, size)}"
    if best:
        return Fit(fits=False, sentence=f"{start}; nothing that was tried fits, and the least was {shown(least)}{best}")
    if weights > card:
        needed = f"{shown(weights)} at the least, with {shown(CONTEXT)} for the card's context and {GAPS:.0%} for its"
        return Fit(fits=False, sentence=f"{start}; the weights of one phase alone need {needed} allocator")
    return Fit(fits=False, sentence=f"{start}; nothing that was tried needs less")


def _counted(planned: Planned, changes: Changes, size: tuple[int, int, int | None]) -> int:
    """Return the bytes on a card of the run with these changes."""
    run = changed(planned.run, changes)
    return _most(planned, run, planned.needs(run, size=size))


def _needed(
    planned: Planned, changes: Changes, size: tuple[int, int, int | None], found: int, card: int
) -> tuple[Changes, int]:
    """Return the changes without those that the run fits without, and its bytes then."""
    for key in dict.fromkeys(_KEPT_WITH.get(place, place) for place, _ in changes):
        rest = tuple(each for each in changes if _KEPT_WITH.get(each[0], each[0]) != key)
        left = {place for place, _ in rest}
        # Blocks leave only where they recompute, and some backends take no weights in fp32.
        if not rest or (key == _RECOMPUTE and _OFFLOAD in left) or (key == _DTYPE and _BITS in left):
            continue
        fewer = _counted(planned, rest, size)
        if fewer <= card:
            changes, found = rest, fewer
    return changes, found


def _said(changes: Changes, scale: float, size: tuple[int, int, int | None]) -> str:
    said = [f"`{place}` {json.dumps(value)}" for place, value in changes]
    return " and ".join(said + ([] if scale == 1 else [f"samples of at most {size[1]}x{size[0]} pixels"]))


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
        base = ((_RECOMPUTE, True),)
        steps += [(*base, *each) for each in ((), *smaller)]
    if run.adapter is not None and run.model["dtype"] == "fp32":
        base = (*base, (_DTYPE, "bf16"))
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
        fewer = [((_BITS, kind),) for kind in ("int8", "nf4")]
    yield from fewer
    network = trained_network(run.model)
    if quantized(run.model).get(network, {}).get(METHOD) == "bitsandbytes":
        # Its layers stay on the device until their backward pass.
        return
    if offload_share(run.model) < 1:
        shares: list[Any] = [{"blocks": 0.5}] if not offload_share(run.model) else []
        away: list[Changes] = [((_OFFLOAD, share),) for share in (*shares, "blocks")]
        yield from away
        if fewer:
            yield (*fewer[0], *away[-1])


def _scaled(planned: Planned, scale: float) -> tuple[int, int, int | None]:
    height, width, frames = planned.size
    folder = pipeline_folder(planned.run.model)
    step = None if folder is None else edge_step(folder, read_index(folder)[0])
    height, width = (max(step or 1, int(edge * scale) // (step or 1) * (step or 1)) for edge in (height, width))
    return height, width, frames

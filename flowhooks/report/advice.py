"""Say what to do next with a run, from what it logged."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowhooks.adapters.names import ADAPTER_FILES
from flowhooks.manifest import PIPELINE, RUN, checkpoints_in
from flowhooks.report.figures import VAL
from flowhooks.report.record import RunRecord

#: Below this a preference run tells pairs hardly apart; what chance gives is 0.5.
HARDLY = 0.55
#: Implicit accuracy in training above that on held-out pairs from which pairs are learnt by heart.
BY_HEART = 0.2
#: Logged steps at the end that are averaged.
LATE = 10


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """Holds one thing to do.

    Args:
        text: why, and what.
        command: what to type; empty where nothing is to be typed.
    """

    text: str
    command: str = ""


def next_steps(record: RunRecord) -> list[NextStep]:
    """Return what to do next, what matters most first."""
    return [*_findings(record), *_ways(record)]


def mean_at_end(record: RunRecord, name: str) -> float | None:
    """Return the mean of the last ten values of a metric; None where it was not logged as often."""
    column = record.metrics.columns.get(name)
    if column is None or len(column.values) < LATE:
        return None
    return sum(column.values[-LATE:]) / LATE


def _findings(record: RunRecord) -> Iterator[NextStep]:
    if record.events.warnings:
        yield NextStep(text="Read the warnings above: each names the option that changes it.")
    accuracy = mean_at_end(record, "flow_dpo_implicit_accuracy")
    held = record.metrics.columns.get(f"{VAL}flow_dpo_implicit_accuracy")
    if accuracy is not None and accuracy < HARDLY:
        yield NextStep(
            text=f"The last steps tell {accuracy:.0%} of the pairs apart, and chance 50%. Train longer, raise "
            "`training.learning_rate`, or see with `flowhooks inspect` whether the rejected images are worse at all."
        )
    if accuracy is not None and held is not None and len(held.values) and accuracy - held.values[-1] > BY_HEART:
        yield NextStep(
            text=f"On held-out pairs the implicit accuracy is {held.values[-1]:.2f}, in training {accuracy:.2f}: the "
            "pairs are learnt by heart. Take an earlier checkpoint, more pairs, or a stronger anchor."
        )
    if 0 in (mean_at_end(record, f"{name}_reward_spread") for name in ("flow_grpo", "ends")):
        yield NextStep(
            text="Within each group all rewards are equal, so that nothing is learnt. Take a reward that differs, or "
            "more images of a prompt."
        )
    if record.document and not record.section("validation").get("prompts"):
        yield NextStep(text="Name a few `validation.prompts`: curves do not show what images look like.")


def _ways(record: RunRecord) -> Iterator[NextStep]:
    place = shown_place(record.folder)
    if not record.finished:
        if checkpoints_in(record.folder):
            text = "To go on from the last checkpoint, where it trains no more:"
            yield NextStep(text=text, command=_line("train", str(Path(place, RUN)), "--resume", "latest"))
        yield NextStep(text="To see this page renewed while it trains:", command=_line("report", place, "--watch"))
        return
    if any((record.folder / name).exists() for name in (*ADAPTER_FILES, PIPELINE)):
        prompts = record.section("validation").get("prompts") or ["an image"]
        yield NextStep(text="Generate images with it:", command=_line("sample", place, f"--prompt={prompts[0]}"))
    if any((record.folder / name).exists() for name in ADAPTER_FILES):
        yield NextStep(text="Write it for ComfyUI and other programs:", command=_line("export", place))
    yield NextStep(
        text="Try another value, and compare the two on one page:",
        command=f"{_line('report', place)} OTHER_RUN --output compare.html",
    )


def shown_place(folder: Path) -> str:
    """Return the folder for a command; the page may be passed on, so that nothing above it is named."""
    return "." if folder.is_absolute() else str(folder)


def _line(*words: str) -> str:
    return shlex.join(["flowhooks", *words])

"""Read a run's folder: what it logged, told and drew, and what is missing or damaged in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowhooks.data.findings import count, some
from flowhooks.errors import ConfigError, Problem
from flowhooks.manifest import EVENTS, HISTORY, METRICS, RUN
from flowhooks.reading import read_json
from flowhooks.report.journal import Events, read_events
from flowhooks.report.metrics_file import MOST_NAMES, MetricsFile
from flowhooks.report.sounds import Sounds, read_sounds

#: Metrics of every step, in which a step without a number is a fault.
ALWAYS = ("loss", "grad_norm")
#: The most warnings of a run on a page; a run prints each sentence once, so that there are few.
WARNINGS = 200


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Holds what is known of one run.

    Args:
        folder: its output folder.
        name: how the page calls it.
        document: its ``run.json``; empty where that is missing or damaged.
        metrics: what it logged.
        events: what else it told.
        notices: sentences on what is missing or damaged.
        logged: when its last line was written, in UTC; None without one.
        sounds: what its validation let be heard.
    """

    folder: Path
    name: str
    document: Mapping[str, Any]
    metrics: MetricsFile
    events: Events
    notices: tuple[str, ...]
    logged: datetime | None
    sounds: Sounds = field(default_factory=Sounds)

    @property
    def last(self) -> int:
        """Return the last step that was logged."""
        return self.metrics.last

    @property
    def steps(self) -> int | None:
        """Return the steps that the run was to take; None where it does not say."""
        found = self.section("training").get("max_train_steps")
        return found if isinstance(found, int) else None

    @property
    def finished(self) -> bool:
        """Return whether it came to its end; an older run did where its results are there."""
        if self.events.known:
            return self.events.ended
        return (self.folder / METRICS).is_file() and (self.steps is None or self.last >= self.steps)

    @property
    def methods(self) -> list[str]:
        """Return the types of its hooks."""
        hooks = self.document.get("hooks")
        found = [each for each in hooks if isinstance(each, dict)] if isinstance(hooks, list) else []
        return [str(each["type"]) for each in found if "type" in each]

    @property
    def health(self) -> dict[str, str]:
        """Return metric -> short name of those by which it is best judged, as far as it told."""
        found = self.events.started.get("health")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the run; empty where there is none."""
        found = self.document.get(name)
        return found if isinstance(found, dict) else {}

    def lines(self, name: str) -> list[str]:
        """Return lines that the run told at its start."""
        found = self.events.started.get(name)
        return [str(line) for line in found] if isinstance(found, list) else []


def read_record(folder: Path, metrics: MetricsFile | None = None) -> RunRecord:
    """Read a run's folder.

    Args:
        metrics: what was read of its metrics before, to read on from there.

    Raises:
        ConfigError: there is no such folder, or no run wrote anything into it.
    """
    if not folder.is_dir():
        raise ConfigError(Problem("there is no such folder; give the output folder of a run", str(folder)))
    if not any((folder / name).exists() for name in (RUN, HISTORY)):
        raise ConfigError(Problem(f"holds no {RUN} and no {HISTORY}; give the output folder of a run", str(folder)))
    notices: list[str] = []
    document: Any = {}
    try:
        document = read_json(folder / RUN)
    except ConfigError as error:
        notices.append(f"{RUN} cannot be read, so its settings are not shown: {error.problems[0].message}")
    if not isinstance(document, dict):
        notices.append(f"{RUN} is no run, so its settings are not shown")
        document = {}
    logged = (metrics or MetricsFile(folder / HISTORY)).update()
    events = Events()
    try:
        events = read_events(folder)
    except ValueError as error:
        notices.append(f"{EVENTS} cannot be read, so warnings are not shown: {error}")
    record = RunRecord(
        folder=folder,
        name=folder.resolve().name or str(folder),
        document=document,
        metrics=logged,
        events=events,
        notices=(),
        logged=_written(folder / HISTORY),
    )
    record = replace(record, sounds=read_sounds(folder, record.section("validation")))
    notices += _state(record)
    notices += _faults(record)
    return replace(record, notices=tuple(notices))


def _written(file: Path) -> datetime | None:
    return datetime.fromtimestamp(int(file.stat().st_mtime), UTC) if file.is_file() else None


def _state(record: RunRecord) -> list[str]:
    found = []
    if not record.metrics.lines:
        found.append("This run has logged no step yet.")
    elif record.events.stopped is not None:
        step, why = record.events.stopped
        found.append(f"This run stopped at step {step:,} of {_of(record)}: {why}")
    elif not record.finished:
        found.append(
            f"This run is not finished: step {record.last:,} of {_of(record)} was logged last. It is training still, "
            "or it was interrupted."
        )
    if not record.events.known and (record.last or record.finished):
        found.append(
            f"A version of flowhooks that wrote no {EVENTS} trained this run: its warnings, its data audit and its "
            "memory are not known here."
        )
    validation = record.section("validation")
    if record.document and not validation.get("prompts") and not validation.get("holdout"):
        found.append(
            "This run had no validation: there are no images and no held-out samples. `validation.prompts` and "
            "`validation.holdout` add them."
        )
    return found


def _faults(record: RunRecord) -> list[str]:
    metrics, found = record.metrics, []
    if metrics.cut:
        found.append(
            f"The last line of {HISTORY} is cut off, as where a run was killed while it wrote it; it is left out."
        )
    if metrics.damaged:
        lines = [str(number) for number in metrics.damaged]
        found.append(
            f"{count(len(lines), 'line')} of {HISTORY} cannot be read and "
            f"{'is' if len(lines) == 1 else 'are'} left out: {some(lines)}."
        )
    if metrics.not_json:
        lines = [str(number) for number in metrics.not_json]
        found.append(f"NaN or infinite numbers are left out of the curves: line {some(lines)} of {HISTORY}.")
    if metrics.crowded:
        found.append(f"Of its metrics the first {MOST_NAMES} are shown.")
    if record.events.damaged:
        lines = [str(number) for number in record.events.damaged]
        found.append(
            f"{count(len(lines), 'line')} of {EVENTS} cannot be read, so that a warning may be missing: {some(lines)}."
        )
    if len(record.events.warnings) > WARNINGS:
        found.append(f"Of its {len(record.events.warnings):,} warnings the first {WARNINGS} are shown.")
    for name in ALWAYS:
        empty = metrics.columns[name].empty if name in metrics.columns else ()
        if empty:
            steps = [f"{int(step):,}" for step in empty]
            found.append(f"`{name}` was no finite number at {count(len(steps), 'logged step')}: {some(steps)}.")
    return found


def _of(record: RunRecord) -> str:
    return "an unknown number" if record.steps is None else f"{record.steps:,}"

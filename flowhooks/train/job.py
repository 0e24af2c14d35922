"""Hold a run in progress: its parts and its step, and save and restore them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowhooks import distributed
from flowhooks.config import Run
from flowhooks.data import Audit, Schedule
from flowhooks.errors import CheckpointError, TrainingError
from flowhooks.kernel import Batch
from flowhooks.kernel.hook import Alarm
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import StepResult
from flowhooks.manifest import REPORT
from flowhooks.quiet import cut_off
from flowhooks.report import Journal, ReportWriter
from flowhooks.report.journal import END, MEMORY, START, STOPPED, WARNING
from flowhooks.sharding import any_sharded
from flowhooks.train import rng
from flowhooks.train.agreement import raise_on_all_ranks
from flowhooks.train.background import Background
from flowhooks.train.checkpoint import Checkpoints
from flowhooks.train.guard import FiniteGuard
from flowhooks.train.liveness import Liveness
from flowhooks.train.metrics import History, MetricWindow, WarnOnce
from flowhooks.train.optimization import Optimization
from flowhooks.train.outputs import packed_intermediate, write_outputs
from flowhooks.train.report import Progress, health_names, process_memory, summary
from flowhooks.train.restoring import restore_run
from flowhooks.train.validation import Validation, on_device
from flowhooks.train.watchdog import Watchdog, worker_gone


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Holds what a step changes before its optimiser does, as it was before.

    Args:
        session: state of the session: its counter, its hooks.
        own: state of this process: its random generators, what it measured since the last logged step.
    """

    session: Mapping[str, Any]
    own: Mapping[str, Any]


@dataclass(kw_only=True)
class Job:
    """Holds everything the loop needs.

    Args:
        identity: identity of the run, stored in its checkpoints.
        schedule: schedule of the batches, which counts epochs; in a run with rollouts, schedule of the prompts.
        background: writes images and pages beside the steps.
        saving: writes checkpoints beside the steps, on all processes in the same order; with one process the same as
            ``background``.
        audit: of its data.
        watchdog: watches the run.
        warned: what was warned of before the first step.
        step: optimiser steps done.
        values: the metrics that were logged last.
        alarm: what is wrong by the metrics that were logged last; None where nothing is, or no hook watches.
        stopped: why :meth:`go_back` was called.
    """

    run: Run
    accelerator: Accelerator
    session: Session
    optimization: Optimization
    validation: Validation
    checkpoints: Checkpoints
    identity: Mapping[str, Any]
    schedule: Schedule
    background: Background
    saving: Background
    audit: Audit
    watchdog: Watchdog
    warned: Sequence[str] = ()
    step: int = 0
    guard: FiniteGuard = field(default_factory=FiniteGuard)
    values: dict[str, float] = field(default_factory=dict)
    alarm: Alarm | None = field(default=None, init=False)
    stopped: str | None = field(default=None, init=False)
    _saved: int = field(default=-1, init=False)
    #: Key of a checkpoint under which it stores the metrics that were measured since the last logged step.
    _window: Mapping[str, Any] | None = field(default=None, init=False)
    #: The last logged step without an alarm, and what writes its checkpoint; None: it is written.
    _good: tuple[int, Callable[[], object] | None] | None = field(default=None, init=False)

    @contextmanager
    def open(self, loader: Iterable[Batch | None], progress: bool) -> Iterator[None]:
        """Keep trackers, history and progress open inside the block.

        Args:
            progress: show a bar; else a line for each logged step.
        """
        training, main = self.run.training, self.accelerator.is_main_process
        self.window = MetricWindow(training["log_every_steps"], training["max_train_steps"])
        if self._window is not None:
            self.window.load_state_dict(self._window)
        folder = Path(self.run.output_dir)
        if main:
            self._history, self._journal = History(folder, self.step), Journal(folder, self.step)
        self.voice = WarnOnce(main, keep=lambda sentence: self._note(WARNING, text=sentence))
        self._loader = loader
        self._report = ReportWriter(folder)
        # A tracker may draw random names; the random state of a resumed run is restored already.
        with rng.preserved(self.accelerator.device):
            try:
                self.accelerator.init_trackers(self.run.logging["project"], config=_flat(self.run.document))
            except Exception as error:
                named, why = self.run.logging["trackers"], f"{type(error).__name__}: {error}"
                sentence = f"of `logging.trackers` {named} one did not start ({why}); put it right, or leave it out"
                raise TrainingError(sentence) from error
        health, lines = health_names(self.session.assembly.hooks), summary(self)
        self.progress = Progress(total=training["max_train_steps"], health=health, bar=progress, main=main)
        for line in lines:
            self.progress.say(line)
        self._note(START, health=health, summary=lines, audit=self.audit.report, counts=self.audit.counts)
        for sentence in self.warned:
            self._note(WARNING, text=sentence)
        if (cut := cut_off()) is not None:
            self.voice.say(cut)
        self.liveness = Liveness(
            self.session,
            self.validation.model.transformer,
            self.accelerator.autocast,
            begins=self.step == 0,
        )
        self.optimization.before = self.liveness.note
        try:
            with self.liveness.watching(), self.progress.open(self.step), self._written():
                yield
            if self.step >= training["max_train_steps"]:
                self._note(END)
        except BaseException as error:
            self._note(STOPPED, text=str(error) if isinstance(error, Exception) else "interrupted")
            raise
        finally:
            self._note_memory()
            self._write_report()

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Wait for all that is written beside the steps at the end of the block."""
        with self.background.open(self.progress.say), self.saving.open(self.progress.say):
            yield

    def batches(self) -> Iterator[Batch | None]:
        """Yield batches on the device, starting at the next micro-step, without end; None for a run that samples its
        own data.

        Raises:
            TrainingError: a process that reads them is gone.
        """
        loader = iter(self._loader)
        while True:
            try:
                batch = next(loader)
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                # A batch is fetched from the process that read it, so that a connection may be what breaks.
                if not self.run.training["dataloader_num_workers"]:
                    raise
                raise worker_gone(error) from error
            yield None if batch is None else on_device(batch, self.accelerator.device)

    def computed(self, batch: Batch | None, *, log: bool) -> Iterator[StepResult]:
        """Yield the chunks of the session's step, each computed under autocast; backward runs between them, outside
        autocast."""
        chunks = self.session.steps(batch, log=log)
        while True:
            with self.accelerator.autocast():
                result = next(chunks, None)
            if result is None:
                return
            yield result

    @property
    def epoch(self) -> float:
        return self.schedule.epoch_at(self.session.micro_step)

    def log(self, norm: Tensor) -> None:
        """Fetch the metrics of the window, check them, and write them. Raises TrainingError where a
        number is not finite or something turns out not to be trained."""
        self.guard.check()
        self._judge()
        values = self.window.fetch()
        values |= {"grad_norm": float(norm), "learning_rate": self.optimization.learning_rate, "epoch": self.epoch}
        self.values |= values
        self.publish(values)
        self.progress.tell(self.step, values)
        # A resumed run repeats the metrics, but not the seconds per step.
        for sentence in self.session.warnings({k: v for k, v in values.items() if k != "seconds_per_step"}):
            self.voice.say(sentence)
        if self.session.watched:
            self.alarm = self.session.alarm(values)
            if self.alarm is None:
                # At most one is in memory, beside one that is being written.
                self._good = self.step, self._copied()

    def go_back(self) -> None:
        """Take the state of the last logged step without an alarm, and make its checkpoint the latest one. What came
        after it is moved aside.

        Raises:
            TrainingError: there was no such step.
            CheckpointError: its checkpoint is gone, or cannot be written.
        """
        assert self.alarm is not None, "something is wrong"
        self.saving.join()
        if self._good is None:
            raise TrainingError(
                f"{self.alarm.reason}. It was so from the first logged step on, so there is no step to go back to; "
                "look at `reference`, the learning rate, and the `limit` of `stop_when`"
            )
        step, folder = self._good[0], self.checkpoints.path(self._good[0])
        self.stopped = f"stopped at step {self.step:,}: {self.alarm.reason}. Results are those of step {step:,}"
        self._write_good()
        if not folder.is_dir():
            raise CheckpointError(
                f"{self.stopped}, and {folder} is gone; train again with a larger limit on checkpoints"
            )
        with raise_on_all_ranks(CheckpointError):
            if self.accelerator.is_main_process:
                self.checkpoints.go_back(folder)
        self.restore(folder)

    def validate(self) -> None:
        """Validate at this step."""
        self.watchdog.mark(f"validation after step {self.step:,}")
        with self.optimization.at_result():
            values = self.validation.validate(self.step)
        self.values |= values
        if values:
            self.publish(values)
        self._note_memory()
        self.background.submit(self._write_report)

    def publish(self, values: Mapping[str, float]) -> None:
        """Send values to trackers and history, under this step."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with self._told("the trackers did not take a step's metrics"):
            self.accelerator.log(finite, step=self.step)
        if self.accelerator.is_main_process:
            with self._told(f"{self._history.file} did not take a step's metrics"):
                self._history.append(self.step, values)

    def _note(self, event: str, **told: Any) -> None:
        """Keep an event of this step for the report."""
        if self.accelerator.is_main_process:
            # A full disk is told where the steps' metrics are written.
            with suppress(OSError):
                self._journal.append(self.step, event, **told)

    def _note_memory(self) -> None:
        device = self.accelerator.device
        found = {"process": process_memory()}
        if device.type == "cuda":
            found["device"] = torch.cuda.max_memory_allocated(device)
        self._note(MEMORY, bytes=found)

    def _write_report(self) -> None:
        """Write the page that shows the run, where it is wanted. A page never ends a run."""
        if self.accelerator.is_main_process and self.run.logging["report"]:
            with self._told(f"{REPORT} could not be written"):
                self._report.write()

    @contextmanager
    def _told(self, failure: str) -> Iterator[None]:
        """Turn a failure to log into a warning that begins with ``failure``: it never ends a run."""
        try:
            yield
        except Exception as error:
            self.voice.say(f"{failure} ({type(error).__name__}: {error}); training goes on")

    def save(self, *, wait: bool = False, before: Changed | None = None) -> None:
        """Take a checkpoint of this step, unless the run was just resumed from it. What is in it is copied at once, and
        written beside the steps that follow, after what is being written now.

        Where the copy would be of a whole network, on one process, it is written at once.

        Args:
            wait: for it to be written.
            before: what the step that comes next has changed already, as it was before; None: nothing.

        Raises:
            TrainingError, CheckpointError: also what failed in writing before.
        """
        self.watchdog.mark(f"the checkpoint of step {self.step:,}")
        self.guard.check()
        self._judge()
        # At most one is in memory. All processes have done the same here, and fail together.
        self.saving.join()
        if self.step == self._saved:
            return
        if self.alarm is not None:
            # A run that goes on from this checkpoint may want to go back further.
            self._write_good()
        if before is not None or (distributed.world_size() == 1 and self.session.adapter is None):
            states, own = self._states(before)
            self.checkpoints.save(self.step, states, own, self.identity, lambda folder: self._intermediate()(folder))
        else:
            self.saving.submit(self._copied())
        self._saved = self.step
        if self._good is not None and self._good[0] == self.step:
            self._good = self.step, None
        if wait:
            self.saving.join()

    def changed(self) -> Changed:
        """Return what a step changes before its optimiser does. No tensor is copied."""
        own = {"random": rng.capture(self.accelerator.device), "window": self.window.state_dict()}
        return Changed(session=self.session.state_dict(), own=own)

    def _states(self, before: Changed | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a checkpoint of this step holds: the states of the run, and those of this process."""
        now = before or self.changed()
        epoch = self.schedule.epoch_at(now.session["micro_step"])
        progress: dict[str, Any] = {"step": self.step, "epoch": epoch, "values": self.values}
        if self.session.watched:
            progress["good"] = -1 if self._good is None else self._good[0]
        states = {
            "parameters": self.session.parameters(),
            "optimization": self.optimization.state_dict(),
            "session": now.session,
            "progress": progress,
        }
        return states, dict(now.own)

    def _copied(self) -> Callable[[], object]:
        """Copy this step in memory, and return what writes its checkpoint; all processes call that together."""
        states, own = self._states()
        beside = self._intermediate() if self.accelerator.is_main_process else _nothing
        return self.checkpoints.taken(self.step, states, own, self.identity, beside)

    def _write_good(self) -> None:
        """Write the checkpoint of the last logged step without an alarm, unless it is written."""
        step, write = self._good or (0, None)
        if write is not None:
            write()
            self._good = step, None

    def _judge(self, *, last: bool = False) -> None:
        """Let what was seen of the first updates be judged. Raises TrainingError."""
        if (sentence := self.liveness.check(last=last)) is not None:
            self.voice.say(sentence)

    def _intermediate(self) -> Callable[[Path], None]:
        with self.optimization.at_result():
            return packed_intermediate(self.run, self.session)

    def restore(self, folder: Path) -> None:
        """Restore what :meth:`save` wrote. Raises CheckpointError when it does not fit the model."""
        found = restore_run(folder, self.run, self.accelerator, self.session, self.optimization, self.identity)
        self.step, self.values, self._window, self._saved = found.step, found.values, found.window, found.step
        if self.session.watched:
            # A branch starts from another folder's checkpoint, which this run must not go back to in its own.
            ours = folder.resolve() == self.checkpoints.path(self.step).resolve()
            self._good = (found.good, None) if found.good >= 0 and ours else None

    def finish(self) -> None:
        """Write the last checkpoint and the outputs of the run. Raises TrainingError where the run trained nothing."""
        self.guard.check()
        self._judge(last=True)
        self.save(wait=True)
        self.watchdog.mark("writing the results")
        main, model = self.accelerator.is_main_process, self.validation.model
        # The whole of weights that are sharded takes all processes to put together.
        together = any_sharded(self.session.parameters().values())
        with raise_on_all_ranks(CheckpointError):
            if main or together:
                pictures = self.validation.pictures() if main else []
                with self.optimization.at_result():
                    write_outputs(self.run, self.session, model.pipe, self.values, pictures, main=main)


def _nothing(folder: Path) -> None:
    """Write nothing beside the states: the main process does."""


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a document for trackers: dotted names, plain values."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix: value if isinstance(value, (int, float, str)) else json.dumps(value)}

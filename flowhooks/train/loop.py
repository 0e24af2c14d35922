"""Run the training loop."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from flowhooks.checks import Examined
from flowhooks.config import Run
from flowhooks.quiet import without_bars
from flowhooks.train.files import full_disk_told
from flowhooks.train.rewards import checkpoint_if_rewards_fail
from flowhooks.train.setup import prepared
from flowhooks.train.signals import leave, stop_requests
from flowhooks.train.watchdog import PATIENCE


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Holds the result of a finished run.

    Args:
        output_dir: folder with all outputs.
        step: optimiser steps done.
        metrics: name -> the value that was logged last.
        stopped: why a hook ended the run before its last step, and where; None where none did.
    """

    output_dir: Path
    step: int
    metrics: dict[str, float]
    stopped: str | None = None


def train(
    run: Run,
    *,
    resume: str | None = None,
    progress: bool = True,
    rebuild_cache: bool = False,
    examined: Examined | None = None,
    again: str | None = None,
) -> TrainResult:
    """Train a run to its last step, from the start or from a checkpoint.

    Args:
        resume: ``latest``, or a ``checkpoint-<step>`` folder; None starts at step 0 in an output folder without
            checkpoints.
        progress: show progress bars; else a line on stderr for each logged step.
        rebuild_cache: compute latents, masks and text conditions of this run again, even if they are cached.
        examined: result of :func:`flowhooks.checks.examine` for this run and ``resume``, if computed already.
        again: the command that resumes this run, for messages; None writes one without overrides.

    Returns:
        The result. ``output_dir`` then holds the adapter's file (or ``pipeline/``), ``run.json``,
        ``metrics.json``, ``README.md``, ``validation/``, ``checkpoint-<step>/``. Under ``use_ema`` the weights
        written are the averaged ones.

    Raises:
        ConfigError, DataError, ModelError, AdapterError: before the first step; exit code 2.
        CheckpointError: damaged, of another run, or not writable.
        TrainingError: a loss or gradient is not finite, the disk is full, or the run hangs or has lost a process.
        RewardFailure: a reward gives no number, after a checkpoint of the step before was written.
        KeyboardInterrupt, SystemExit: Ctrl-C (exit code 130) or SIGTERM (143), after a checkpoint was written.
    """
    training = run.training
    accumulation = training["gradient_accumulation_steps"]
    with (
        nullcontext() if progress else without_bars(),
        full_disk_told(Path(run.output_dir)),
        prepared(run, resume, progress, rebuild_cache, examined, again) as job,
        stop_requests(None if job.watchdog.limit is None else PATIENCE) as stop,
    ):
        batches = job.batches()
        if job.step == 0 and job.validation.due(0):
            job.validate()
        while job.step < training["max_train_steps"]:
            job.watchdog.mark(f"step {job.step + 1:,}")
            job.background.raise_failure()
            logged = job.window.due(job.step + 1)
            with checkpoint_if_rewards_fail(job):
                for _ in range(accumulation):
                    batch = next(batches)
                    micro_step = job.session.micro_step
                    # Metrics cost passes over the predictions and, once read, a wait for the device: only where they
                    # are logged. A step has one chunk, except for rollouts, which have one per visited state.
                    for result in job.computed(batch, log=logged):
                        job.guard.loss(result.loss, micro_step, result.files)
                        job.optimization.backward(result.loss / accumulation)
                        job.window.add(result)
            norm = job.optimization.step(job.guard)
            job.session.updated()
            job.step += 1
            job.window.step()
            job.progress.advance()
            if logged:
                job.log(norm)
                if job.alarm is not None and job.alarm.final:
                    job.go_back()
                    break
            if signal := stop.agreed():
                job.save(wait=True)
                leave(signal)
            if job.validation.due(job.step):
                job.validate()
            if job.step % training["checkpointing_steps"] == 0:
                job.save()
        job.finish()
        return TrainResult(
            output_dir=Path(run.output_dir), step=job.step, metrics=dict(job.values), stopped=job.stopped
        )

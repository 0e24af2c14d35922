"""Restore a run from a checkpoint, which any number of processes may have written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flowhooks import distributed
from flowhooks.config import Run
from flowhooks.errors import CheckpointError, FlowhooksWarning
from flowhooks.kernel.session import Session
from flowhooks.manifest import read_manifest
from flowhooks.sharding import local
from flowhooks.train import rng
from flowhooks.train.checkpoint import read
from flowhooks.train.identity import changes, past_the_end
from flowhooks.train.metrics import merged_windows
from flowhooks.train.optimization import Optimization
from flowhooks.train.rows import settled
from flowhooks.train.topology import moved_micro_step


@dataclass(frozen=True, kw_only=True)
class RestoredRun:
    """Holds how far a restored run is.

    Args:
        step: optimiser steps done.
        values: the metrics that were logged last.
        window: what was measured since; None where the checkpoint is too old to hold it.
        good: the last step whose metrics raised no alarm; -1 where there is none.
    """

    step: int
    values: dict[str, float]
    window: Mapping[str, Any] | None
    good: int


@torch.no_grad()
def restore_run(
    folder: Path,
    run: Run,
    accelerator: Accelerator,
    session: Session,
    optimization: Optimization,
    identity: Mapping[str, Any],
) -> RestoredRun:
    """Restore weights, optimiser, hooks and random generators from a checkpoint.

    Args:
        identity: of the run that goes on.

    Raises:
        CheckpointError: it does not fit the model.
    """
    found = read_manifest(folder).identity
    for sentence in changes(found, identity) if accelerator.is_main_process else ():
        warnings.warn(f"{folder}: {sentence}", FlowhooksWarning, stacklevel=3)
    _restore_weights(folder, session)
    optimization.load_state_dict(read(folder, "optimization"))
    session.load_state_dict(settled(read(folder, "session"), session.state_dict()))
    session.micro_step = moved_micro_step(session.micro_step, found, identity)
    progress = read(folder, "progress")
    step = progress["step"]
    processes = found.get("processes", distributed.world_size())
    window = _restore_own(folder, run.training["seed"], step, processes, accelerator)
    if (late := past_the_end(step, run)) is not None:
        warnings.warn(f"{folder}: {late}", FlowhooksWarning, stacklevel=3)
    return RestoredRun(step=step, values=progress["values"], window=window, good=progress.get("good", step))


def _restore_weights(folder: Path, session: Session) -> None:
    parameters, saved = session.parameters(), read(folder, "parameters")
    wrong = [
        f"`{name}`"
        for name in sorted({*parameters, *saved})
        if name not in parameters or name not in saved or parameters[name].shape != saved[name].shape
    ]
    if wrong:
        named = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{folder}: was written for another model: {named} missing, new, or of another shape; use the model "
            f"it was trained on"
        )
    for name, value in settled(saved, parameters).items():
        local(parameters[name]).copy_(local(value))


def _restore_own(
    folder: Path, seed: int, step: int, processes: int, accelerator: Accelerator
) -> Mapping[str, Any] | None:
    """Restore what each process saved on its own, and return what it had measured since the last logged step. With
    another number of processes that is taken together, and their random generators start anew."""
    rank = accelerator.process_index
    if processes == distributed.world_size():
        own = read(folder, f"process_{rank}")
        rng.restore(own["random"], accelerator.device)
        # Checkpoints of older versions hold none.
        return own.get("window")
    rng.seed_anew(seed, step, rank)
    windows = [read(folder, f"process_{each}").get("window") for each in range(processes)]
    return None if None in windows else merged_windows(windows)

"""accelerate gives device, precision, trackers and processes. It wraps no model: gradients are averaged by us."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs, KwargsHandler, ProjectConfiguration

from flowhooks.config import Run
from flowhooks.errors import ConfigError, FlowhooksWarning, Problem
from flowhooks.train.watchdog import PATIENCE

LOGS = "logs"


@contextmanager
def accelerated(run: Run) -> Iterator[Accelerator]:
    """Yield an Accelerator with the run's precision; its trackers are open inside the block.

    Raises:
        ConfigError: this machine cannot compute in the precision.
    """
    ours = not AcceleratorState._shared_state
    folder = Path(run.output_dir)
    # The cache keeps a weight's half-precision copy by the weight's identity: a role that swaps in other values (ema)
    # would get the policy's copy, and a weight first cast without gradient would stay without.
    handlers: list[KwargsHandler] = [AutocastKwargs(cache_enabled=False)]
    if run.training["watchdog_seconds"] is not None:
        handlers.append(InitProcessGroupKwargs(timeout=PATIENCE))
    try:
        accelerator = Accelerator(
            mixed_precision=run.training["mixed_precision"],
            log_with=run.logging["trackers"] or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / LOGS)),
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise ConfigError(Problem(f"{error}", str(run.source), "$.training.mixed_precision")) from error
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            _close(tracker)
        if ours:
            # Otherwise the next run in this program would have to use the same precision.
            AcceleratorState._reset_state()


def _close(tracker: Any) -> None:
    """Close a tracker. What it cannot write, on a full disk for example, is a warning and hides no other error."""
    try:
        # A tracker whose start failed has nothing to finish.
        with suppress(AttributeError):
            tracker.finish()
    except Exception as error:
        message = f"the tracker {tracker.name!r} could not be closed ({error}); what it was given last may be lost"
        warnings.warn(message, FlowhooksWarning, stacklevel=2)

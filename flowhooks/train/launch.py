"""accelerate gives device, precision, trackers and processes. It wraps no model: gradients are averaged by us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, ProjectConfiguration

from flowhooks.config import Run
from flowhooks.errors import ConfigError, Problem

LOGS = "logs"
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def refuse_sharding(source: str) -> None:
    """Raises ConfigError when accelerate was set up to split the model over processes."""
    for variable, name in _SHARDED.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            message = (
                f"accelerate is set up for {name}, which splits the model; here every process holds the frozen model "
                f"whole and only the "
                "gradients of what is trained travel. Start with `accelerate launch --multi_gpu`, or answer no to "
                "it in `accelerate config`"
            )
            raise ConfigError(Problem(message, source))


def check_trackers(run: Run) -> None:
    """Raises ConfigError for a tracker that is not installed."""
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    missing = [name for name in run.logging["trackers"] if name not in available]
    if missing:
        message = (
            f"the tracker {missing[0]!r} is not installed; run `pip install {missing[0]}`, or take it out of the list"
        )
        raise ConfigError(Problem(message, str(run.source), "$.logging.trackers"))


@contextmanager
def accelerated(run: Run) -> Iterator[Accelerator]:
    """An Accelerator under the run's precision, its trackers open inside the block.

    Raises:
        ConfigError: a precision this machine does not compute in.
    """
    ours = not AcceleratorState._shared_state
    folder = Path(run.output_dir)
    try:
        accelerator = Accelerator(
            mixed_precision=run.training["mixed_precision"],
            log_with=run.logging["trackers"] or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / LOGS)),
            # The cache keeps a weight's half-precision copy by the weight's identity: a role that swaps in other
            # values (ema) would be given the policy's, and a weight first cast without gradient would stay without.
            kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
        )
    except ValueError as error:
        raise ConfigError(Problem(f"{error}", str(run.source), "$.training.mixed_precision")) from error
    try:
        yield accelerator
    finally:
        for tracker in accelerator.trackers:
            # A tracker whose start failed, on a full disk for one, has nothing to finish; its own error must show.
            with suppress(AttributeError):
                tracker.finish()
        if ours:
            # Otherwise the next run in this program would have to use the same precision.
            AcceleratorState._reset_state()

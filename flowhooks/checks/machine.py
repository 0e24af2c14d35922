"""What this machine, its disk and its settings cannot do of a run. Free of torch."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from flowhooks.config import Run
from flowhooks.errors import Problem
from flowhooks.machine import backend_refusal, has_accelerator

#: Processes that read ahead, for each CPU, beyond which a run is refused: each holds some hundred megabytes.
WORKERS_PER_CPU = 8
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def sharding_problems(run: Run) -> Iterator[Problem]:
    """Settings of accelerate that split the model over processes."""
    for variable, name in _SHARDED.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            message = (
                f"accelerate is set up for {name}, which splits the model; here every process holds the frozen model "
                "whole and only the gradients of what is trained travel. Start with `accelerate launch --multi_gpu`, "
                "or answer no to it in `accelerate config`"
            )
            yield Problem(message, str(run.source))


def machine_problems(run: Run) -> Iterator[Problem]:
    """What this machine, or its disk, cannot do of a run."""
    file = str(run.source)
    model, mixed = run.model, run.training["mixed_precision"]
    refusal = backend_refusal(model["attention_backend"], dtype=model["dtype"], mixed_precision=mixed)
    if refusal:
        message = f"{model['attention_backend']!r} cannot be used: {refusal}; 'native' works everywhere"
        yield Problem(message, file, "$.model.attention_backend")
    if mixed == "fp16" and not has_accelerator():
        yield Problem(
            "'fp16' needs a GPU, and this machine has none that answers; use 'no' or 'bf16'",
            file,
            "$.training.mixed_precision",
        )
    for i, tracker in enumerate(run.logging["trackers"]):
        if find_spec(tracker) is None:
            message = f"{tracker!r} is not installed; run `pip install {tracker}`, or take it out of the list"
            yield Problem(message, file, f"$.logging.trackers[{i}]")
    module = run.training["optimizer"].partition(":")[0].partition(".")[0]
    if run.training["optimizer"] != "adamw" and find_spec(module) is None:
        message = f"the package {module!r} of the optimiser is not installed; install it, or use 'adamw'"
        yield Problem(message, file, "$.training.optimizer")
    workers, most = run.training["dataloader_num_workers"], WORKERS_PER_CPU * max(cpus(), 2)
    if workers > most:
        message = f"{workers:,} processes would exhaust this machine of {cpus()} CPUs; use at most {most}"
        yield Problem(message, file, "$.training.dataloader_num_workers")
    for key, folder in (("output_dir", run.output_dir), ("cache_dir", run.cache_dir)):
        yield from _place_problems(Path(folder), file, key)


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_warnings(run: Run) -> Iterator[str]:
    """What this machine can do of a run, and does badly."""
    workers = run.training["dataloader_num_workers"]
    if workers > cpus():
        yield (
            f"`training.dataloader_num_workers` is {workers}, and this machine has {cpus()} CPUs: more processes than "
            "that read no faster"
        )


def _place_problems(folder: Path, file: str, key: str) -> Iterator[Problem]:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield Problem(f"{place} is a file, so no folder can be made there; name another `{key}`", file, f"$.{key}")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            f"{place} cannot be written to; name another `{key}`, or change its permissions", file, f"$.{key}"
        )
    elif not folder.is_dir() and (reason := _unmakeable(place)) is not None:
        yield Problem(f"no folder can be made in {place} ({reason}); name another `{key}`", file, f"$.{key}")


def _unmakeable(place: Path) -> str | None:
    """Why no folder can be made there, where permissions allow it: /proc, say. It is tried, and taken away at once."""
    trial = place / f".flowhooks-{uuid.uuid4().hex[:8]}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        return error.strerror or str(error)
    return None

"""Print what a run is about to do, and then its progress."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import torch
from tqdm.auto import tqdm

from flowhooks.checks.planning import kind_of
from flowhooks.data.findings import count
from flowhooks.data.shards import human_bytes
from flowhooks.printing import one_line

if TYPE_CHECKING:
    from flowhooks.kernel.hook import Hook
    from flowhooks.train.job import Job


def health_names(hooks: Sequence[Hook]) -> dict[str, str]:
    """Return metric -> its readable name, such as ``implicit accuracy``, for each hook that names one."""
    named = {hook.health: hook.health_label or hook.health.removeprefix(f"{hook.type}_") for hook in hooks}
    return {metric: short.replace("_", " ") for metric, short in named.items() if metric}


class Progress:
    """Shows a bar, or a line for each logged step; both show the same values. With several processes, the main one
    prints.

    Args:
        total: the run's last step.
        health: metric -> its name here, see :func:`health_names`.
        bar: show a bar.
        main: whether this is the main process.
    """

    def __init__(self, *, total: int, health: Mapping[str, str], bar: bool, main: bool):
        self.total, self.health = total, health
        self._bar_wanted, self._main = bar and main, main
        self._lines = main and not bar
        self._seconds = math.nan

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Show the bar inside the block, which begins after ``step`` steps."""
        with tqdm(
            total=self.total, initial=step, desc="Training", unit="step", disable=not self._bar_wanted
        ) as self._bar:
            yield

    def advance(self) -> None:
        """Count one step as done."""
        self._bar.update()

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of a logged step."""
        told = self._told(values)
        self._bar.set_postfix(told)
        if self._lines:
            place = f"step {step:,}/{self.total:,}"
            self.say("  ".join([place, *map(" ".join, told.items()), *self._time(step, values)]))

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._main:
            tqdm.write(one_line(line), file=sys.stderr)

    def _told(self, values: Mapping[str, float]) -> dict[str, str]:
        """Return loss, health of each method and rate, as they are shown."""
        health = {short: values[name] for name, short in self.health.items() if name in values}
        numbers = {"loss": values["loss"], **health, "rate": values["learning_rate"]}
        return {name: f"{value:.4g}" for name, value in numbers.items()}

    def _time(self, step: int, values: Mapping[str, float]) -> tuple[str, str]:
        """Return seconds per step, and the time left at the latest pace: the first steps are slower than the rest."""
        now = values["seconds_per_step"]
        self._seconds = now if math.isnan(self._seconds) else (self._seconds + now) / 2
        return f"{now:.3g} s/step", f"{tqdm.format_interval(self._seconds * (self.total - step))} left"


def summary(job: Job) -> list[str]:
    """Return lines on what a run is about to do: device and memory, what is trained, how many samples, and how long an
    epoch is."""
    run, training = job.run, job.run.training
    told = {
        "device": _device(job.accelerator.device, job.accelerator.num_processes),
        "trains": _trained(job),
        **_held(job),
        "data": _data(job),
        "steps": _steps(job),
    }
    precision = [run.model["dtype"], f"mixed precision {training['mixed_precision']}"]
    told["device"] += f"; weights in {', '.join(precision)}"
    return [f"{word}: {line}" for word, line in told.items()]


def process_memory() -> int:
    """Return the bytes of host memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def _device(device: torch.device, processes: int) -> str:
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        told = f"{device} ({torch.cuda.get_device_name(device)}), {human_bytes(free)} of {human_bytes(whole)} free"
    else:
        told = str(device)
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            page = os.sysconf("SC_PAGE_SIZE")
            free, whole = (page * os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
            told += f", {human_bytes(free)} of {human_bytes(whole)} of memory free"
    return told + (f", one of {processes:,} processes" if processes > 1 else "")


def _trained(job: Job) -> str:
    session, adapter = job.session, job.run.adapter
    parameters = session.parameters()
    number = sum(each.numel() for each in parameters.values())
    own = sum(each.numel() for module in session.assembly.modules().values() for each in module.parameters())
    layers = len({_layer(name) for name in parameters}) if adapter is None else len(session.adapter.targets)
    what = "the whole network" if adapter is None else kind_of(adapter)
    told = f"{what} in {count(layers, 'layer')}: {count(number - own, 'parameter')}"
    return told + (f", and {own:,} of hooks" if own else "")


def _held(job: Job) -> dict[str, str]:
    """Return what is on beside the adapter while the loss is computed, if anything is."""
    if job.session.training_adapter is None:
        return {}
    held = job.session.training_adapter.describe()
    layers, at = count(held["layers"], "layer"), f"strength {held['strength']:g}"
    line = f"{held['kind']} {held['name']!r} in {layers}, {at}, {human_bytes(held['bytes'])}; on in the loss only"
    return {"training adapter": line}


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _data(job: Job) -> str:
    records: Any = job.validation.held
    held, batch = len(records), job.run.training["train_batch_size"]
    drawn = sum(len(stream.indices) for stream in job.schedule.streams)
    accumulation, processes = job.run.training["gradient_accumulation_steps"], job.accelerator.num_processes
    noun = "prompt" if job.run.data is None else "sample"
    parts = [count(drawn, noun), *([f"{held:,} held out"] if held else []), f"batches of {batch:,}"]
    if accumulation > 1:
        parts.append(f"{accumulation:,} a step")
    if processes > 1:
        parts.append(f"on each of {processes:,} processes")
    return ", ".join(parts)


def _steps(job: Job) -> str:
    last, accumulation = job.run.training["max_train_steps"], job.run.training["gradient_accumulation_steps"]
    epochs = job.schedule.epoch_at(last * accumulation)
    began = f"{last:,}" if job.step == 0 else f"{job.step:,} done of {last:,}"
    if not epochs:
        return began
    each = f"{last / epochs:,.4g}"
    return f"{began}, {epochs:.3g} epochs; an epoch is {each} step{'' if each == '1' else 's'}"

"""Keep metrics on the device until a step is logged, then fetch them together, averaged over window and processes."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from flowhooks import distributed
from flowhooks.errors import TrainingError
from flowhooks.kernel.view import StepResult
from flowhooks.manifest import HISTORY
from flowhooks.printing import one_line
from flowhooks.reading import parse
from flowhooks.train.agreement import gather
from flowhooks.train.files import write_aside

#: Internal key of the losses that are added to a step's main loss; no metric has this name.
_ADDED = "loss, added"


class MetricWindow:
    """Collects the metrics measured since the last fetch.

    Args:
        every: optimiser steps between logged ones; the first and the last are logged too.
        last: the run's last step.
    """

    def __init__(self, every: int, last: int):
        self.every, self.last = every, last
        self._losses: list[Tensor] = []
        self._added: list[Tensor] = []
        self._measured: dict[str, list[Tensor]] = {}
        self._steps, self._since = 0, time.perf_counter()

    def due(self, step: int) -> bool:
        """Return whether optimiser step ``step``, counted from 1, is logged."""
        return step % self.every == 0 or step in (1, self.last)

    def add(self, result: StepResult) -> None:
        """Add the metrics of one micro-batch, without waiting for the device."""
        (self._added if result.added else self._losses).append(result.loss.detach() / result.share)
        for name, value in result.metrics.items():
            if name != "loss":
                self._measured.setdefault(name, []).append(value.detach())

    def step(self) -> None:
        """Count one optimiser step as done."""
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what this process measured since the last fetch."""
        lists = {"losses": self._losses, "added": self._added, **{f"metric {n}": v for n, v in self._measured.items()}}
        found = {name: torch.stack([v.reshape(()) for v in values]) for name, values in lists.items() if values}
        return {"values": found, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, so that a resumed run logs what an uninterrupted one does."""
        lists = {name: list(values.unbind()) for name, values in state["values"].items()}
        self._losses, self._added = lists.pop("losses", []), lists.pop("added", [])
        self._measured = {name.removeprefix("metric "): values for name, values in lists.items()}
        self._steps = int(state["steps"])

    def fetch(self) -> dict[str, float]:
        """Return means over micro-batches and processes, ignoring NaN: the loss over the whole window, the rest over
        its logged steps."""
        values = mean_over_processes({"loss": self._losses, _ADDED: self._added, **self._measured})
        values["loss"] += values.pop(_ADDED, 0.0)
        now = time.perf_counter()
        values["seconds_per_step"] = (now - self._since) / max(1, self._steps)
        self._losses, self._added, self._measured = [], [], {}
        self._steps, self._since = 0, now
        return values


def merged_windows(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what one process of another number of them goes on with, from the states of all windows: each value is the
    mean of those that were measured in its place, without NaN, so that it counts as much as one that comes after."""
    named = dict.fromkeys(name for state in states for name in state["values"])
    values = {}
    for name in named:
        found = [state["values"][name] for state in states if name in state["values"]]
        places = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=math.nan)
        values[name] = places.nanmean(0)
    return {"values": values, "steps": states[0]["steps"]}


def mean_over_processes(
    measured: Mapping[str, list[Tensor]], weights: Mapping[str, list[float]] | None = None
) -> dict[str, float]:
    """Return the mean of each name's values over all processes, ignoring NaN, with one fetch; NaN where a name has no
    value.

    Every process calls this, whatever names it has.

    Args:
        weights: name -> one weight per value; None weighs all values alike.
    """
    device = next((values[0].device for values in measured.values() if values), distributed.device())
    sums = []
    names = _agreed(name for name, values in measured.items() if values)
    for name in names:
        found = measured.get(name) or [torch.full((), math.nan, device=device)]
        values = torch.stack([value.double().reshape(()) for value in found])
        weight = (
            torch.ones_like(values)
            if weights is None or not measured.get(name)
            else torch.tensor(weights[name], dtype=torch.float64, device=values.device)
        )
        counted = ~values.isnan()
        sums.append(
            torch.stack(
                [
                    (weight * values.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)).sum(),
                    (weight * counted).sum(),
                ]
            )
        )
    if not sums:
        return {}
    total = distributed.all_reduce(torch.stack(sums)).tolist()
    return {name: value / count if count else math.nan for name, (value, count) in zip(names, total, strict=True)}


def _agreed(names: Iterable[str]) -> list[str]:
    """Return the names that any process has, in the same order everywhere: a metric may be measured on some processes
    only."""
    return sorted({name for said in gather(json.dumps(sorted(names))) for name in parse(said)})


class History:
    """Writes ``metrics.jsonl``, one line per logged step. A resumed run drops the lines of steps that it will take
    again."""

    def __init__(self, folder: Path, step: int):
        self.file = folder / HISTORY
        kept = [line for line in self._lines() if step and _step_of(line) <= step]
        text = "".join(line + "\n" for line in kept)
        write_aside(self.file, lambda aside: aside.write_text(text, encoding="utf-8"), TrainingError)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **numbers}) + "\n")

    def _lines(self) -> list[str]:
        # A byte that is not text invalidates its line only.
        text = self.file.read_text(encoding="utf-8", errors="replace") if self.file.is_file() else ""
        return text.splitlines()


class WarnOnce:
    """Prints each warning once, whatever numbers it contains, without breaking the progress bar.

    Args:
        main: whether this is the main process.
        keep: called with each sentence that is printed.
    """

    def __init__(self, main: bool, keep: Callable[[str], object] | None = None):
        self._main, self._keep = main, keep
        self._said: set[str] = set()

    def say(self, sentence: str) -> None:
        key = re.sub(r"\d[\d.e+-]*", "#", sentence)
        if self._main and key not in self._said:
            self._said.add(key)
            tqdm.write(f"warning: {one_line(sentence)}", file=sys.stderr)
            if self._keep is not None:
                self._keep(sentence)


def _step_of(line: str) -> int:
    try:
        return int(parse(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return sys.maxsize  # cut off when its writer was killed

"""Watch a detector over the logged steps of a preference run, and say when the run should end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flowhooks.hooks.preference_spec import DETECTORS, PATIENCE
from flowhooks.kernel.hook import Alarm


class Watch:
    """Counts logged steps in a row at which a detector is on.

    Args:
        name: type of the objective, before the names of its metrics.
        rule: an option `stop_when`.

    Attributes:
        count: steps in a row so far; part of a checkpoint.
    """

    def __init__(self, name: str, rule: Mapping[str, Any]):
        self._name, self._of = name, rule["detector"]
        self._detector = DETECTORS[self._of]
        limit = rule.get("limit")
        self._limit = self._detector.limit if limit is None else limit
        self._patience = rule.get("patience", PATIENCE)
        self.count = 0

    def alarm(self, metrics: Mapping[str, float]) -> Alarm | None:
        """Take in the metrics of a logged step, and return an alarm where the detector is on. A step without a number,
        such as one whose masks are all black, is passed over."""
        value = self._value(metrics)
        if math.isnan(value):
            return None if not self.count else self._alarm("is not known at this step", final=False)
        on = value > self._limit if self._detector.above else value < self._limit
        self.count = self.count + 1 if on else 0
        side = "above" if self._detector.above else "below"
        steps = "logged step" if self.count == 1 else "logged steps in a row"
        text = f"is {value:.4g}, {side} {self._limit:g}, at {self.count} {steps}"
        return self._alarm(text, final=self.count >= self._patience) if on else None

    def _alarm(self, text: str, *, final: bool) -> Alarm:
        return Alarm(reason=f"{self._name}: `{self._of}`, {self._detector.means}, {text}", final=final)

    def _value(self, metrics: Mapping[str, float]) -> float:
        """Return what is compared. Where the run has masks, the drift is that inside them."""

        def read(name: str) -> float:
            return metrics.get(f"{self._name}_{name}", math.nan)

        value = read(self._detector.over)
        if self._of == "drift" and math.isnan(value):
            value = read("drift_inside")
        if not self._detector.under:
            return value
        below = read(self._detector.under)
        return value / below if below > 0 else math.nan

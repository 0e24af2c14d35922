"""Compute running means of metrics, on which warnings are based, since one step says little."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Trend:
    """Computes the exponential running mean of every metric over logged steps, corrected for its start. Values that are
    not finite are ignored.

    Args:
        decay: in [0, 1); 0.9 averages over about ten logged steps.
    """

    def __init__(self, decay: float = 0.9):
        self.decay = decay
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def update(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one logged step."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._sums[name] = self.decay * self._sums.get(name, 0.0) + (1 - self.decay) * value
                self._counts[name] = self._counts.get(name, 0) + 1

    def means(self, least: int) -> dict[str, float]:
        """Return name -> mean, for the metrics that were logged at least ``least`` times."""
        return {
            name: self._sums[name] / (1 - self.decay**count) for name, count in self._counts.items() if count >= least
        }

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: float(value) for name, value in state["sums"].items()}
        self._counts = {name: int(value) for name, value in state["counts"].items()}

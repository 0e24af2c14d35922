"""Make curves of a bounded size from any number of logged steps, without hiding what was logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The most points of a curve; a longer one is divided into as many bins.
POINTS = 400
#: Fewer points than these are drawn as they are.
FEW = 60
#: Points on either side over which the line of others is a mean.
AROUND = 5


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Holds one curve.

    Args:
        x: steps, rising.
        y: the line: the mean of each bin; of a curve without bins the mean of the eleven points around, or the
            points.
        low, high: least and largest value of each bin; of a curve without bins the points twice.
        bins: logged steps in a bin on average; 0 for a curve without bins.
        count: number of logged values.
    """

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]
    bins: float
    count: int


def curve(steps: Sequence[float], values: Sequence[float], *, smooth: bool = True) -> Curve:
    """Return the curve of values logged at steps; both are of one length, and finite.

    Args:
        smooth: whether the line is a mean where there are enough points. What is set and not measured, such as
            a learning rate, is drawn as it is.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) > POINTS:
        edges = np.linspace(x[0], x[-1], POINTS + 1)
        starts = np.unique(np.searchsorted(x, edges[:-1], side="left"))
        counts = np.diff([*starts, len(x)])
        mean = np.add.reduceat(y, starts) / counts
        low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        middle = np.add.reduceat(x, starts) / counts
        return _made(middle, mean, low, high, bins=len(x) / len(starts), count=len(x))
    line = _running(y) if smooth and len(y) >= FEW else y
    return _made(x, line, y, y, bins=0.0, count=len(x))


def rounded(value: float) -> float:
    """Return a number with six digits, which no screen shows more of."""
    return float(f"{value:.6g}")


def _running(values: np.ndarray) -> np.ndarray:
    """Return the mean of each value and its neighbours on either side, as far as there are any; unlike a mean of the
    past it does not lag behind."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    begins, ends = np.maximum(places - AROUND, 0), np.minimum(places + AROUND + 1, len(values))
    return (sums[ends] - sums[begins]) / (ends - begins)


def _made(steps: np.ndarray, *columns: np.ndarray, bins: float, count: int) -> Curve:
    y, low, high = ([rounded(value) for value in column] for column in columns)
    return Curve(x=[round(float(step), 1) for step in steps], y=y, low=low, high=high, bins=rounded(bins), count=count)

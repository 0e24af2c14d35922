"""Timing of two or more callables against each other in one process: interleaved, medians, ratios."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call by ``clock``, the contenders taking turns so that a machine that slows down slows all
    alike."""
    for _ in range(warmup):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """Median of the pairwise ratios a/b, with their quartiles."""
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 4), "q1": round(low, 4), "q3": round(high, 4)}


def machine() -> dict[str, Any]:
    """Where the numbers were taken."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }

"""Whether a long run leaks: ``python -m benchmarks.soak`` trains the digits for 20,000 steps with validation images, a
held-out loss, checkpoints of which few are kept, a tracker and pages, and measures its process and its folder beside
it.

It writes ``docs/evidence/soak.json`` and ``docs/reliability.md``. ``--minutes`` ends the run earlier, with a signal;
the result says at which step.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.faults_runs import Started, document, prepare
from benchmarks.measure import machine
from benchmarks.reliability import write_page

ROOT = Path(__file__).resolve().parents[1]
STEPS = 20_000
TRAINING: Mapping[str, Any] = {
    "train_batch_size": 1,
    "checkpointing_steps": 250,
    "checkpoints_total_limit": 3,
    "log_every_steps": 10,
}
VALIDATION: Mapping[str, Any] = {"every_steps": 500, "holdout": 2}
#: Share of a run at whose end what is measured begins to count.
WARM = 0.2
BLOCKS, DRAWS = 20, 1000
#: Name -> what is measured of the folder: files by pattern.
FILES = {"metrics.jsonl": "metrics.jsonl", "events.jsonl": "events.jsonl", "trackers": "logs/**/*"}
FILES |= {"checkpoints": "checkpoint-*/*", "validation images": "validation/*", "the page": "report.html"}


def run_of(folder: Path, steps: int) -> dict[str, Any]:
    """Return the run."""
    found = document("sft", folder, **{**TRAINING, "max_train_steps": steps})
    found["adapter"] = {"type": "lora", "rank": 4, "alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    found["validation"] |= VALIDATION
    found["logging"] = {"trackers": ["tensorboard"]}
    return found


def measured(started: Started, every: float, minutes: float) -> list[dict[str, float]]:
    """Return what is measured every so many seconds until the run ends."""
    out, found = started.place / "out", []
    process = psutil.Process(started.processes[0].pid)
    until = time.monotonic() + 60 * minutes
    while started.processes[0].exitcode is None:
        try:
            row = {
                "step": float(_step(out / "metrics.jsonl")),
                "resident memory": float(process.memory_info().rss),
                "open descriptors": float(process.num_fds()),
                "threads": float(process.num_threads()),
            }
        except psutil.Error:
            break
        row |= {name: float(_size(out, pattern)) for name, pattern in FILES.items()}
        row["cache"] = float(_size(out.parent.parent / "cache", "**/*"))
        # A process that has just ended holds nothing.
        if row["step"] and row["resident memory"]:
            found.append(row)
        if time.monotonic() > until:
            started.send(signal.SIGTERM)
        started.processes[0].join(every)
    return found


def _step(file: Path) -> int:
    if not file.is_file():
        return 0
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        lines = stream.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n") and line.startswith(b"{")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def _size(folder: Path, pattern: str) -> int:
    size = 0
    for file in folder.glob(pattern):
        try:
            size += file.stat().st_size
        except FileNotFoundError:
            # Removed, or renamed, between the two calls.
            continue
    return size


def slope(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of the line through values by least squares, and its 95 % interval from blocks drawn anew."""
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    blocks = np.array_split(np.arange(len(x)), min(BLOCKS, len(x)))
    draw = np.random.default_rng(0)
    slopes = []
    for _ in range(DRAWS):
        rows = np.concatenate([blocks[i] for i in draw.integers(0, len(blocks), len(blocks))])
        if np.ptp(x[rows]) > 0:
            slopes.append(_line(x[rows], y[rows]))
    low, high = np.percentile(slopes, [2.5, 97.5])
    return _line(x, y), float(low), float(high)


def _line(x: np.ndarray, y: np.ndarray) -> float:
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred**2).sum())


def rows_of(found: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    """Return the table: each thing that was measured, at both ends and its slope."""
    last = found[-1]["step"]
    counted = [row for row in found if row["step"] >= WARM * last]
    steps = [row["step"] for row in counted]
    rows = []
    for name in (name for name in counted[0] if name != "step"):
        values = [row[name] for row in counted]
        show: Callable[[float], str] = _count if name in ("open descriptors", "threads") else _bytes
        middle, low, high = slope(steps, values)
        unit = "per 1,000 steps" if show is _count else "B a step"
        scale = 1000 if show is _count else 1
        told = f"{middle * scale:.3g} ({low * scale:.3g} to {high * scale:.3g}) {unit}"
        flat = low <= 0 <= high or max(values) == min(values)
        reading = "flat" if flat else "bounded" if name == "checkpoints" else "grows" if low > 0 else "falls"
        rows.append(
            {"what": name, "first": show(values[0]), "last": show(values[-1]), "slope": told, "reading": reading}
        )
    return rows


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB"


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="end after so long (default: %(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for soak.json (default: docs/evidence)")
    args = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        began = time.monotonic()
        started = Started(place / "soak", run_of(place, args.steps))
        found = measured(started, args.every, args.minutes)
        [end] = started.wait(time.monotonic() - started.began + 60)
    if end.code not in (0, 128 + signal.SIGTERM) or len(found) < 3:
        print(end.told[-3000:])
        return 1
    document = {
        "command": f"python -m benchmarks.soak{'' if args.steps == STEPS else f' --steps {args.steps}'}"
        + ("" if end.code == 0 else f" --minutes {args.minutes:g}"),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "steps": int(found[-1]["step"]),
        "seconds": round(time.monotonic() - began, 1),
        "every": args.every,
        **TRAINING,
        **VALIDATION,
        "rows": rows_of(found),
        "measured": found,
    }
    target = (args.output or ROOT / "docs" / "evidence") / "soak.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document) + "\n", encoding="utf-8")
    for row in document["rows"]:
        print("  ".join(row.values()))
    if args.output is None:
        write_page(ROOT / "docs" / "reliability.md", target.parent)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

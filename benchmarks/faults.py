"""Whether a run survives what happens to runs.

``python -m benchmarks.faults`` tries faults on short runs on the digits: kills, processes that are lost or hang, full
disks, damaged files, clocks, trackers. It prints a table, keeps every attempt in ``--output``, and writes
``docs/reliability.md`` where all rows are there. ``--quick`` tries a few of each and writes no page; ``--only kill``
those whose name begins so, and the rows of the others stay as they were.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults_cases import FAULTS, KILLS, QUICK, Attempt, Bench
from benchmarks.faults_runs import prepare
from benchmarks.measure import machine
from benchmarks.reliability import write_page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "evidence"
FILE = "faults.json"


def row(name: str, attempts: Sequence[Attempt], command: str, seconds: float, whole: bool) -> dict[str, Any]:
    """Return one row of the results; ``whole``: all attempts were made."""
    took = [each.seconds for each in attempts if each.seconds is not None]
    return {
        "name": name,
        "fault": FAULTS[name][0],
        "command": command,
        "whole": whole,
        "tried": len(attempts),
        "survived": sum(not each.problem for each in attempts),
        "outcomes": dict(Counter(each.outcome for each in attempts)),
        "median_seconds": round(statistics.median(took), 2) if took else None,
        "longest_seconds": round(max(took), 2) if took else None,
        "whole_seconds": round(seconds, 1),
        "failures": [{"what": each.what, "problem": each.problem} for each in attempts if each.problem][:20],
    }


def tried(
    bench: Bench, names: Iterable[str], command: str, file: Path | None, minutes: float = math.inf
) -> list[dict[str, Any]]:
    """Try these faults, each for so many minutes at most. Rows are kept as they come."""
    rows = []
    for name in names:
        began, attempts, whole = time.monotonic(), [], True
        for attempt in FAULTS[name][1](bench):
            attempts.append(attempt)
            if time.monotonic() - began > 60 * minutes:
                whole = False
                break
        rows.append(row(name, attempts, command, time.monotonic() - began, whole))
        found = rows[-1]
        print(f"{name}: {found['survived']} of {found['tried']} survived, in {found['whole_seconds']} s", flush=True)
        for failure in found["failures"]:
            print(f"  {failure['what']}: {failure['problem']}", flush=True)
        if file is not None:
            keep(file, found)
    return rows


def keep(file: Path, found: dict[str, Any]) -> None:
    """Put a row into the file, in the place of the one of its name."""
    document = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
    rows = {each["name"]: each for each in [*document["rows"], found]}
    ordered = [rows[name] for name in FAULTS if name in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": ordered}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few attempts of some faults; no page is written")
    only = f"faults whose name begins so, also several times: {', '.join(FAULTS)}"
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help=only)
    parser.add_argument("--kills", type=int, default=KILLS, help="of each method (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each fault at most")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"folder for {FILE} (default: docs/evidence)")
    args = parser.parse_args(given)
    names = [name for name in FAULTS if name.startswith(tuple(args.only) or "")]
    if args.quick and not args.only:
        names = [name for name in names if name in QUICK]
    if not names:
        parser.error(f"no fault begins with {args.only!r}")
    folder = args.output or (None if args.quick else RESULTS)
    file = None if folder is None else folder / FILE
    told = [*(f" --only '{name}'" for name in args.only), f" --kills {args.kills}" if args.kills != KILLS else ""]
    told.append(f" --minutes {args.minutes:g}" if math.isfinite(args.minutes) else "")
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        bench = Bench(Path(place), quick=args.quick, kills=2 if args.quick else args.kills)
        rows = tried(bench, names, f"python -m benchmarks.faults{''.join(told)}", file, args.minutes)
    if args.output is None and not args.quick:
        write_page(ROOT / "docs" / "reliability.md", RESULTS)
    return 0 if all(each["tried"] == each["survived"] for each in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m benchmarks performance`` measures every method's step and writes ``docs/performance.md`` and its JSON;
``check`` compares counts that depend on no machine with the committed ones; ``gpu`` measures networks of released
sizes, where a GPU is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ROOT / "benchmarks" / "counts.json"
RESULTS = ROOT / "docs" / "performance.json"


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)
    performance = commands.add_parser("performance", help="measure, and write docs/performance.md")
    performance.add_argument("--rounds", type=int, default=8, help="steps of each kind (default: %(default)s)")
    performance.add_argument("--only", metavar="TABLE", help="measure one table, and keep the rows of the others")
    performance.add_argument("--method", metavar="NAME", help="measure the rows of one method, and keep the others")
    performance.add_argument("--tiny", action="store_true", help="a network of no size, to try the command")
    performance.add_argument("--output", type=Path, default=RESULTS, help="the JSON file (default: %(default)s)")
    check = commands.add_parser("check", help="fail where a count is worse than the committed one")
    check.add_argument("--write", action="store_true", help="commit to the counts that the tree gives now")
    check.add_argument("--counts", type=Path, default=COUNTS, help="the committed counts (default: %(default)s)")
    gpu = commands.add_parser("gpu", help="measure networks of released sizes on a GPU")
    gpu.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder for JSON (default: %(default)s)")
    gpu.add_argument("--minutes", type=float, default=8.0, help="end after this long (default: %(default)s)")
    gpu.add_argument("--only", metavar="WORD", help="rows whose name holds a word")
    gpu.add_argument("--tiny", action="store_true", help="small networks on the CPU, to try the command")
    return whole


def main(given: list[str] | None = None) -> int:
    arguments = parser().parse_args(given)
    if arguments.command == "performance":
        from benchmarks.performance import measure

        return measure(arguments)
    if arguments.command == "check":
        from benchmarks.counts import check

        return check(arguments)
    from benchmarks.gpu import measure as on_gpu

    return on_gpu(arguments)


if __name__ == "__main__":
    sys.exit(main())

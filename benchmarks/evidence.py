"""Measured claims: ``python -m benchmarks.evidence CLAIM`` trains, measures, writes ``docs/evidence/CLAIM.*``."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from flowhooks.quiet import quiet_libraries

#: Name -> module with ``measure(output, docs, seeds, arms)``.
CLAIMS = {
    "adjoint_matching": "benchmarks.evidence_adjoint_matching",
    "anyflow": "benchmarks.evidence_anyflow",
    "dmd": "benchmarks.evidence_dmd",
    "edit": "benchmarks.evidence_edit",
    "flow_dpo": "benchmarks.evidence_flow_dpo",
    "flow_opd": "benchmarks.evidence_flow_opd",
    "preferences": "benchmarks.evidence_preferences",
    "rollouts": "benchmarks.evidence_rollouts",
    "self_flow": "benchmarks.evidence_self_flow",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("claim", choices=sorted(CLAIMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--arms", nargs="+", default=None, help="only these arms")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="where runs are kept and reused")
    parser.add_argument("--docs", type=Path, default=Path("docs/evidence"), help="where table and plot are written")
    args = parser.parse_args()
    module = import_module(CLAIMS[args.claim])
    with quiet_libraries():
        module.measure(args.output / args.claim, args.docs, args.seeds, args.arms)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

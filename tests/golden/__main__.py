"""Compare the golden results with what the tree gives now: `python -m tests.golden`; `--write` writes them anew."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from pathlib import Path

from tests.golden import digits, laws, record


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the results that the tree gives now")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLOWHOOKS_HOME"] = f"{folder}/home"
        digits.prepare(Path(folder))
        results = {
            "laws": {name: laws.result(name) for name in laws.CASES},
            "digits": {name: digits.result(name, Path(folder)) for name in digits.CASES},
        }
    found = []
    for name, result in results.items():
        if arguments.write:
            record.write(name, result)
        else:
            written = record.read(name)
            exact = written["machine"] == record.machine()
            found += [f"{name} {each}" for each in record.differences(written["results"], result, exact)]
    print("\n".join(found) or "equal")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""How long a user waits for ``--help`` and ``check``: whole processes, medians. ``python -m benchmarks.startup``
prints JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "help": ["--help"],
    "check": ["check", "examples/flow_dpo/digits.json"],
}


def seconds(arguments: list[str], rounds: int = 7) -> list[float]:
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "flowhooks", *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def main() -> None:
    found = {}
    for name, arguments in COMMANDS.items():
        taken = seconds(arguments)
        found[name] = {
            "median": round(statistics.median(taken), 3),
            "min": round(min(taken), 3),
            "max": round(max(taken), 3),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

"""Whether damaged input gives anything but our own errors.

``python -m benchmarks.fuzz --inputs 50000 --write docs/evidence/fuzz.json`` draws damaged run files, overrides, data
sets, prompts, tables, adapters, manifests, checkpoints, cache shards and images from a seed, gives each to what reads
it, and counts. What is raised must be one of our own errors; a command must end as documented; nothing may hang. Of
each fault the traceback is printed, with the input kept in ``--keep``.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    # Before anything that reads them: nothing is fetched, whatever an input names.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import argparse
import contextlib
import io
import json
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz_targets import TARGETS, Target, build

SECONDS = 20
#: Faults of one target of which the traceback is kept.
KEPT = 5


class Hangs(BaseException):
    """An input that is still being read after :data:`SECONDS`."""


@dataclass
class Count:
    """What became of one target's inputs.

    Args:
        read: nothing was wrong with them.
        refused: by one of our own errors.
        faults: number of the input -> traceback of anything else.
    """

    read: int = 0
    refused: int = 0
    faults: dict[int, str] = field(default_factory=dict)

    @property
    def tried(self) -> int:
        return self.read + self.refused + len(self.faults)


def fuzz(inputs: int, seed: int, folder: Path, keep: Path | None = None, only: str | None = None) -> dict[str, Count]:
    """Give ``inputs`` damaged inputs to the targets in turn.

    Args:
        folder: an empty one, for what is read.
        keep: where inputs that show a fault are copied to.
        only: the name of one target; None: all.
    """
    targets = {name: target for name, target in build(folder).items() if only in (None, name)}
    counts = {name: Count() for name in targets}
    for number in range(inputs):
        name = list(targets)[number % len(targets)]
        _try(targets[name], counts[name], number, seed, None if keep is None else keep / name)
    return counts


def _try(target: Target, count: Count, number: int, seed: int, keep: Path | None) -> None:
    # A generator of its own, so that one input can be made again without those before it.
    given = target.damage(random.Random(f"{seed} {number}"))
    try:
        with _limit(), _quiet():
            target.read(given)
        count.read += 1
    except Exception as error:
        if type(error).__module__.partition(".")[0] == "flowhooks":
            str(error).encode()
            count.refused += 1
            return
        _note(count, number, given, keep)
    except (Hangs, SystemExit):
        _note(count, number, given, keep)


def _note(count: Count, number: int, given: bytes, keep: Path | None) -> None:
    count.faults[number] = traceback.format_exc() if len(count.faults) < KEPT else ""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / str(number)).write_bytes(given)


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    def ended(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def report(counts: Mapping[str, Count], seed: int, seconds: float) -> dict[str, Any]:
    """The counts as JSON."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "tried": sum(count.tried for count in counts.values()),
        "survived": sum(count.read + count.refused for count in counts.values()),
        "targets": {
            name: {"tried": count.tried, "read": count.read, "refused": count.refused, "faults": len(count.faults)}
            for name, count in counts.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=5000, help="of all targets together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="where inputs that show a fault are kept")
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the result there")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Some levels down: a path that is damaged to `..` would have this machine's own files read.
        place = Path(folder, "a", "b", "c")
        place.mkdir(parents=True)
        counts = fuzz(args.inputs, args.seed, place, args.keep, args.target)
    found = report(counts, args.seed, time.monotonic() - began)
    text = json.dumps(found, indent=2)
    for name, count in counts.items():
        for number, told in count.faults.items():
            if told:
                print(f"{name}, input {number} of seed {args.seed}:\n{told}")
    print(text)
    if args.write is not None:
        args.write.write_text(text + "\n", encoding="utf-8")
    return 0 if found["tried"] == found["survived"] else 1


if __name__ == "__main__":
    raise SystemExit(main())

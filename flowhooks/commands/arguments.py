"""Declare arguments that several commands share."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

#: Largest number accepted, also for seeds; larger ones overflow somewhere in a library.
MOST = 2**32 - 1
#: Longest clip in seconds; validation and data sets have the same.
MOST_SECONDS = 3600


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add a run file and changes to it."""
    parser.add_argument("run", metavar="RUN.json", help="the run file")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change a value, as in training.learning_rate=1e-3 or hooks[0].beta=500; may be given again",
    )
    add_imports(parser)


def add_imports(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-imports", action="store_true", help="let it name your own code by import path, which training runs"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="precision of the weights (default: %(default)s)",
    )


def add_offload(parser: argparse.ArgumentParser, how: str = "") -> None:
    parser.add_argument(
        "--offload",
        action="store_true",
        help=f"keep each component off the accelerator until it is used{how}",
    )


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume", metavar="latest|FOLDER", type=_checkpoint, help="resume from a checkpoint of this run"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="print lines, no progress bars; the default without a terminal",
    )


def _checkpoint(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected `latest` or a checkpoint-<step> folder, found an empty string")
    return text


def finite_number(text: str) -> float:
    """Parse an argument that is a number, neither NaN nor infinite."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, found {text!r}")
    return number


def path(text: str) -> Path:
    """Parse an argument that is a file or folder. An empty one, perhaps a variable that is not set, would be the
    working directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a file or folder, found an empty string")
    return Path(text)


def card_size(text: str) -> int:
    """Type of an argument that is the memory of a card: ``24GiB``, or ``24`` for the same, in bytes; also in MiB and
    TiB. ``GB`` is taken for GiB, as makers of cards write it."""
    found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(?:([mgt])(?:i?b)?)?\s*", text, re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * 2 ** {"m": 20, "g": 30, "t": 40}[(found[2] or "g").lower()])
    if not size:
        raise argparse.ArgumentTypeError(f"expected the memory of a card, such as 24GiB, found {text!r}")
    return size


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return a parser of an argument that is an integer from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {number}")
        if number > most:
            raise argparse.ArgumentTypeError(f"expected at most {most:,}, found {number}")
        return number

    return parse


def whole_numbers(least: int, most: int = MOST) -> Callable[[str], list[int]]:
    """Return a parser of an argument that is integers from ``least`` to ``most``, with commas between them."""
    one = whole_number(least, most)

    def parse(text: str) -> list[int]:
        return [one(part.strip()) for part in text.split(",")]

    return parse


def add_duration(parser: argparse.ArgumentParser) -> None:
    """Add ``--duration``, the length of sound in seconds."""
    parser.add_argument(
        "--duration", type=_seconds, metavar="SECONDS", help="length of sound (default: the pipeline's own)"
    )


def _seconds(text: str) -> float:
    seconds = finite_number(text)
    if not 0 < seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected seconds above 0 and at most {MOST_SECONDS:,}, found {text}")
    return seconds

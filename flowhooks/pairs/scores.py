"""Read a CSV of scored images. Problems are reported by line; nothing outside the CSV's folder is read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath, PureWindowsPath

from flowhooks.data.assets import Asset, FileAsset
from flowhooks.data.findings import NAMED
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture, inspect_image
from flowhooks.data.sources.columns import CAPTION, IMAGE
from flowhooks.errors import DataError, Problem

#: Field -> possible names of its column; the first that exists is used.
NEEDED = {"image": IMAGE, "prompt": CAPTION, "score": ("score",)}
GROUP = "group"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Holds one line.

    Args:
        line: line number in the file, from 1.
        image: path as written, relative to the CSV.
        picture: path of the file.
        prompt: prompt without surrounding blanks.
        group: images of one group are compared; the prompt, if the file has no such column.
        score: finite; more is better.
    """

    line: int
    image: str
    picture: Picture
    prompt: str
    group: str
    score: float


def read_scores(file: Path) -> list[Scored]:
    """Return all lines of a CSV with the columns `image`, `prompt`, `score`, and optionally `group`.

    The first two may have the other usual names of such columns, such as `file_name` and `caption`.

    Raises DataError with every line that cannot be used (the first 20 in full).
    """
    rows = _rows(file)
    header = next(rows, (0, []))[1]
    columns = _columns(file, [name.strip() for name in header])
    scored: list[Scored] = []
    problems: list[Problem] = []
    for line, cells in rows:
        try:
            scored.append(_scored(file, line, cells, columns, len(header)))
        except ValueError as error:
            problems.append(at_line(file, line, str(error)))
    problems += _disagreements(file, scored)
    if not scored and not problems:
        problems.append(Problem("holds no line after its header", str(file)))
    raise_some(file, problems)
    return scored


def at_line(file: Path, line: int, message: str) -> Problem:
    return Problem(message, f"{file}:{line}")


def raise_some(file: Path, problems: list[Problem]) -> None:
    """Raise DataError if there is a problem, with the first 20 and the number of the others."""
    if not problems:
        return
    rest = len(problems) - NAMED
    more = [Problem(f"{rest:,} more lines cannot be used", str(file))] if rest > 0 else []
    raise DataError([*problems[:NAMED], *more])


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines that are not empty, each with the number of its first line."""
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        message = f"byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise DataError(at_line(file, line, message)) from None
    except OSError as error:
        raise DataError(Problem(f"cannot be read ({error.strerror})", str(file))) from None
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(at_line(file, line, f"is not CSV: {error}")) from None
        if cells:
            yield line, cells


def _columns(file: Path, header: list[str]) -> dict[str, int]:
    """Return field -> index of its cell."""
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(at_line(file, 1, f"names the column {twice!r} twice; rename one of them"))
    called = {what: next((name for name in names if name in header), None) for what, names in NEEDED.items()}
    missing = [f"{what!r} ({', '.join(NEEDED[what])})" for what, name in called.items() if name is None]
    if missing:
        found = ", ".join(map(repr, header)) or "nothing"
        raise DataError(at_line(file, 1, f"there is no column for {', '.join(missing)}; this line names {found}"))
    columns = {what: header.index(name) for what, name in called.items() if name is not None}
    return {**columns, **({GROUP: header.index(GROUP)} if GROUP in header else {})}


def _scored(file: Path, line: int, cells: list[str], columns: Mapping[str, int], width: int) -> Scored:
    if len(cells) != width:
        raise ValueError(f"has {len(cells)} cells, the first line {width}; put text with commas in double quotes")
    prompt = cells[columns["prompt"]].strip()
    if not prompt:
        raise ValueError("has an empty `prompt`")
    group = cells[columns[GROUP]].strip() if GROUP in columns else prompt
    if not group:
        raise ValueError(f"has an empty `{GROUP}`")
    image = cells[columns["image"]]
    score = _score(cells[columns["score"]])
    return Scored(line=line, image=image, picture=_picture(file.parent, image), prompt=prompt, group=group, score=score)


def _score(text: str) -> float:
    try:
        score = float(text) if "_" not in text else math.nan
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"has the `score` {text!r}; expected a finite number, as in 0.73")
    return score


def _picture(folder: Path, image: str) -> Picture:
    if not image:
        raise ValueError("has an empty `image`")
    if "\0" in image:
        raise ValueError(f"has the `image` {image!r}; a path has no NUL in it")
    if PurePosixPath(image).is_absolute() or PureWindowsPath(image).is_absolute():
        raise ValueError(f"has the absolute `image` {image!r}; write it relative to the CSV's folder")
    if ".." in image.replace("\\", "/").split("/"):
        raise ValueError(f"has the `image` {image!r}, which leaves the CSV's folder by '..'; put the file inside")
    path = folder / image
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"has the `image` {image!r}, a link to {path.resolve()}, outside the CSV's folder")
        return inspect_image(FileAsset(path))
    except BadImage as error:
        raise ValueError(f"has the `image` {image!r}, which {error}") from None
    except OSError as error:
        raise ValueError(f"has the `image` {image!r}, which cannot be read ({error.strerror})") from None


def _disagreements(file: Path, scored: list[Scored]) -> Iterator[Problem]:
    """Yield problems with lines of a group with another prompt, and with images that a group has twice."""
    prompts: dict[str, Scored] = {}
    seen: dict[tuple[str, Asset], Scored] = {}
    for each in scored:
        first = prompts.setdefault(each.group, each)
        if first.prompt != each.prompt:
            message = f"has the prompt {each.prompt!r}, but line {first.line} of its group {each.group!r} has another"
            yield at_line(file, each.line, f"{message}; images are compared under one prompt")
        twin = seen.setdefault((each.group, each.picture.asset), each)
        if twin is not each:
            yield at_line(file, each.line, f"has the `image` {each.image!r} again, as line {twin.line} of its group")

"""Read the prompts of rollouts, and choose the visited steps. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowhooks.reading import BadJson, Unreadable, parse, path_fault, read_text, user_path

PROMPT, IMAGES = "prompt", "images"
#: A path of an image, several of them, or either by pipeline argument; None for no image.
Given = str | Sequence[str] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Prompt:
    """Holds a prompt, the columns beside it, and its references.

    Args:
        images: pipeline argument -> image, or a list of several.
        given: the files of the references, as a row of a prompts file names them, their paths made absolute.
    """

    text: str
    record: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    given: Given = None


def by_argument(given: Given, argument: str) -> dict[str, list[str]]:
    """Return pipeline argument -> paths; ``argument`` is meant where none is named."""
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {argument: given}
    return {name: [paths] if isinstance(paths, str) else list(paths) for name, paths in named.items()}


def place_images(given: Given, base: Path) -> Given:
    """Return the same with paths relative to the folder ``base`` made absolute."""

    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return str(base / user_path(value))
        if isinstance(value, Mapping):
            return {name: placed(each) for name, each in value.items()}
        return value if value is None else [placed(each) for each in value]

    return placed(given)


def read_prompts(given: str | Sequence[Any]) -> list[Prompt]:
    """Read prompts from a ``.jsonl`` file of objects with the key ``prompt``, a text file with one prompt per line, or
    a list of prompts or such objects, written in place or in a ``.json`` file. An object may name references under
    ``images``, relative to the file, or to the working directory where it is written in place.

    Raises:
        ValueError: the file is missing or empty, or a line is no prompt; the message names file and line.
    """
    if not isinstance(given, str):
        found = [_prompt(entry, f"`prompts` entry {i + 1}", Path()) for i, entry in enumerate(given)]
        if not found:
            raise ValueError("`prompts` is an empty list; name a file, or write prompts into it")
        return found
    fault = path_fault(given)
    if fault is not None:
        raise ValueError(f"`prompts`: {given!r} {fault}")
    path = user_path(given)
    if path.suffix == ".json":
        return _listed(path)
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise ValueError(f"`prompts`: {path} cannot be read ({error.strerror}); name a text or jsonl file") from error
    except ValueError as error:
        raise ValueError(f"`prompts`: {path} {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            entry = _parsed(line, where) if path.suffix == ".jsonl" else line.strip()
            found.append(_prompt(entry, where, path.parent))
    if not found:
        raise ValueError(f"`prompts`: {path} holds no prompt; write one per line")
    return found


def _listed(path: Path) -> list[Prompt]:
    """Return the entries of a ``.json`` file, which holds one list."""
    try:
        found = parse(read_text(path))
    except OSError as error:
        raise ValueError(f"`prompts`: {path} cannot be read ({error.strerror}); name a text or jsonl file") from error
    except Unreadable as error:
        raise ValueError(f"`prompts`: {path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"`prompts`: {path} is no JSON: {error}") from error
    if not isinstance(found, list) or not found:
        raise ValueError(f"`prompts`: {path} must hold a list of prompts, or of objects with the key `prompt`")
    return [_prompt(entry, f"{path}, entry {i + 1}", path.parent) for i, entry in enumerate(found)]


def by_task(prompts: Sequence[Prompt], column: str | None) -> list[list[Prompt]]:
    """Return the prompts of each task, in the order in which tasks first appear. Raises ValueError for one without the
    column."""
    if column is None:
        return [list(prompts)]
    tasks: dict[Any, list[Prompt]] = {}
    for prompt in prompts:
        if column not in prompt.record:
            raise ValueError(f"the prompt {prompt.text!r} has no column {column!r}, which `task_column` names")
        tasks.setdefault(prompt.record[column], []).append(prompt)
    return list(tasks.values())


def _parsed(line: str, where: str) -> Any:
    try:
        return parse(line)
    except BadJson as error:
        column = f" at column {error.place[1]}" if error.place else ""
        raise ValueError(f"{where}: is no JSON{column}: {error}") from error


def _prompt(entry: Any, where: str, base: Path) -> Prompt:
    if isinstance(entry, str):
        return Prompt(entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get(PROMPT), str):
        raise ValueError(f"{where}: expected a prompt, or an object with the key {PROMPT!r}; found {_start(entry)}")
    record = {key: value for key, value in entry.items() if key not in (PROMPT, IMAGES)}
    if not _names_images(entry.get(IMAGES)):
        raise ValueError(
            f"{where}: {IMAGES!r} names the references of a prompt: expected a path, a list of paths, or an object of "
            f"either by pipeline argument; found {_start(entry[IMAGES])}"
        )
    return Prompt(entry[PROMPT], record, given=place_images(entry.get(IMAGES), base))


def _names_images(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(each, (str, list)) and _names_images(each) for each in value.values())
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and each for each in value)
    return value is None or (isinstance(value, str) and bool(value))


def _start(entry: Any) -> str:
    told = repr(entry)
    return told if len(told) <= 80 else f"{told[:77]}..."


def last_steps(starts: Sequence[float], count: int | None, sigma_max: float | None) -> list[int]:
    """Return indices of the steps at the end of a trajectory.

    Args:
        starts: sigma at which each step starts, falling.
        count: number of final steps; None for all.
        sigma_max: keep steps that start at or below it; None for all.
    """
    first = 0 if count is None else max(0, len(starts) - count)
    return [k for k in range(first, len(starts)) if sigma_max is None or starts[k] <= sigma_max]


def visited_places(steps: int, fraction: float, window: Sequence[int] | None) -> list[int]:
    """Return indices of the states that may be trained on."""
    first, last = window if window is not None else (0, steps)
    return list(range(first, min(last, max(first + 1, int(fraction * steps + 1e-9)))))

"""JSON as it stands in a file: strict reading, JSON paths, remarks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowhooks.config.suggest import hint
from flowhooks.errors import ConfigError, Problem

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_REMARK = re.compile(r"\$comment$|_comment")


def json_path(parts: Iterable[str | int], root: str = "$") -> str:
    """``$.hooks[1].norm_type`` from its parts."""
    steps = []
    for part in parts:
        if isinstance(part, int):
            steps.append(f"[{part}]")
        else:
            steps.append(f".{part}" if _NAME.fullmatch(part) else f"[{json.dumps(part)}]")
    return root + "".join(steps)


def read_json(path: Path) -> Any:
    """Contents of a JSON file.

    Raises:
        ConfigError: the file is missing, is no UTF-8 text or no JSON (with line and column), or writes a key twice.
    """
    file = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(Problem(f"there is no such file{_near(path)}", file=file)) from None
    except IsADirectoryError:
        raise ConfigError(Problem("this is a folder; expected a JSON file", file=file)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(f"byte {error.start} is not UTF-8; save the file as UTF-8", file=file)) from None
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read ({error.strerror})", file=file)) from None
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        what = "the file is empty" if not text.strip() else f"not valid JSON: {error.msg}"
        raise ConfigError(Problem(what, file=f"{file}:{error.lineno}:{error.colno}")) from None
    except RecursionError:
        raise ConfigError(Problem("nested too deeply to be read", file=file)) from None
    except ValueError as error:
        raise ConfigError(Problem(str(error), file=file)) from None


def parse(text: str) -> Any:
    """Strict JSON: no NaN, no number beyond a float, no key twice in one object.

    Raises:
        ValueError: of which ``json.JSONDecodeError`` has line and column.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_float)


def without_remarks(value: Any) -> Any:
    """A copy without the keys that are remarks: ``$comment``, and whatever starts with ``_comment``."""
    if isinstance(value, dict):
        return {key: without_remarks(item) for key, item in value.items() if not _REMARK.match(key)}
    if isinstance(value, list):
        return [without_remarks(item) for item in value]
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and not _REMARK.match(key):
            raise ValueError(f"the key {key!r} is written twice in one object; remove one of the two")
        found[key] = value
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number; write a finite one")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f", and no folder {str(folder)!r} either"
    return hint(path.name, (each.name for each in folder.iterdir() if each.suffix == ".json"))

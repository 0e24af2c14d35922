"""Read files that people and strangers write: only regular files of a bounded size, and strict, bounded JSON.

Free of torch, and below every room: configurations, manifests, headers, prompts, tables and metrics are all read here.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flowhooks.errors import ConfigError, Problem
from flowhooks.json_faults import Token, first, remedy

#: Most bytes of a JSON document, or of one line of JSON Lines.
MAX_DOCUMENT = 16 * 2**20
#: Most bytes of a text that is read as a whole, such as prompts or metrics.
MAX_TEXT = 256 * 2**20
#: Most lists and objects inside each other.
MAX_DEPTH = 100
#: Largest integer on either side of zero, by default: what 64 bits hold.
MAX_INTEGER = 2**63 - 1
#: Most bytes of one part of a path, on every file system in use.
MAX_NAME = 255
MAX_PATH = 4095
UTF16 = "is UTF-16; save the file as UTF-8"

REMARK = re.compile(r"\$comment$|_comment")
_VARIABLE = re.compile(r"\$\{\w+\}|(?<![^/])\$[A-Z_][A-Z_0-9]*\b|%[A-Z_]+%")
_BROKEN_DRIVE = re.compile(r"[A-Za-z]:[\t\n\r\f\b]")


class Unreadable(ValueError):
    """A file is not read, or its text cannot be; the message says why and what to do, without the file."""


class BadJson(ValueError):
    """A text is no JSON, or larger than allowed; the message says why and what to do.

    Args:
        place: (line, column) if known, both from 1.
        path: JSON path of the key or value, if known.
        syntax: whether the text is no JSON at all.
    """

    def __init__(
        self,
        message: str,
        *,
        place: tuple[int, int] | None = None,
        path: str | None = None,
        syntax: bool = False,
        wanted: Callable[[Token], bool] | None = None,
    ):
        super().__init__(message)
        self.place, self.path, self.syntax = place, path, syntax
        # Finds the key or value in the text, for a caller who has the text.
        self._wanted = wanted

    def placed(self, text: str) -> BadJson:
        """Return this error with the path and the place of its key or value in ``text``."""
        found = first(text, self._wanted) if self._wanted is not None else None
        return self if found is None else BadJson(str(self), path=found[0], place=found[1], syntax=self.syntax)


def path_fault(text: str) -> str | None:
    """Say what keeps a text of the user's from being a path; None if nothing does. Whether there is such a file is not
    checked."""
    if "\0" in text or not _is_text(text):
        return "holds a zero byte or half of a surrogate pair, which no path can; correct it"
    if _BROKEN_DRIVE.match(text):
        return (
            "holds a line break or a tab where a folder begins; write a Windows path with /, or with two \\ each time"
        )
    if (found := _VARIABLE.search(text)) is not None:
        return f"{found[0]!r} is not expanded; write the path itself, or give it with --set, where the shell expands it"
    if "://" in text:
        return None
    if len(os.fsencode(text)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in text.split("/")):
        return f"is too long for a path, which takes {MAX_NAME} bytes for each name; shorten it"
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            return f"there is no home folder {text.split('/')[0]!r}; write the path itself"
    return None


def user_path(given: str | Path) -> Path:
    """Return a path as the user gave it, with ``~`` expanded. Raises ConfigError for a text that cannot be a path."""
    text = str(given)
    # A name from a listing may hold bytes that are not UTF-8, and `$` is a letter like any other.
    if "\0" in text:
        raise ConfigError(Problem("holds a zero byte, which no path can; correct it", text))
    if len(os.fsencode(text)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in text.split("/")):
        raise ConfigError(
            Problem(f"is too long for a path, which takes {MAX_NAME} bytes for each name; shorten it", _start(text))
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            Problem(f"there is no home folder {text.split('/')[0]!r}; write the path itself", text)
        ) from None


def refuse_special(path: Path, most: int | None = None) -> None:
    """Raise Unreadable for a file that is not regular, such as a pipe or a device, which might never end, and for one
    of more than ``most`` bytes; OSError if there is none."""
    about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(about.st_mode):
        raise Unreadable("is a pipe or a device, not a regular file; name a file")
    if most is not None and about.st_size > most:
        raise Unreadable(f"has {about.st_size:,} bytes; more than {most:,} are not read, is it the right file?")


def read_bytes(path: Path, most: int = MAX_DOCUMENT) -> bytes:
    """Return the bytes of a regular file. Raises Unreadable and OSError like :func:`refuse_special`."""
    refuse_special(path, most)
    # A file that has become a pipe since then is opened without waiting for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Unreadable(f"has more than {most:,} bytes, which are not read; is it the right file?")
    return data


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """Return the text of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        Unreadable: the file is too large, not regular, or in another encoding.
        OSError: it does not exist, or cannot be opened.
    """
    return text_of(read_bytes(path, most))


def is_utf16(data: bytes) -> bool:
    """Return whether a text, or its beginning, is UTF-16, by its byte order mark or a first character of Latin
    script."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(data) > 1 and (data[0] == 0) != (data[1] == 0))


def text_of(data: bytes) -> str:
    """Decode UTF-8, without a byte order mark. Raises Unreadable, which names another encoding if it is known."""
    if is_utf16(data):
        raise Unreadable(UTF16)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise Unreadable(
            f"byte {error.start} is not UTF-8 (line {line}, column {column}); save the file as UTF-8"
        ) from None


def parse(
    text: str | bytes,
    *,
    most: int = MAX_DOCUMENT,
    largest: float = MAX_INTEGER,
    finite: bool = True,
    texts: bool = True,
) -> Any:
    """Parse strict JSON: no NaN, no number too large, no key twice in one object, no string that is no text, and
    nothing deeper than :data:`MAX_DEPTH`.

    Args:
        most: largest number of characters.
        largest: integers are at most this, on either side of zero.
        texts: whether strings with a zero byte or half of a surrogate pair are refused; else the caller checks them
            cell by cell.
        finite: whether NaN and infinities are refused; else they are read in the spelling of Python's writer.

    Raises:
        BadJson: the text breaks one of these rules.
    """
    if isinstance(text, bytes):
        try:
            text = text_of(text)
        except Unreadable as error:
            raise BadJson(str(error)) from None
    if len(text) > most:
        raise BadJson(f"has {len(text):,} characters; more than {most:,} are not read")

    def integer(digits: str) -> int:
        # Python itself refuses to turn thousands of digits into a number.
        if len(digits) > 400 or abs(int(digits)) > largest:
            raise BadJson(f"{_start(digits)} is too large for a number", wanted=lambda each: each.text == digits)
        return int(digits)

    try:
        found = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_constant if finite else None,
            parse_float=_float,
            parse_int=integer,
        )
    except json.JSONDecodeError as error:
        raise BadJson(remedy(text, error), place=(error.lineno, error.colno), syntax=True) from None
    except RecursionError:
        raise BadJson(_DEEP) from None
    except BadJson as error:
        raise error.placed(text) from None
    try:
        check_sound(found, texts=texts)
    except BadJson as error:
        raise error.placed(text) from None
    return found


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        ConfigError: the file is missing, no regular one, too large, no UTF-8 text or no JSON (with line and column, and
            what to do), nested too deeply, or writes a key twice.
    """
    file = str(path)
    try:
        text = read_text(path, MAX_DOCUMENT)
    except IsADirectoryError:
        raise ConfigError(Problem("this is a folder; expected a JSON file", file)) from None
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read ({error.strerror or error})", file)) from None
    except ValueError as error:
        message = str(error) if isinstance(error, Unreadable) else "is no path: it holds a zero byte"
        raise ConfigError(Problem(message, file)) from None
    try:
        return parse(text)
    except BadJson as error:
        place = f"{file}:{error.place[0]}:{error.place[1]}" if error.place else file
        what = str(error) if not error.syntax else f"not valid JSON: {error}"
        raise ConfigError(Problem(what if text.strip() else "the file is empty", place, error.path)) from None


def check_sound(value: Any, *, texts: bool = True) -> None:
    """Raise BadJson for a tree that is too deep, or, with ``texts``, that holds a string that is no text."""
    level, depth = [value], 0
    while level:
        if depth >= MAX_DEPTH and any(isinstance(item, (dict, list)) for item in level):
            raise BadJson(_DEEP)
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif texts and isinstance(item, str) and ("\0" in item or not _is_text(item)):
                raise BadJson(
                    f"the string {_start(item)!r} holds a zero byte or half of a surrogate pair; write it as text",
                    wanted=partial(_spells, item),
                )
        level, depth = below, depth + 1


_DEEP = f"nested too deeply to be read; at most {MAX_DEPTH} lists and objects may be inside each other"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and not REMARK.match(key):
            raise BadJson(
                f"the key {_start(key)!r} is written twice in one object; remove one of the two",
                wanted=partial(_doubles, key),
            )
        found[key] = value
    return found


def _constant(name: str) -> float:
    raise BadJson(f"{name} is not a JSON number; write a finite one", wanted=lambda each: each.text == name)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadJson(f"{_start(text)} is too large for a number", wanted=lambda each: each.text == text)
    return number


def _doubles(key: str, token: Token) -> bool:
    return token.doubled and _spells(key, token)


def _spells(value: str, token: Token) -> bool:
    return token.text.startswith('"') and json.loads(token.text) == value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _start(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Say what is wrong with a JSON text, where, and what to do about it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_YAML = re.compile(r"\s*(---\s*$|(#.*\n\s*)*[\w-]+:(\s|$))", re.MULTILINE)
_WORDS = {"True": "true", "False": "false", "None": "null", "undefined": "null"}
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+', re.DOTALL)
_COLON = re.compile(r"\s*:")
_WORD = re.compile(r"[A-Za-z_][\w.-]*")


def remedy(text: str, error: json.JSONDecodeError) -> str:
    """Return the fault in words, with the remedy; the parser's own words if nothing better is known."""
    at, before = text[error.pos :].lstrip(), text[: error.pos].rstrip()
    return _of_the_file(text) or _at_the_place(at, before, error.msg) or f"{error.msg[:1].lower()}{error.msg[1:]}"


def _of_the_file(text: str) -> str | None:
    if not text.strip():
        return "there is nothing in it; write an object, {}"
    if "\0" in text[:64]:
        return "it holds zero bytes; save the file as UTF-8"
    if _YAML.match(text):
        return "this is YAML; write the same as JSON, with braces, and quotes around every key"
    return None


def _at_the_place(at: str, before: str, message: str) -> str | None:
    if message.startswith(("Invalid \\escape", "Invalid \\uXXXX")):
        return "a backslash begins an escape; write two of them, or / as in C:/images"
    if message.startswith("Invalid control character"):
        return "a line break or a tab inside a string; write \\n or \\t, or close the quote"
    if message.startswith("Unterminated string"):
        return "this quote is never closed"
    if message.startswith("Illegal trailing comma") or (before.endswith(",") and at[:1] in ("}", "]")):
        return "there is a comma before the closing bracket; remove the comma"
    if at.startswith(("//", "/*", "#")):
        return 'JSON has no comments; write a remark as a key, "_comment": "..."'
    if at.startswith("'"):
        return "single quotes; keys and strings need double quotes"
    if at.startswith(("“", "”", "„", "‘", "’")):
        return 'curly quotes; keys and strings need straight double quotes, "'
    if at.startswith("$"):
        return "variables are not expanded in a file; write the value itself, or give it with --set"
    if not at:
        return "the text ends too early; a bracket is not closed, or the file was cut short"
    if message.startswith("Extra data"):
        return "something follows after the end; one file holds one object or list"
    return _of_a_word(at, message)


def _of_a_word(at: str, message: str) -> str | None:
    word = _WORD.match(at)
    if word is not None and word[0] in _WORDS and not message.startswith("Expecting property name"):
        return f"{word[0]} is written {_WORDS[word[0]]} in JSON"
    if message.startswith("Expecting property name"):
        return "a key in double quotes is expected here"
    if message.startswith("Expecting ',' delimiter"):
        return "a comma is missing before this, or a quote or bracket above is not closed"
    if message.startswith("Expecting ':' delimiter"):
        return "a colon is missing after the key"
    if word is not None:
        return f"{word[0][:40]!r} has no quotes; put it in double quotes"
    return None


@dataclass(frozen=True, kw_only=True)
class Token:
    """Holds a key or a value of a JSON text.

    Args:
        parts: keys and indices that lead to it.
        offset: position of its first character in the text.
        text: text as it is written, a string with its quotes.
        key: whether it is a key.
        doubled: whether it is a key that its object has already.
    """

    parts: tuple[str | int, ...]
    offset: int
    text: str
    key: bool = False
    doubled: bool = False


def first(text: str, wanted: Callable[[Token], bool]) -> tuple[str, tuple[int, int]] | None:
    """Return JSON path, line and column (from 1) of the first key or value that is ``wanted``; None if there is
    none."""
    for token in _tokens(text):
        if wanted(token):
            begins = text.rfind("\n", 0, token.offset) + 1
            return json_path(token.parts), (text.count("\n", 0, token.offset) + 1, token.offset - begins + 1)
    return None


def _tokens(text: str) -> Iterator[Token]:
    """Yield keys, strings, numbers and words of a text whose brackets and quotes match up to where it is read."""
    path: list[str | int] = []
    keys: list[set[str] | None] = []
    for found in _TOKEN.finditer(text):
        word = found[0]
        if word in "{[":
            keys.append(set() if word == "{" else None)
            path.append("" if word == "{" else 0)
        elif word in "}]":
            if keys:
                keys.pop()
                path.pop()
        elif word == ",":
            if keys and keys[-1] is None:
                path[-1] = int(path[-1]) + 1
        elif word != ":":
            known = keys[-1] if keys else None
            is_key = known is not None and _COLON.match(text, found.end()) is not None
            if known is not None and is_key:
                name = str(json.JSONDecoder(strict=False).decode(word))
                path[-1] = name
                yield Token(parts=tuple(path), offset=found.start(), text=word, key=True, doubled=name in known)
                known.add(name)
            else:
                yield Token(parts=tuple(path), offset=found.start(), text=word)


def json_path(parts: Iterable[str | int], root: str = "$") -> str:
    """Return a path such as ``$.hooks[1].norm_type`` from its parts."""
    steps = []
    for part in parts:
        if isinstance(part, int):
            steps.append(f"[{part}]")
        else:
            part = part if len(part) <= 80 else f"{part[:77]}..."
            steps.append(f".{part}" if _NAME.fullmatch(part) else f"[{json.dumps(part)}]")
    return root + "".join(steps)

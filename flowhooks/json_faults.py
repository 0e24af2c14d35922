"""What to do about a text that is no JSON, told by what stands where the reading ended."""

from __future__ import annotations

import json
import re

_YAML = re.compile(r"\s*(---\s*$|(#.*\n\s*)*[\w-]+:(\s|$))", re.MULTILINE)
_WORDS = {"True": "true", "False": "false", "None": "null", "undefined": "null"}
_WORD = re.compile(r"[A-Za-z_][\w.-]*")


def remedy(text: str, error: json.JSONDecodeError) -> str:
    """The fault in words, with the remedy; the parser's own words where nothing better is known."""
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
        return "a comma stands before the closing bracket; remove the comma"
    if at.startswith(("//", "/*", "#")):
        return 'JSON has no comments; write a remark as a key, "_comment": "..."'
    if at.startswith("'"):
        return "single quotes; keys and strings stand in double quotes"
    if at.startswith(("“", "”", "„", "‘", "’")):
        return 'curly quotes; keys and strings stand in straight double quotes, "'
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
        return f"{word[0][:40]!r} stands without quotes; put it in double quotes"
    return None

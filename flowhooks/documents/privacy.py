"""Remove a machine's folders from everything that is published."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_LOCAL = re.compile(r"(~|file://|[A-Za-z]:[\\/]|[\\/])")
_WORD = r"[^\s\"'`<>|*?,;()\[\]/\\~:]+"
_REST = r"[^\s\"'`<>|*?,;()\[\]]*"
_ENDING = r"(?:(?<=\.\w\w)|(?<=\.\w\w\w)|(?<=\.\w\w\w\w))(?!\w)"
#: An absolute path within a text. A path with `/` needs two parts, as a prompt may say `and /or`. After a
#: space it continues if it has no file suffix yet, a few words lead to the next `/`, and it ends in a suffix.
_WITHIN = re.compile(
    r"(?<![\w./\\:~<-])(file://)?(~[\w.-]*/|/(?=[\w.@+-]+/)|[A-Za-z]:[\\/]|\\\\[\w.-]+\\)"
    rf"{_REST}(?:(?:(?!{_ENDING})(?: {_WORD}){{1,3}}[/\\]{_REST})+(?:(?!{_ENDING})(?: {_WORD}){{1,3}})?{_ENDING})?"
)
#: The libraries' keys for the origin of a part of a pipeline. Everything else in its files belongs to the model,
#: such as the words of a tokenizer, some of which look like paths.
_ORIGIN = re.compile(r"(_path|_file|_dir)$")


def is_local_path(text: str) -> bool:
    """Return whether a string is an absolute path of some machine."""
    return _LOCAL.match(text) is not None


def last_part(text: str) -> str:
    """Return the name of the folder or file at the end of a path, of either kind."""
    return PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name


def without_local_paths(document: Any) -> Any:
    """Return a copy of a JSON value in which every absolute path is cut to its last part, in keys and within texts
    too."""
    if isinstance(document, dict):
        return {without_local_paths(key): without_local_paths(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [without_local_paths(value) for value in document]
    if isinstance(document, str):
        return last_part(document) if is_local_path(document) else _WITHIN.sub(_shortened, document)
    return document


def text_without_local_paths(text: str) -> str:
    """Return a text in which every absolute path is cut to its last part."""
    return _WITHIN.sub(_shortened, text)


def without_origins(document: Any) -> Any:
    """Return a copy of the configuration of a part of a pipeline, in which the absolute path of its origin is cut to
    its last part."""
    if isinstance(document, dict):
        return {
            key: without_local_paths(value) if _ORIGIN.search(key) else without_origins(value)
            for key, value in document.items()
        }
    if isinstance(document, list):
        return [without_origins(value) for value in document]
    return document


def _shortened(found: re.Match[str]) -> str:
    # A sentence ends with a dot, and so may a name; the dot stays with the sentence.
    path = found[0].rstrip(".:!/\\")
    return last_part(path) + found[0][len(path) :].strip("/\\")

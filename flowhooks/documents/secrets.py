"""No run file holds a secret: it would end up in logs, checkpoints and published files."""

from __future__ import annotations

import re
from typing import Any

from flowhooks.documents.document import json_path
from flowhooks.errors import Problem

_KEY = re.compile(
    r"(^|[_\-.])(token|api_?key|password|passwd|secret|credentials?)$|^(hf|hub|wandb)(token|apikey)$", re.I
)
_VALUE = re.compile(
    r"\b(hf_(?=[A-Za-z0-9]*[0-9A-Z])[A-Za-z0-9]{8,}|hf_[A-Za-z]{24,}|api_org_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|sk-[A-Za-z0-9_-]{20,})"
)
_REMEDY = (
    "take it out and use `hf auth login`, or an environment variable such as HF_TOKEN; a run file holds no secrets"
)


def redact(text: str) -> str:
    """``text`` with everything that looks like a token replaced."""
    return _VALUE.sub("***", text)


def strip_secrets(value: Any, file: str, root: str = "$") -> tuple[Any, list[Problem]]:
    """A copy of a document without its secrets, and a problem for each. The secrets themselves are never repeated."""
    problems: list[Problem] = []

    def clean(item: Any, at: tuple[str | int, ...]) -> Any:
        if isinstance(item, dict):
            kept = {}
            for key, inner in item.items():
                if _VALUE.search(key) or _KEY.search(key):
                    problems.append(
                        Problem(f"this key holds a secret; {_REMEDY}", file, json_path((*at, redact(key)), root))
                    )
                else:
                    kept[key] = clean(inner, (*at, key))
            return kept
        if isinstance(item, list):
            return [clean(inner, (*at, i)) for i, inner in enumerate(item)]
        if isinstance(item, str) and _VALUE.search(item):
            problems.append(Problem(f"this value looks like a token; {_REMEDY}", file, json_path(at, root)))
            return redact(item)
        return item

    return clean(value, ()), problems

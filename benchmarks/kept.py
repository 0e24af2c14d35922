"""Results in a file of JSON lines, one for each run, so that an interruption loses none and a rerun goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def kept(file: Path, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result that `file` has under `key`; where it has none, measure it, and add it and print it."""
    wanted = json.dumps(key, sort_keys=True)
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        found = json.loads(line)
        if json.dumps(found["key"], sort_keys=True) == wanted:
            return dict(found["result"])
    result = dict(measure())
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"key": key, "result": result}) + "\n")
    print(json.dumps(result), flush=True)
    return result

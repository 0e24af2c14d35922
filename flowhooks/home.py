"""Where the embedded digits live on disk, and how a folder gets there whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def home() -> Path:
    """The folder for everything flowhooks builds for itself: `$FLOWHOOKS_HOME`, else `~/.cache/flowhooks`."""
    chosen = os.environ.get("FLOWHOOKS_HOME")
    return Path(chosen).expanduser() if chosen else Path("~/.cache/flowhooks").expanduser()


def place(name: str, recipe: dict[str, Any]) -> Path:
    """`home()/digits/<name>-<digest of the recipe>`: a changed recipe gets a new folder and never meets an old one."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return home() / "digits" / f"{name}-{digest}"


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends without an exception.

    A killed writer leaves only a hidden sibling, so a folder that exists under its own name is complete. Of two writers
    of one folder the first to finish wins; both make the same content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        yield aside
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)

"""Somebody's folder: a pipeline, pairs with masks, a run file. What is in it is theirs, and stays as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowhooks.cli import main
from tests.train.runs import document


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


class User:
    """A folder ``mine`` of the user's, and beside it the places a run writes to.

    Args:
        folder: holds ``mine/model`` and ``mine/data``.
        read: gives what was printed since it was last asked, as (out, err).
    """

    def __init__(self, folder: Path, read: Callable[[], tuple[str, str]] | None = None):
        self.folder = folder
        self.mine = folder / "mine"
        self.data = self.mine / "data"
        self.run = self.mine / "run.json"
        self.out = folder / "out"
        self.cache = folder / "cache"
        self._read = read
        self.write()

    def write(self, **sections: Any) -> None:
        """Write the run file; ``sections`` are merged into it."""
        steps = {"max_train_steps": 4, "checkpointing_steps": 2, "log_every_steps": 1}
        sections["training"] = {**steps, **sections.get("training", {})}
        run = document(self.mine / "model", self.data / "data.json", self.out, **sections)
        self.run.write_text(json.dumps(run, indent=1), encoding="utf-8")

    def edit_blocks(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        """Change the data set file."""
        file = self.data / "data.json"
        blocks = json.loads(file.read_text(encoding="utf-8"))
        change(blocks)
        file.write_text(json.dumps(blocks), encoding="utf-8")

    def train(self, *more: str) -> Outcome:
        return self.command("train", str(self.run), "--no-progress", *more)

    def command(self, *argv: str) -> Outcome:
        """Run a command in this process."""
        assert self._read is not None
        self._read()
        code = main(argv)
        out, err = self._read()
        return Outcome(code=code, out=out, err=err)

    def state(self, folder: Path | None = None) -> dict[str, str]:
        """Relative path -> sha256 of every file, and the folders, of ``mine`` or of another folder."""
        folder = folder or self.mine
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in sorted(folder.rglob("*"))
        }


def assert_one_error(found: Outcome, code: int, words: Sequence[str]) -> None:
    """One error, on one line of its own, with these words in it, and no traceback."""
    assert found.code == code, found
    assert "Traceback" not in found.out + found.err
    lines = [line for line in found.err.splitlines() if line.strip()]
    told = [line for line in lines if all(word in line for word in words)]
    assert len(told) == 1, f"{words} are not on one line of:\n{found.err}"
    assert "unexpected" not in found.err


def checkpoint_states(folder: Path) -> Mapping[str, Any]:
    """Every state of a checkpoint, by the stem of its file."""
    from flowhooks.adapters.names import ADAPTER_FILES
    from flowhooks.manifest import MODULES
    from flowhooks.train.checkpoint import read

    # Beside the states lies what can be sampled, in files of other formats.
    own = {*ADAPTER_FILES, MODULES}
    return {f.stem: read(folder, f.stem) for f in sorted(folder.glob("*.safetensors")) if f.name not in own}

"""A cache that lacks nothing is only read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flowhooks.data import build_cache
from tests.data.folders import TRIPLE, audit_in, write_image, write_pairs

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
LOCKS = {"fcntl.flock", "fcntl.lockf"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Python's own record of what is asked of the system: also root, who may write anywhere, is seen trying."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[tuple[str, Any]] = []
        sys.addaudithook(self._told)

    def _told(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        here = bool(args) and isinstance(args[0], (str, Path)) and Path(args[0]).is_relative_to(self.folder)
        opened = event == "open" and here and bool(args[2] & WRITING)
        if opened or event in LOCKS or (event in CHANGES and here):
            self.seen.append((event, args))

    @contextmanager
    def on(self, folder: Path) -> Iterator[list[tuple[str, Any]]]:
        self.folder, self.seen = folder, []
        try:
            yield self.seen
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def test_a_whole_cache_is_used_without_a_write_or_a_lock(tmp_path, tmp_path_factory, model, watch):
    write_pairs(tmp_path, ("a", "b"))
    cache = tmp_path_factory.mktemp("cache")
    with watch.on(cache) as seen:
        made = build_cache(audit_in(tmp_path, TRIPLE), model, cache, progress=False)
    assert {"open", "fcntl.flock", "os.rename"} <= {event for event, _ in seen}
    # Somebody killed leaves this behind, which the next to write clears away.
    (cache / "partial").mkdir(exist_ok=True)
    (cache / "partial/latents.killed").write_bytes(b"")
    with watch.on(cache) as seen:
        again = build_cache(audit_in(tmp_path, TRIPLE), model, cache, progress=False)
        items = [again[i] for i in range(len(again))]
    assert seen == []
    assert all(torch.equal(item["clean"], made[i]["clean"]) for i, item in enumerate(items))
    write_image(tmp_path / "win/a.png", seed=50)
    with watch.on(cache) as seen:
        build_cache(audit_in(tmp_path, TRIPLE), model, cache, progress=False)
    assert seen and not (cache / "partial/latents.killed").exists()

"""Where the bytes of one picture are: a file, a row of a table, a member of an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Asset(Protocol):
    """Small, hashable, and the same object's worth in every process, so that data loader workers can read too."""

    @property
    def name(self) -> str:
        """For people: enough to find it."""
        ...

    def read(self) -> bytes:
        """Its content. Raises OSError if it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class FileAsset:
    """A file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        return self.path.read_bytes()

"""Describe where the bytes of one image or caption are: a file, a row of a table, a member of an archive."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Four times the size of the largest accepted image as badly compressed 16-bit RGBA.
MAX_BYTES = 2**30


class Asset(Protocol):
    """Handles the bytes of a file; small and hashable, so that it can be passed to workers of a data loader."""

    @property
    def name(self) -> str:
        """Name the asset in messages, so that people find it."""
        ...

    def read(self) -> bytes:
        """Return the content. Raises OSError if it cannot be read, or is larger than MAX_BYTES."""
        ...


class Archive(Asset, Protocol):
    """Handles a file of which a part can be read without the rest."""

    def read_part(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, fewer at the end of the file. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class FileAsset:
    """Handles a file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        about = self.path.stat()
        # A pipe or a device would never end.
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        refuse_large(about.st_size)
        return self.path.read_bytes()

    def read_part(self, start: int, size: int) -> bytes:
        refuse_large(size)
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True, slots=True)
class RemoteAsset:
    """Handles a file behind a URL of a file system that fsspec knows, such as `s3://bucket/a.png`."""

    url: str

    @property
    def name(self) -> str:
        return self.url

    def read(self) -> bytes:
        return self._fetch(None, None)

    def read_part(self, start: int, size: int) -> bytes:
        refuse_large(size)
        return self._fetch(start, start + size)

    def _fetch(self, start: int | None, end: int | None) -> bytes:
        from fsspec.core import url_to_fs

        try:
            files, path = url_to_fs(self.url)
            if start is None:
                refuse_large(files.size(path) or 0)
            return files.cat_file(path, start=start, end=end)
        except OSError:
            raise
        except Exception as error:  # every file system has exceptions of its own
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAsset:
    """Handles one file inside an archive that is not compressed.

    Args:
        archive: the archive file.
        member: name of the file in the archive.
        offset: bytes before its content.
        size: bytes of its content.
    """

    archive: Archive
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.archive.name}: {self.member}"

    def read(self) -> bytes:
        data = self.archive.read_part(self.offset, self.size)
        if len(data) < self.size:
            raise OSError(errno.EIO, f"the archive ends after {len(data):,} of its {self.size:,} bytes")
        return data


def refuse_large(size: int) -> None:
    """Raise OSError for more bytes than any image needs."""
    if size > MAX_BYTES:
        raise OSError(errno.EOVERFLOW, f"has {size:,} bytes; more than {MAX_BYTES:,} is refused")


def why(error: OSError) -> str:
    """Return an OSError in a few words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return error.strerror or type(error).__name__

"""Open a folder that a data set is read from: on this machine, or behind a URL of a file system that fsspec knows."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from flowhooks.data.assets import Archive, FileAsset, RemoteAsset
from flowhooks.data.files import Tree, is_text, realpath, walk
from flowhooks.errors import DataError
from flowhooks.reading import user_path

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*(://|::)")
_GLOB = re.compile(r"[*?\[]")


class Refused(Exception):
    """A path is not followed, or a place cannot be read; the message says why."""


class Place(Protocol):
    """Reads a folder. Paths in it are relative, with `/` between folders."""

    @property
    def name(self) -> str:
        """Return its full path or URL, for messages."""
        ...

    def tree(self) -> Tree:
        """Return every file below it. Raises OSError or Refused."""
        ...

    def matching(self, pattern: str) -> list[str]:
        """Return files directly in it that match a shell pattern, sorted. Raises OSError or Refused."""
        ...

    def asset(self, path: str) -> Archive:
        """Return the file at `path`, which need not exist. Raises Refused for a path that leads out of the folder."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, with seeking. Raises OSError or Refused."""
        ...


@dataclass(frozen=True)
class LocalPlace:
    """Reads a folder on this machine."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def tree(self) -> Tree:
        return walk(self.root)

    def matching(self, pattern: str) -> list[str]:
        return sorted(path.name for path in self.root.glob(pattern) if path.is_file())

    def asset(self, path: str) -> FileAsset:
        file = self.root / safe_relative_path(path)
        target = realpath(file)
        if not target.is_relative_to(realpath(self.root)):
            raise Refused(f"is a symbolic link to {target}, outside the data set folder")
        return FileAsset(file)

    def open(self, path: str) -> BinaryIO:
        file = self.asset(path).path
        if not file.is_file():
            raise FileNotFoundError(2, "there is no such file", str(file))
        return file.open("rb")


@dataclass(frozen=True)
class RemotePlace:
    """Reads a folder behind a URL."""

    url: str

    @property
    def name(self) -> str:
        return self.url

    def tree(self) -> Tree:
        files, root = self._files()
        found = {}
        for path in _or_refused(lambda: files.find(root)):
            relative = PurePosixPath(path).relative_to(root).as_posix()
            if not any(part.startswith(".") for part in PurePosixPath(relative).parts):
                found[relative] = RemoteAsset(files.unstrip_protocol(path))
        return Tree(files=dict(sorted(found.items())))

    def matching(self, pattern: str) -> list[str]:
        files, root = self._files()
        return sorted(PurePosixPath(path).name for path in _or_refused(lambda: files.glob(f"{root}/{pattern}")))

    def asset(self, path: str) -> RemoteAsset:
        return RemoteAsset(f"{self.url.rstrip('/')}/{safe_relative_path(path)}")

    def open(self, path: str) -> BinaryIO:
        files, root = self._files()
        return cast(BinaryIO, _or_refused(lambda: files.open(f"{root}/{safe_relative_path(path)}", "rb")))

    def holds(self, name: str) -> str | None:
        """Return `file` or `folder`; None if there is nothing of this name."""
        files, root = self._files()
        path = f"{root}/{name}" if name else root
        if _or_refused(lambda: files.isfile(path)):
            return "file"
        return "folder" if _or_refused(lambda: files.isdir(path)) else None

    def _files(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        files, root = _or_refused(lambda: url_to_fs(self.url))
        return files, root.rstrip("/")


def safe_relative_path(path: str) -> str:
    """Return a relative path from a table or an archive, normalised. Raises Refused if it is anything else."""
    if "\0" in path or not is_text(path):
        raise Refused("is no file name: it holds a zero byte or is not UTF-8")
    if _URL.match(path):
        raise Refused("is a URL; only paths relative to the table are read")
    if "\\" in path or re.match(r"^[A-Za-z]:", path):
        raise Refused("is a Windows path; write it relative to the table, with `/` between folders")
    if path.startswith("/"):
        raise Refused("is an absolute path; write it relative to the table")
    if ".." in PurePosixPath(path).parts:
        raise Refused("leads out of the data set folder with `..`")
    return PurePosixPath(path).as_posix()


def is_url(named: str) -> bool:
    return _URL.match(named) is not None


def open_place(named: str, source: Path) -> tuple[Place, str | None]:
    """Return the folder behind `instance_data_dir`, and the file or shell pattern in it where one is named.

    The value is `digits:<name>` for an embedded set, a URL, or a path relative to the data set file `source`.

    Raises Refused if there is no such place, or if it cannot be read on this machine.
    """
    if named.startswith("digits:"):
        from flowhooks.digits import resolve_data

        try:
            return LocalPlace(resolve_data(named)), None
        except DataError as error:
            raise Refused("; ".join(problem.message for problem in error.problems)) from None
    if not is_url(named):
        return _local(source.parent / user_path(named))
    if re.match(r"^(file|local)://", named):
        return _local(Path(re.sub(r"^(file|local)://", "", named)))
    return _remote(named)


def _local(path: Path) -> tuple[Place, str | None]:
    try:
        if path.is_dir():
            return LocalPlace(path), None
        if path.exists() or (_GLOB.search(path.name) and path.parent.is_dir()):
            return LocalPlace(path.parent), path.name
    except ValueError:
        raise Refused(f"{str(path)!r} is no path") from None
    raise Refused(f"{path} does not exist; `instance_data_dir` is relative to the data set file")


def _remote(url: str) -> tuple[Place, str | None]:
    if "::" in url or "@" in url.split("://", 1)[1].split("/", 1)[0]:
        raise Refused(
            "is a chain of URLs or holds a user name or password; name one place, and give credentials in the way of "
            "its file system, such as environment variables"
        )
    parent, _, last = url.rstrip("/").rpartition("/")
    whole, folder = RemotePlace(url.rstrip("/")), RemotePlace(parent)
    if _GLOB.search(last):
        return folder, last
    match whole.holds(""):
        case "folder":
            return whole, None
        case "file":
            return folder, last
    raise Refused(f"{url} does not exist")


def _or_refused(question: Any) -> Any:
    """Return the result of a call to a file system. Raises Refused naming what is missing, or OSError."""
    try:
        return question()
    except ImportError as error:
        raise Refused(f"its file system needs a package that is not installed: {error}") from None
    except OSError:
        raise
    except Exception as error:  # every file system has exceptions of its own
        raise Refused(f"cannot be read ({type(error).__name__}: {error})") from None


def as_text(file: BinaryIO) -> io.TextIOWrapper:
    """Read a file as lines of UTF-8; invalid bytes become lone surrogates, so that one bad cell does not hide the
    others."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def folder_here(named: str, source: Path) -> Path | None:
    """Return the folder on this machine that `instance_data_dir` names; None for a file, or if there is none here."""
    try:
        place, file = open_place(named, source)
    except (Refused, OSError):
        return None
    return place.root if isinstance(place, LocalPlace) and file is None else None

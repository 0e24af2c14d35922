"""Read type `huggingface`: a data set of the Hub, a folder of data files, or one saved with `save_to_disk`.

No code of a data set is run, and loading decodes no images: their bytes are inspected like all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowhooks.data.assets import Asset, FileAsset, RemoteAsset, why
from flowhooks.data.files import realpath
from flowhooks.data.findings import Findings
from flowhooks.data.records import DataSet
from flowhooks.data.sources.cells import plain, rows_of
from flowhooks.data.sources.columns import Columns, choose
from flowhooks.data.sources.rows import Row, collect
from flowhooks.data.sources.tables import BadTable
from flowhooks.data.storage import LocalPlace, Refused, is_url
from flowhooks.documents.document import redact
from flowhooks.reading import parse, read_bytes, user_path

T = TypeVar("T")
_ID = re.compile(r"^[\w.\-]+(/[\w.\-]+)?$")
_HUB_ONLY = ("subset", "data_dir", "revision")


def read_huggingface(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """Load the data set of the block and inspect every row. Fetched data is kept in the cache folder."""
    where = f"{path}.instance_data_dir"
    try:
        origin = find_origin(block, found)
        _refuse_options(origin, block, path, found)
        data = origin.load(block, found.cache)
        columns = choose(
            block, path, data.column_names or list(or_refused(lambda: next(iter(data), {}), origin.name)), found
        )
        if columns is None:
            return DataSet.unread(block, path)
        if block["streaming"]:
            from flowhooks.data.sources.streams import read_stream

            return read_stream(data, origin, columns, block, path, found)
        if block["max_samples"] is not None:
            data = data.select(range(min(block["max_samples"], len(data))))
        cells = data.select_columns(list(dict.fromkeys(columns.all))).with_format("arrow")
        table = HubTable(cells, origin)
        return collect(block, path, columns, _rows(table, columns, where, found), found, about=origin.name)
    except (Refused, BadTable) as error:
        found.problem(where, str(error))
    except OSError as error:
        found.problem(where, f"{block['instance_data_dir']!r} cannot be read ({why(error)})")
    return DataSet.unread(block, path)


def huggingface_columns(block: dict[str, Any], found: Findings) -> list[str]:
    """Return the columns of a saved data set; none for one that would have to be fetched. Raises Refused or OSError."""
    origin = find_origin(block, found)
    if not origin.saved or origin.folder is None:
        return []
    folder = origin.folder
    if (folder / "dataset_dict.json").is_file():
        folder = folder / (block["split"] or "train")
    try:
        return list(parse(read_bytes(folder / "dataset_info.json"))["features"])
    except (ValueError, KeyError, TypeError):
        return []


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Says what `instance_data_dir` names.

    Args:
        name: the folder or the id on the Hub.
        folder: the folder on this machine, None for the Hub.
        saved: whether the folder was written by `save_to_disk`.
        roots: the folders that a row's path may lead into.
    """

    name: str
    folder: Path | None
    saved: bool
    roots: tuple[Path, ...]

    def load(self, block: dict[str, Any], cache: Path) -> Any:
        """Load the split that the block names. Raises Refused."""
        import datasets

        if not self.saved:
            return or_refused(
                lambda: datasets.load_dataset(
                    self.name,
                    name=block["subset"],
                    split=block["split"] or "train",
                    data_dir=block["data_dir"],
                    revision=block["revision"],
                    streaming=bool(block["streaming"]),
                    cache_dir=str(cache / "datasets"),
                ),
                self.name if self.folder else f"there is no such folder, and the data set {self.name!r} of the Hub",
            )
        loaded = or_refused(lambda: datasets.load_from_disk(self.name), self.name)
        if not isinstance(loaded, datasets.DatasetDict):
            if block["split"] not in (None, str(loaded.split)):
                raise Refused(f"{self.name} was saved without a split {block['split']!r}; remove `split`")
            return loaded
        split = block["split"] or "train"
        if split not in loaded:
            raise Refused(f"{self.name} has no split {split!r}; name one of {', '.join(map(repr, loaded))} in `split`")
        return loaded[split]

    def file(self, path: str) -> Asset:
        """Return the image that a row names. Raises Refused for one outside the data set."""
        if self.folder is None and path.startswith(f"hf://datasets/{self.name}@"):
            return RemoteAsset(path)
        if is_url(path):
            raise Refused("is a URL; only files of the data set itself are read")
        if not Path(path).is_absolute():
            if self.folder is None:
                raise Refused("is a path on the machine that it was made on")
            return LocalPlace(self.folder).asset(path)
        if not any(realpath(Path(path)).is_relative_to(realpath(root)) for root in self.roots):
            raise Refused("lies outside the data set")
        return FileAsset(Path(path))


def find_origin(block: dict[str, Any], found: Findings) -> Origin:
    """Return the origin of a block. Raises Refused if there is no such folder and it is no id of the Hub."""
    named = block["instance_data_dir"]
    if is_url(named):
        raise Refused("is a URL; type 'huggingface' takes an id of the Hub or a folder on this machine")
    folder = found.source.parent / user_path(named)
    if folder.is_dir():
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return Origin(name=str(folder), folder=folder, saved=saved, roots=(folder, found.cache))
    if folder.exists() or not _ID.match(named):
        raise Refused(f"{folder} does not exist, or is no folder; a data set of the Hub is named like 'owner/name'")
    from huggingface_hub.constants import HF_HUB_CACHE

    return Origin(name=named, folder=None, saved=False, roots=(found.cache, Path(HF_HUB_CACHE)))


class HubTable:
    """Gives rows of a `datasets.Dataset`, which stays on disk; a row is read when one of its cells is used."""

    def __init__(self, data: Any, origin: Origin):
        self.data = data
        self.origin = origin
        self._identity = origin.name, data._fingerprint
        self._last: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HubTable) and other._identity == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def home(self) -> str:
        return ""

    def row_name(self, row: int) -> str:
        return f"{self.origin.name} row {row}"

    def key(self, row: int) -> str:
        return str(row)

    def value(self, row: int, column: str) -> Any:
        if self._last is None or self._last[0] != row:
            try:
                self._last = row, self.data[row]
            except Exception as error:  # pyarrow and datasets raise any exception on a damaged file
                raise BadTable(f"{self.row_name(row)} cannot be read ({type(error).__name__}: {error})") from None
        return plain(self._last[1].column(column)[0])

    def file(self, row: int, path: str) -> Asset:
        return self.origin.file(path)


def or_refused(question: Callable[[], T], name: str) -> T:
    """Return the result of a call to `datasets` or the Hub. Raises Refused with their error in one line."""
    try:
        return question()
    except Exception as error:  # a builder, the Hub and the file systems below have exceptions of their own
        said = redact((str(error).splitlines() or [""])[0])
        raise Refused(f"{name} cannot be loaded ({type(error).__name__}: {said})") from None


def _rows(table: HubTable, columns: Columns, where: str, found: Findings) -> Iterator[Row]:
    try:
        yield from rows_of(table, columns)
    except BadTable as error:
        found.problem(where, str(error))


def _refuse_options(origin: Origin, block: dict[str, Any], path: str, found: Findings) -> None:
    for key in (*_HUB_ONLY, "streaming") if origin.saved else ():
        if block[key]:
            found.problem(f"{path}.{key}", "does nothing for a data set that was saved with `save_to_disk`; remove it")

"""Read type `parquet`: tables that hold images as bytes or as the structs of Hugging Face, or their paths.

Tried instead: `load_dataset("parquet")` of `datasets` 5.2 with `Image(decode=False)`. It copies every image into an
Arrow file: 99 MB of 95 MB. With `streaming=True` it copies none, but has no way to a row other than over all before
it: 0.18 s to row 1,900 of 2,000, where reading the one group of rows takes 2 to 20 ms. So pyarrow reads the
group.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowhooks.data.assets import Asset, FileAsset
from flowhooks.data.findings import Findings, some
from flowhooks.data.records import DataSet
from flowhooks.data.sources.cells import plain, rows_of
from flowhooks.data.sources.columns import Columns, choose
from flowhooks.data.sources.opening import files_of, open_files, problems_of
from flowhooks.data.sources.rows import Row, collect
from flowhooks.data.sources.tables import BadTable
from flowhooks.data.storage import Place, Refused, safe_relative_path

SUFFIXES = (".parquet",)
# One group of rows is decoded at a time; a file may declare more than any memory holds.
MAX_GROUP_BYTES = 2**31


def read_parquet(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """Read one Parquet file, or all in a folder."""
    files = open_files(block, f"{path}.instance_data_dir", SUFFIXES, found)
    if files is None:
        return DataSet.unread(block, path)
    place, names = files
    table = ParquetTable(place, names)
    return read_tables(table, block, path, found, about=place.name, held=f"{place.name}: {some(names)}")


def parquet_columns(block: dict[str, Any], found: Findings) -> list[str]:
    """Return the columns of the first file. Raises BadTable, Refused or OSError."""
    place, names = files_of(block, SUFFIXES, found)
    return ParquetTable(place, names[:1]).columns() if names else []


def read_tables(
    table: ParquetTable, block: dict[str, Any], path: str, found: Findings, *, about: str, held: str | None = None
) -> DataSet:
    """Return the rows of Parquet files as a data set. Messages call it `about`, or `held` where they mean all rows."""
    where = f"{path}.instance_data_dir"
    columns, checked = None, False
    with problems_of(about, where, found):
        columns = choose(block, path, table.columns(), found)
        if columns is not None:
            table.check(columns)
            checked = True
    if columns is None or not checked:
        return DataSet.unread(block, path)
    return collect(block, path, columns, _rows(table, columns, where, about, found), found, about=held or about)


def _rows(table: ParquetTable, columns: Columns, where: str, about: str, found: Findings) -> Iterator[Row]:
    with problems_of(about, where, found):
        yield from rows_of(table, columns)


class ParquetTable:
    """Reads Parquet files of one folder as one table; rows count from 0 in each file.

    Reading a cell decodes the group of rows it is in. The last group of every column is kept, so reading in order
    decodes each once. A process that receives the table from another opens the files again.
    """

    def __init__(self, place: Place, names: Sequence[str]):
        self.place = place
        self.names = tuple(names)
        self._identity = (place.name, self.names)
        self._hash = hash(self._identity)
        self._process = os.getpid()
        self._opened: tuple[int, Any] | None = None
        self._kept: dict[str, tuple[int, range, Any]] = {}
        self._counted: list[int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetTable, (self.place, self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParquetTable) and other._identity == self._identity

    def __hash__(self) -> int:
        return self._hash

    def __len__(self) -> int:
        return self._ends[-1]

    def columns(self) -> list[str]:
        """Return the columns of the first file. Raises BadTable or OSError."""
        return self._names(0)

    def check(self, columns: Columns) -> None:
        """Raise BadTable for a file without one of the columns, or with images of another type."""
        for index, name in enumerate(self.names):
            schema, named = self._file(index).schema_arrow, self._names(index)
            for column in columns.all:
                if column not in named:
                    raise BadTable(f"{name} has no column {column!r}, other files of this data set have one")
            for column in columns.pictures:
                if not _holds_pictures(kind := schema.field(column).type):
                    raise BadTable(f"{name}: column {column!r} holds {kind}, neither images nor paths of them")

    @property
    def home(self) -> str:
        return f"{self.place.name}/"

    def _names(self, index: int) -> list[str]:
        names = list(self._file(index).schema_arrow.names)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadTable(f"{self.names[index]} has two columns {twice[0]!r}; rename one")
        return names

    def row_name(self, row: int) -> str:
        file, at = self._locate(row)
        return f"{self.names[file]} row {at}"

    def key(self, row: int) -> str:
        file, at = self._locate(row)
        return f"{PurePosixPath(self.names[file]).stem}/{at}"

    def file(self, row: int, path: str) -> Asset:
        folder = PurePosixPath(self.names[self._locate(row)[0]]).parent
        return self.place.asset((folder / safe_relative_path(path)).as_posix())

    def value(self, row: int, column: str) -> Any:
        index, at = self._locate(row)
        kept = self._kept.get(column)
        if kept is None or self._process != os.getpid() or kept[0] != index or at not in kept[1]:
            kept = self._kept[column] = self._group(index, at, column)
        return plain(kept[2][at - kept[1].start])

    def _group(self, index: int, at: int, column: str) -> tuple[int, range, Any]:
        file, ends = self._file(index), list(accumulate(self._groups(index)))
        group = bisect_right(ends, at)
        rows = range(ends[group - 1] if group else 0, ends[group])
        size = _uncompressed(file.metadata.row_group(group), column)
        if size > MAX_GROUP_BYTES:
            raise BadTable(
                f"{self.names[index]}: {column!r} holds {size:,} bytes in one group of rows, more than "
                f"{MAX_GROUP_BYTES:,}; write it again with smaller groups, such as row_group_size=100"
            )
        try:
            values = file.read_row_group(group, columns=[column], use_threads=False).column(column)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise BadTable(f"{self.names[index]}: {column!r} is damaged near row {at} ({error})") from None
        if len(values) != len(rows):
            raise BadTable(f"{self.names[index]}: {column!r} has {len(values)} of {len(rows)} rows near row {at}")
        return index, rows, values

    def _groups(self, index: int) -> list[int]:
        about = self._file(index).metadata
        return [about.row_group(group).num_rows for group in range(about.num_row_groups)]

    def _locate(self, row: int) -> tuple[int, int]:
        file = bisect_right(self._ends, row)
        return file, row - (self._ends[file - 1] if file else 0)

    def _source(self, name: str) -> Any:
        asset = self.place.asset(name)
        # pyarrow's own handle needs no closing.
        return str(asset.path) if isinstance(asset, FileAsset) else self.place.open(name)

    @property
    def _ends(self) -> list[int]:
        if self._counted is None:
            self._counted = list(accumulate(sum(self._groups(index)) for index in range(len(self.names))))
        return self._counted

    def _file(self, index: int) -> Any:
        if self._process != os.getpid():
            self._process, self._opened, self._kept = os.getpid(), None, {}
        if self._opened is None or self._opened[0] != index:
            try:
                self._opened = index, pq.ParquetFile(self._source(self.names[index]))
            except (pa.ArrowException, EOFError) as error:
                raise BadTable(f"{self.names[index]} is no Parquet file, or damaged ({error})") from None
            except Refused as error:
                raise OSError(errno.EACCES, f"{self.names[index]} {error}") from None
        return self._opened[1]


class ParquetText:
    """Reads a Parquet file as a table of text, like CSV."""

    def __init__(self, place: Place, name: str):
        self._table = ParquetTable(place, [name])

    def columns(self) -> list[str]:
        return self._table.columns()

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | str]]:
        names = self.columns()
        for row in range(len(self._table)):
            yield self._table.row_name(row), {name: self._table.value(row, name) for name in names}


def _holds_pictures(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)


def _uncompressed(group: Any, column: str) -> int:
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}.")
    )

"""Read images from the cells of a table that holds them itself, or that holds their paths."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from flowhooks.data.assets import Asset, refuse_large
from flowhooks.data.files import stem_of
from flowhooks.data.sources.columns import Columns
from flowhooks.data.sources.inspecting import Fault
from flowhooks.data.sources.rows import Row
from flowhooks.data.sources.tables import BadTable
from flowhooks.data.storage import Refused, safe_relative_path


class Cells(Protocol):
    """Gives random access to the cells of a table; hashable and small when pickled."""

    def __len__(self) -> int: ...

    @property
    def home(self) -> str:
        """Return what precedes the name of a row to say where it is on this machine: `/data/`."""
        ...

    def row_name(self, row: int) -> str:
        """Name a row in messages: `train.parquet row 17`."""
        ...

    def key(self, row: int) -> str:
        """Return the key by which a row is paired where its image has no name of its own: `train/17`."""
        ...

    def value(self, row: int, column: str) -> Any:
        """Return a cell: None, text, bytes, a dict of `bytes` and `path`, or, for a record, anything. Raises BadTable
        or OSError."""
        ...

    def file(self, row: int, path: str) -> Asset:
        """Return the image that a cell names. Raises Refused for a path that leads out of the data set."""
        ...


@dataclass(frozen=True, slots=True)
class CellAsset:
    """Handles the bytes in one cell."""

    table: Cells
    row: int
    column: str

    @property
    def name(self) -> str:
        return f"{self.table.home}{self.table.row_name(self.row)}, {self.column!r}"

    def read(self) -> bytes:
        try:
            value = self.table.value(self.row, self.column)
        except BadTable as error:
            raise OSError(errno.EIO, str(error)) from None
        data = value["bytes"] if isinstance(value, dict) else value
        refuse_large(len(data))
        return data


def rows_of(cells: Cells, columns: Columns) -> Iterator[Row]:
    """Yield every row of a table. Raises BadTable or OSError where it cannot be read."""
    for row in range(len(cells)):
        values = {column: cells.value(row, column) for column in columns.all}
        pictures = {column: _asset(cells, row, column, values[column]) for column in columns.pictures}
        name, own = cells.row_name(row), _path(values[columns.image])
        yield Row(
            name=f"{name} ({own})" if own else name,
            key=stem_of(own) if own else cells.key(row),
            pictures=pictures,
            caption=values[columns.caption] if columns.caption else None,
            cells=values,
        )


def _asset(cells: Cells, row: int, column: str, value: Any) -> Asset | Fault | None:
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return CellAsset(cells, row, column)
    if not isinstance(value, str):
        return Fault(f"holds a {type(value).__name__}, not an image")
    try:
        return cells.file(row, value)
    except Refused as error:
        return Fault(f"names {value!r:.200}, which {error}")


def _path(value: Any) -> str | None:
    """Return the relative path that an image had when the table was made, if the cell holds it."""
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        return None
    try:
        return safe_relative_path(path)
    except Refused:
        return None


def plain(scalar: Any) -> Any:
    """Return a cell as a Python value; text that is not UTF-8 gets lone surrogates, which the reader of the cell
    refuses."""
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        return {name: plain(scalar[name]) for name in scalar}
    if isinstance(scalar, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)):
        return [plain(each) for each in scalar.values]
    if isinstance(scalar, (pa.StringScalar, pa.LargeStringScalar)):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return scalar.as_py()

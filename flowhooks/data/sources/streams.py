"""Read a streamed data set once, from the first row on, and keep it as Parquet in the cache folder.

The audit reads every row and the cache of latents reads them again, so streamed rows must be kept. Streaming
avoids fetching the rows after `max_samples`, and the second copy that loading in full makes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowhooks.data.assets import refuse_large, why
from flowhooks.data.files import walk
from flowhooks.data.findings import Findings, count
from flowhooks.data.records import DataSet
from flowhooks.data.sources.cells import plain
from flowhooks.data.sources.columns import Columns
from flowhooks.data.sources.hub import Origin, or_refused
from flowhooks.data.sources.parquet import ParquetTable, read_tables
from flowhooks.data.sources.rows import Refusal, cell_value
from flowhooks.data.sources.tables import BadTable
from flowhooks.data.storage import LocalPlace, Place, Refused
from flowhooks.files import whole

_FILE = "rows.parquet"
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
# Rows are written in groups, each of which is decoded at once when it is read.
_GROUP_ROWS = 100
_GROUP_BYTES = 64 * 2**20


def read_stream(
    data: Any, origin: Origin, columns: Columns, block: dict[str, Any], path: str, found: Findings
) -> DataSet:
    """Return the rows of a stream; rows kept earlier are used where nothing has changed.

    Raises Refused, BadTable or OSError if the stream breaks off; nothing is kept then.
    """
    folder = found.cache / "streams" / _key(origin, columns, block)
    if not folder.is_dir():
        with whole(folder) as aside:
            _write(_batches(data, origin, columns, block["max_samples"]), columns, aside / _FILE)
    table = _Kept(LocalPlace(folder), [_FILE], _as_json(columns))
    found.notes.append(f"{block['id']}: {count(len(table), 'row')} of {origin.name}, streamed and kept in {folder}")
    named = {
        "image_column": columns.image,
        "rejected_column": list(columns.rejected),
        "mask_column": list(columns.masks),
        "caption_column": columns.caption,
    }
    return read_tables(table, {**block, **named}, path, found, about=origin.name)


class _Kept(ParquetTable):
    """Gives the rows of a stream. The columns `texts` hold JSON, as a stream does not say what type comes next."""

    def __init__(self, place: Place, names: Sequence[str], texts: tuple[str, ...]):
        super().__init__(place, names)
        self._texts = texts

    def value(self, row: int, column: str) -> Any:
        value = super().value(row, column)
        return json.loads(value) if column in self._texts else value


def _as_json(columns: Columns) -> tuple[str, ...]:
    return tuple(name for name in columns.all if name not in columns.pictures and name != columns.caption)


def _key(origin: Origin, columns: Columns, block: dict[str, Any]) -> str:
    """Return a name that depends on everything the kept rows depend on."""
    if origin.folder is not None:
        files = [(name, (origin.folder / name).stat()) for name in walk(origin.folder).files]
        version: Any = [(name, about.st_size, about.st_mtime_ns) for name, about in files]
    elif block["revision"] is not None and _COMMIT.match(block["revision"]):
        version = block["revision"]
    else:
        from huggingface_hub import HfApi

        version = or_refused(lambda: HfApi().dataset_info(origin.name, revision=block["revision"]).sha, origin.name)
    asked_for = {key: block[key] for key in ("subset", "split", "data_dir", "max_samples")}
    document = json.dumps([origin.name, version, asked_for, columns.all], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:24]


def _batches(data: Any, origin: Origin, columns: Columns, most: int | None) -> Iterator[list[dict[str, Any]]]:
    batch, size = list[dict[str, Any]](), 0
    rows = islice(data.with_format("arrow"), most)
    number = 0
    while (row := or_refused(lambda: next(rows, None), origin.name)) is not None:
        kept = {name: _picture(_cell(row, name), origin, f"row {number}, {name!r}") for name in columns.pictures}
        size += sum(len(each["bytes"]) for each in kept.values() if each)
        if columns.caption is not None:
            kept[columns.caption] = _text(_cell(row, columns.caption), f"row {number}, {columns.caption!r}")
        for name in _as_json(columns):
            kept[name] = _json(_cell(row, name), f"{origin.name} row {number}, {name!r},")
        batch.append(kept)
        number += 1
        if len(batch) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cell(row: Any, name: str) -> Any:
    return plain(row.column(name)[0]) if name in row.column_names else None


def _picture(value: Any, origin: Origin, name: str) -> Any:
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    try:
        if value is None and path:
            value = origin.file(path).read()
        if value is None:
            return None
        if not isinstance(value, bytes):
            raise BadTable(f"{origin.name} {name} holds a {type(value).__name__}, not an image")
        refuse_large(len(value))
    except Refused as error:
        raise BadTable(f"{origin.name} {name} names {path!r:.200}, which {error}") from None
    except OSError as error:
        raise BadTable(f"{origin.name} {name} cannot be read ({why(error)})") from None
    return {"bytes": value, "path": path}


def _text(value: Any, name: str) -> bytes | None:
    """Return a text as bytes. Text that is not UTF-8 is kept as it is, for the audit to report."""
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadTable(f"{name} holds a {type(value).__name__}, not text")
    return value.encode("utf-8", "surrogateescape")


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(cell_value(value))
    except Refusal as reason:
        raise BadTable(f"{name} {reason}") from None


def _write(batches: Iterator[list[dict[str, Any]]], columns: Columns, file: Path) -> None:
    fields = [(name, _PICTURE) for name in dict.fromkeys(columns.pictures)]
    fields += [(columns.caption, pa.binary())] if columns.caption else []
    schema = pa.schema(fields + [(name, pa.string()) for name in _as_json(columns)])
    with pq.ParquetWriter(file, schema) as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_pylist(batch, schema))

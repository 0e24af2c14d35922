"""Read types `imagefolder` and `csv`: image files listed in a table beside them, one row per sample.

Tried instead: `load_dataset("imagefolder")` of `datasets` 5.2, which took 21 s for 10,000 images, where the audit of
100,000 pairs takes half a minute. It does not report images that no row lists, and follows links out of the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from flowhooks.data.assets import Asset, why
from flowhooks.data.files import NOUNS, Tree, group_images, is_image, medium_of, of_other_kinds, stem_of, suffixes_of
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.records import DataSet
from flowhooks.data.sources.columns import Columns, choose
from flowhooks.data.sources.inspecting import Fault
from flowhooks.data.sources.opening import METADATA, files_of, open_files, open_folder, problems_of
from flowhooks.data.sources.rows import Row, collect
from flowhooks.data.sources.tables import SUFFIXES, BadTable, open_table
from flowhooks.data.storage import Place, Refused, open_place, safe_relative_path


def read_imagefolder(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """Read a folder in the form of Hugging Face: `metadata.jsonl`, `.csv` or `.parquet`, in it or in sub-folders.

    Paths in a table are relative to that table. Image files that none lists are a warning.
    """
    where = f"{path}.instance_data_dir"
    folder = open_folder(block, where, found)
    if folder is None:
        return DataSet.unread(block, path)
    place, tree = folder
    tables = _metadata(tree)
    if not tables:
        message = (
            f"{place.name} holds no {' or '.join(METADATA)}; add one with a column 'file_name', or use type 'local'"
        )
        found.problem(where, message)
        return DataSet.unread(block, path)
    several = [str(PurePosixPath(name).parent) for name in tables]
    twice = sorted({each for each in several if several.count(each) > 1})
    found.listing(where, twice, "folders with several metadata files", "keep one of them")
    listed = _Listed(block, path, place, tables, found)
    result = listed.read()
    if listed.columns is not None:
        _warn_of_unlisted(block, tree, listed.named, found)
    return result


def read_csv(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """Read one CSV or TSV file, or all in a folder; paths in it are relative to its folder."""
    files = open_files(block, f"{path}.instance_data_dir", SUFFIXES, found)
    if files is None:
        return DataSet.unread(block, path)
    return _Listed(block, path, *files, found).read()


def imagefolder_columns(block: dict[str, Any], found: Findings) -> list[str]:
    """Return the columns of a folder's tables. Raises BadTable, Refused or OSError."""
    place, file = open_place(block["instance_data_dir"], found.source)
    return _columns(place, _metadata(place.tree())) if file is None else []


def csv_columns(block: dict[str, Any], found: Findings) -> list[str]:
    """Return the columns of a CSV file, or of all in a folder. Raises BadTable, Refused or OSError."""
    return _columns(*files_of(block, SUFFIXES, found))


def _metadata(tree: Tree) -> list[str]:
    return [name for name in tree.files if PurePosixPath(name).name in METADATA]


def _columns(place: Place, tables: list[str]) -> list[str]:
    return list(dict.fromkeys(column for name in tables for column in open_table(place, name).columns()))


class _Listed:
    """Holds the rows of some tables in one folder, while they are read."""

    def __init__(self, block: dict[str, Any], path: str, place: Place, tables: list[str], found: Findings):
        self.block = block
        self.path = path
        self.place = place
        self.tables = tables
        self.found = found
        self.columns: Columns | None = None
        self.named: set[str] = set()

    def read(self) -> DataSet:
        where = f"{self.path}.instance_data_dir"
        with problems_of(self.place.name, where, self.found):
            available = _columns(self.place, self.tables)
            if available:
                self.columns = choose(self.block, self.path, available, self.found)
            else:
                self.found.problem(where, f"{self.place.name}: {some(self.tables)} holds no row")
        if self.columns is None:
            return DataSet.unread(self.block, self.path)
        about = f"{self.place.name}: {some(self.tables)}"
        return collect(self.block, self.path, self.columns, self._rows(self.columns), self.found, about=about)

    def _rows(self, columns: Columns) -> Iterator[Row]:
        for table in self.tables:
            folder = PurePosixPath(table).parent
            try:
                for name, cells in open_table(self.place, table).rows():
                    yield self._row(name, cells, folder, columns)
            except (BadTable, Refused) as error:
                self.found.problem(f"{self.path}.instance_data_dir", f"{self.place.name}: {error}; correct it")
            except OSError as error:
                message = f"{self.place.name}/{table} cannot be read ({why(error)})"
                self.found.problem(f"{self.path}.instance_data_dir", message)

    def _row(self, name: str, cells: dict[str, Any] | str, folder: PurePosixPath, columns: Columns) -> Row:
        if isinstance(cells, str):
            return Row(name=name, key=name, pictures=dict.fromkeys(columns.pictures, Fault(cells)))
        pictures = {column: self._asset(cells.get(column), folder) for column in columns.pictures}
        image = cells.get(columns.image)
        if isinstance(pictures[columns.image], Fault) or not isinstance(image, str):
            return Row(name=name, key=name, pictures=pictures)
        return Row(
            name=f"{name} ({image})",
            key=stem_of((folder / image).as_posix()),
            pictures=pictures,
            caption=cells.get(columns.caption) if columns.caption else None,
            cells=cells,
        )

    def _asset(self, cell: Any, folder: PurePosixPath) -> Asset | Fault | None:
        if cell is None:
            return None
        if not isinstance(cell, str):
            return Fault(f"holds {cell!r:.60}, not a path")
        try:
            asset = self.place.asset((folder / safe_relative_path(cell)).as_posix())
        except Refused as error:
            return Fault(f"names {cell!r:.200}, which {error}")
        self.named.add((folder / cell).as_posix())
        return asset


def _warn_of_unlisted(block: dict[str, Any], tree: Tree, named: set[str], found: Findings) -> None:
    """Warn of files of the set's kind that no row lists, and note those of other kinds."""
    tables = {file for file in tree.files if PurePosixPath(file).name in METADATA}
    others = group_images(tree.files.keys() - named - tables, suffixes_of(block)).ignored
    if others:
        found.notes.append(f"{block['id']}: {of_other_kinds(others)}")
    unlisted = [file for file in tree.files if is_image(file, suffixes_of(block)) and file not in named]
    if unlisted:
        number = count(len(unlisted), NOUNS[medium_of(block)])
        found.warnings.append(f"{block['id']}: {number} that no row lists: {some(unlisted)}")

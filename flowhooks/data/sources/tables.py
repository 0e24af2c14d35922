"""Read tables of text, CSV, TSV and JSON Lines, row by row so that a fault names its line.

Tried instead: `load_dataset` of `datasets` 5.2. Its `csv` reads text with features and `keep_default_na=False`, but
gives a row that is too short empty cells without a word, and of a row that is too long, or one byte that is not
UTF-8, only that the file cannot be loaded. Its `json` makes the number 1 of the text `001` where the column holds
numbers too. Importing it takes 1.7 s, which is longer than the audit of a small set; these readers take 0.4 s for
100,000 lines of CSV and 1.5 s for as many of JSON.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, TextIO

from flowhooks.data.storage import Place, as_text
from flowhooks.reading import UTF16, BadJson, is_utf16, parse

SUFFIXES = (".csv", ".tsv")


class BadTable(Exception):
    """A table cannot be read to its end; the message says where and why."""


class Table(Protocol):
    """Rows with named columns."""

    def columns(self) -> list[str]:
        """Return the names of the columns. Raises BadTable, Refused or OSError."""
        ...

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | str]]:
        """Yield (name of the row for people, its cells by column or what is wrong with it). Raises like `columns`."""
        ...


def _lines(place: Place, name: str) -> TextIO:
    """Return the lines of a table. Raises BadTable for another known encoding, Refused or OSError."""
    file = place.open(name)
    start = file.read(2)
    if is_utf16(start):
        file.close()
        raise BadTable(f"{name} {UTF16}")
    file.seek(0)
    return as_text(file)


def open_table(place: Place, name: str) -> Table:
    """Open the table in the file `name`, by its suffix."""
    match PurePosixPath(name).suffix.lower():
        case ".jsonl":
            return JsonLines(place, name)
        case ".parquet":
            from flowhooks.data.sources.parquet import ParquetText

            return ParquetText(place, name)
        case ".tsv":
            return Separated(place, name, "\t")
        case _:
            return Separated(place, name, ",")


@dataclass(frozen=True)
class Separated:
    """Reads a CSV or TSV file with its columns named in the first line; every cell is text."""

    place: Place
    name: str
    separator: str

    def columns(self) -> list[str]:
        with _lines(self.place, self.name) as file:
            return self._header(csv.reader(file, delimiter=self.separator))

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | str]]:
        with _lines(self.place, self.name) as file:
            lines = csv.reader(file, delimiter=self.separator, strict=True)
            header = self._header(lines)
            try:
                for cells in lines:
                    if not cells:
                        continue
                    row = f"{self.name} line {lines.line_num}"
                    if len(cells) != len(header):
                        yield row, f"has {len(cells)} cells, the header has {len(header)}; quote cells with commas"
                        continue
                    yield row, {column: cell or None for column, cell in zip(header, cells, strict=True)}
            except csv.Error as error:
                raise BadTable(f"{self.name} line {lines.line_num} cannot be read ({error})") from None

    def _header(self, lines: Any) -> list[str]:
        try:
            header = [name.strip() for name in next(lines, [])]
        except csv.Error as error:
            raise BadTable(f"{self.name} line 1 cannot be read ({error})") from None
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise BadTable(f"{self.name} has two columns {twice[0]!r}; rename one")
        return header


@dataclass(frozen=True)
class JsonLines:
    """Reads a file with one JSON object per line."""

    place: Place
    name: str

    def columns(self) -> list[str]:
        found: dict[str, None] = {}
        for _, cells in self.rows():
            if isinstance(cells, dict):
                found.update(dict.fromkeys(cells))
        return list(found)

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | str]]:
        with _lines(self.place, self.name) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{self.name} line {number}", _object(line)


def _object(line: str) -> dict[str, Any] | str:
    try:
        cells = parse(line, texts=False)
    except BadJson as error:
        return f"is no JSON ({error})"
    return cells if isinstance(cells, dict) else 'is no JSON object, such as {"file_name": "a.png"}'

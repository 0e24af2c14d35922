"""Write the page of one run, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from flowhooks.errors import ConfigError, Problem
from flowhooks.files import write_aside
from flowhooks.manifest import HISTORY, REPORT, REPORT_MARK
from flowhooks.reading import read_text
from flowhooks.report.metrics_file import MetricsFile
from flowhooks.report.page import page
from flowhooks.report.pictures import DrawnImages, Kept, read_pictures
from flowhooks.report.record import RunRecord, read_record


class ReportWriter:
    """Writes the page of a run into its folder, again and again while it trains; what was read before is not read
    again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._metrics, self._kept = MetricsFile(folder / HISTORY), Kept()

    def read(self) -> tuple[RunRecord, DrawnImages]:
        """Return what is known now. Raises ConfigError and OSError."""
        return read_record(self.folder, self._metrics), read_pictures(self.folder, self._kept)

    def write(self) -> Path:
        """Write ``report.html``. Raises OSError and ConfigError."""
        return write_page([self.read()], self.folder / REPORT)


def write_report(folders: Sequence[Path], file: Path) -> list[RunRecord]:
    """Write the page of runs, and return what is known of them.

    Args:
        folders: their output folders; several are compared.
        file: replaced where an earlier call wrote it.

    Raises:
        ConfigError: a folder is no run's, or ``file`` is not ours.
        OSError: something cannot be read or written.
    """
    found = read_all([ReportWriter(folder) for folder in folders])
    write_page(found, file)
    return [record for record, _ in found]


def read_all(writers: Sequence[ReportWriter]) -> list[tuple[RunRecord, DrawnImages]]:
    """Return what is known of several runs; those whose folders have one name are told apart by more of their paths.

    Raises:
        ConfigError: a folder is no run's, or is named twice.
        OSError: something cannot be read.
    """
    found = [writer.read() for writer in writers]
    places = [record.folder.resolve() for record, _ in found]
    if twice := [place for place in places if places.count(place) > 1]:
        raise ConfigError(Problem("is named twice; name each run once", str(twice[0])))
    names = [record.name for record, _ in found]
    length = 1
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(place.parts[-length:]) for place in places]
    return [(replace(record, name=name), drawn) for (record, drawn), name in zip(found, names, strict=True)]


def write_page(found: Sequence[tuple[RunRecord, DrawnImages]], file: Path) -> Path:
    """Write the page of these runs to ``file``. Raises ConfigError where a file stands there that no report is."""
    if not _is_ours(file):
        raise ConfigError(Problem("this file exists and is no report of flowhooks; name another --output", str(file)))
    text = page([record for record, _ in found], [pictures for _, pictures in found])
    return write_aside(file, partial(Path.write_bytes, data=text.encode("utf-8", "backslashreplace")))


def _is_ours(file: Path) -> bool:
    """Return whether a file may be written: there is none, or it is a report."""
    if not file.exists() and not file.is_symlink():
        return True
    try:
        return file.is_file() and not file.is_symlink() and read_text(file).startswith(REPORT_MARK)
    except (OSError, ValueError):
        return False

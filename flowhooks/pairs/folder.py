"""Write the output folder of pairs: inside itself under a hidden name, and renamed when it is complete."""

from __future__ import annotations

import csv
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from flowhooks.config import load_datasets
from flowhooks.data import Audit, audit
from flowhooks.data.images import open_image
from flowhooks.data.sources import SOURCES
from flowhooks.documents.schemas import schemas
from flowhooks.errors import DataError, Problem

DATASET = "dataset.json"
SUFFIXES = {"PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif", "HEIF": ".heic"}
#: Keys that the new file sets itself; all other keys of the source's block are kept.
OURS = {
    "id", "type", "dataset_type", "conditioning_type", "conditioning_data", "source_dataset_id", "instance_data_dir",
    "caption_strategy", "instance_prompt", "disabled",
}.union(*(each.options for each in SOURCES.values()))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Made:
    """Describes what was written.

    Args:
        dataset: the data set file, for a run's `data`.
        summary: how many pairs of how many images.
        report: report of the audit of the written images.
        warnings: what is probably not meant.
    """

    dataset: Path
    summary: str
    report: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(kw_only=True)
class PairFolder:
    """Writes pairs one by one.

    Args:
        root: folder they are written to.
        columns: columns of `pairs.csv`, which says what each pair was made of.
    """

    root: Path
    columns: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)
    masked: bool = False

    def add(
        self,
        name: str,
        *,
        caption: str,
        preferred: bytes,
        rejected: bytes,
        mask: bytes | None = None,
        row: Sequence[object],
    ) -> None:
        """Write one pair.

        Args:
            name: relative path without suffix. A part that begins with a dot, which no audit would read, gets a `_`.
            caption: its prompt.
            preferred: content of an image file.
            rejected: content of an image file.
            mask: content of a PNG.
            row: cells of `pairs.csv` after the name.
        """
        name = "/".join(f"_{part}" if part.startswith(".") else part for part in name.split("/"))
        self._write("preferred", name, _suffix(preferred), preferred)
        self._write("preferred", name, ".txt", f"{caption}\n".encode())
        self._write("rejected", name, _suffix(rejected), rejected)
        if mask is not None:
            self._write("mask", name, ".png", mask)
            self.masked = True
        self.rows.append((name, *row))

    def _write(self, side: str, name: str, suffix: str, content: bytes) -> None:
        file = self.root / side / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Names that differ on one file system are the same on another.
        with file.open("xb") as opened:
            opened.write(content)

    def finish(self, block: Mapping[str, Any], made_by: str, blame: str) -> Audit:
        """Write `pairs.csv` and the data set file, and audit all of it.

        Args:
            block: block of the source images; its size and repeats hold for the pairs.
            made_by: remark for the head of the file.
            blame: file that problems are reported for.

        Raises:
            DataError: the pairs cannot be trained on together.
        """
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows([("pair", *self.columns), *self.rows])
        (self.root / "pairs.csv").write_text(text.getvalue(), encoding="utf-8")
        document = {"$comment": made_by, "datasets": _blocks(block, self.masked)}
        content = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (self.root / DATASET).write_text(content, encoding="utf-8")
        try:
            return audit(load_datasets(DATASET, self.root))
        except DataError as error:
            raise DataError([Problem(problem.message, blame) for problem in error.problems]) from None


def refusals(output: Path, sources: Sequence[Path] = ()) -> list[Problem]:
    """Return why nothing may be written into `output`: it exists and is not empty, or is inside one of the
    `sources`."""
    if output.is_dir():
        inside = sorted(each.name for each in output.iterdir())
        if inside:
            what = f"this folder is not empty (it holds {inside[0]!r}); name a new one, nothing was written"
            return [Problem(what, str(output))]
    elif output.exists() or output.is_symlink():
        return [Problem("this is a file, or a link that leads nowhere; name a new folder", str(output))]
    for source in sources:
        if output.resolve().is_relative_to(source.resolve()):
            what = f"this folder lies in {source}, which is read and never written to; name one outside of it"
            return [Problem(what, str(output))]
    return []


@contextmanager
def pair_folder(output: Path, columns: Sequence[str]) -> Iterator[PairFolder]:
    """Yield a folder to add pairs to, whose content appears under `output` when the block ends without an exception.

    After an exception everything that was written is removed. A killed process leaves a hidden folder in `output` and
    no data set file.
    """
    made = [each for each in (output, *output.parents) if not each.exists()]
    aside = output / f".unfinished-{uuid.uuid4().hex[:8]}"
    try:
        aside.mkdir(parents=True)
        yield PairFolder(root=aside, columns=columns)
        # The data set file comes last: if it exists, the folder is complete.
        for each in sorted(aside.iterdir(), key=lambda each: (each.name == DATASET, each.name)):
            each.rename(output / each.name)
        aside.rmdir()
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _suffix(data: bytes) -> str:
    with open_image(data) as image:
        # A phone's JPEG with a second image in it is an MPO.
        return SUFFIXES.get(str(image.format), ".jpg")


def _blocks(block: Mapping[str, Any], masked: bool) -> list[dict[str, Any]]:
    known = schemas()["dataloader"]["$defs"]["dataset"]["properties"]
    kept = {
        key: value for key, value in block.items() if key not in OURS and value != known.get(key, {}).get("default")
    }
    partners = {"rejected": "reference_strict"} | ({"mask": "mask"} if masked else {})
    preferred = {"id": "preferred", "instance_data_dir": "preferred", "conditioning_data": list(partners), **kept}
    return [preferred] + [
        {"id": each, "dataset_type": "conditioning", "conditioning_type": kind, "instance_data_dir": each}
        for each, kind in partners.items()
    ]

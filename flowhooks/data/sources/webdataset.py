"""Read type `webdataset`: tar files (shards) in which the members of one stem make one sample. Nothing is unpacked.

Tried instead: `load_dataset("webdataset")` of `datasets` 5.2, which copies every member into an Arrow file (99 MB of
98 MB), or with `streaming=True` reads the shard from its start to come to a sample: 0.39 s to sample 1,900 of 2,000.
Python's own `tarfile` gives the position of each member, in 0.26 ms a sample, and a sample is then one read.

`000.jpg` is the image of sample `000`, `000.rejected.png` its rejected side, `000.mask.png` its mask, `000.txt` or a
key of `000.json` its caption: the part between the stem and the suffix is the name of the column.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from flowhooks.data.assets import Asset, MemberAsset, why
from flowhooks.data.blocks import PREFERENCE, record_columns
from flowhooks.data.files import of_other_kinds, suffixes_of
from flowhooks.data.findings import Findings, some
from flowhooks.data.records import DataSet
from flowhooks.data.sources.columns import Columns, choose
from flowhooks.data.sources.inspecting import Fault
from flowhooks.data.sources.opening import files_of, open_files
from flowhooks.data.sources.rows import Row, collect
from flowhooks.data.sources.tables import BadTable
from flowhooks.data.storage import Place, Refused, safe_relative_path
from flowhooks.reading import BadJson, parse

SUFFIXES = (".tar",)
#: The column of `000.jpg`, which has no name of its own.
PLAIN = "image"
# Enough to find the columns; the audit reads all members.
_PEEKED = 256


@dataclass
class _Sample:
    """Holds the members of one stem."""

    shard: str
    stem: str
    pictures: dict[str, Asset] = field(default_factory=dict)
    text: Asset | None = None
    json: Asset | None = None


@dataclass
class _Shards:
    """Holds all samples of the tar files of one data set; `suffixes` are those of its images."""

    place: Place
    suffixes: tuple[str, ...]
    samples: list[_Sample] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return sorted({column for sample in self.samples for column in sample.pictures})

    def read(self, shard: str, most: int | None = None) -> None:
        """Add the first `most` members of a shard, or all. Raises BadTable, Refused or OSError."""
        archive, own = self.place.asset(shard), dict[str, _Sample]()
        try:
            with self.place.open(shard) as file, tarfile.open(fileobj=file, mode="r:") as members:
                for number, member in enumerate(members):
                    if most is not None and number >= most:
                        break
                    if not member.isdir():
                        self._take(shard, archive, member, own)
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            remedy = "write it again, without compression"
            raise BadTable(f"{shard} is no tar file, compressed, or damaged ({error}); {remedy}") from None

    def _take(self, shard: str, archive: Any, member: tarfile.TarInfo, own: dict[str, _Sample]) -> None:
        name = f"{shard}: {member.name.encode('utf-8', 'backslashreplace').decode()!r}"
        if not member.isreg() or member.issparse():
            kind = "link" if member.issym() or member.islnk() else "device or special file"
            self.refused.append(f"{name} is a {kind}, not a regular file")
            return
        try:
            path = PurePosixPath(safe_relative_path(member.name))
        except Refused as error:
            self.refused.append(f"{name} {error}")
            return
        if any(part.startswith(".") for part in path.parts):
            return
        base, _, extension = path.name.partition(".")
        stem = (path.parent / base).as_posix()
        sample = own.get(stem)
        if sample is None:
            sample = own[stem] = _Sample(shard, stem)
            self.samples.append(sample)
        asset = MemberAsset(archive=archive, member=path.as_posix(), offset=member.offset_data, size=member.size)
        if self._put(sample, extension.lower(), asset):
            self.refused.append(f"{name} is there twice, or beside another of its name without suffix")

    def _put(self, sample: _Sample, extension: str, asset: Asset) -> bool:
        """Store a member of a sample; return whether there was one of its name already."""
        column, _, suffix = extension.rpartition(".")
        if f".{suffix}" in self.suffixes:
            return sample.pictures.setdefault(column or PLAIN, asset) is not asset
        if extension == "txt":
            before, sample.text = sample.text, asset
            return before is not None
        if extension == "json":
            before, sample.json = sample.json, asset
            return before is not None
        self.others.append(asset.name)
        return False


def read_webdataset(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """Read one tar file, or all in a folder."""
    where = f"{path}.instance_data_dir"
    files = open_files(block, where, SUFFIXES, found)
    if files is None:
        return DataSet.unread(block, path)
    place, names = files
    shards, problems_before = _Shards(place, suffixes_of(block)), len(found.problems)
    for name in names:
        try:
            shards.read(name)
        except (BadTable, Refused) as error:
            found.problem(where, f"{place.name}: {error}")
        except OSError as error:
            found.problem(where, f"{place.name}/{name} cannot be read ({why(error)})")
    remedy = "write the shard again, with one regular file of each name"
    found.listing(where, shards.refused, "members that are not read", remedy)
    if shards.others:
        ignored = Counter(PurePosixPath(name).suffix.lower() or "(no suffix)" for name in shards.others)
        found.notes.append(f"{block['id']}: {of_other_kinds(ignored, 'member')}")
    imageless = [f"{each.shard}: {each.stem}" for each in shards.samples if not each.pictures]
    found.listing(where, imageless, "samples without an image", "add the image, or leave out the rest")
    shards.samples = [each for each in shards.samples if each.pictures]
    if not shards.samples:
        if len(found.problems) == problems_before:
            found.problem(where, f"{place.name}: {some(names)} holds no image")
        return DataSet.unread(block, path)
    texts = _Texts(shards)
    compared = block["pairs"] or PREFERENCE in (block["columns"] or {})
    of_keys = block["caption_strategy"] == "column" or record_columns(block) or compared
    columns = choose(block, path, shards.columns, found, texts=texts.keys() if of_keys else ())
    if columns is None:
        return DataSet.unread(block, path)
    return collect(block, path, columns, _rows(shards, columns, texts), found, about=place.name)


def webdataset_columns(block: dict[str, Any], found: Findings) -> list[str]:
    """Return the columns of images among the first members of the first shard. Raises BadTable, Refused or OSError."""
    place, names = files_of(block, SUFFIXES, found)
    shards = _Shards(place, suffixes_of(block))
    if names:
        shards.read(names[0], _PEEKED)
    return shards.columns


class _Texts:
    """Reads the JSON members of the samples."""

    def __init__(self, shards: _Shards):
        self._shards = shards

    def keys(self) -> list[str]:
        """Return every key that any sample has."""
        found = (self.of(sample) for sample in self._shards.samples)
        return list(dict.fromkeys(key for content in found if isinstance(content, dict) for key in content))

    def of(self, sample: _Sample) -> dict[str, Any] | Fault:
        """Return the object in a sample's JSON; an empty one where there is no such member."""
        if sample.json is None:
            return {}
        try:
            content = parse(sample.json.read())
        except OSError as error:
            return Fault(f"its JSON cannot be read: {why(error)}")
        except BadJson as error:
            return Fault(f"its JSON is damaged: {error}")
        return content if isinstance(content, dict) else Fault("its JSON is no object")


def _rows(shards: _Shards, columns: Columns, texts: _Texts) -> Iterator[Row]:
    for sample in shards.samples:
        pictures: dict[str, Asset | Fault | None] = {name: sample.pictures.get(name) for name in columns.pictures}
        named = [*columns.values, *([columns.caption] if columns.caption else [])]
        cells: dict[str, Any] = {}
        if named:
            content = texts.of(sample)
            cells = {name: content if isinstance(content, Fault) else content.get(name) for name in named}
        caption = sample.text if columns.caption is None else cells[columns.caption]
        name = f"{sample.shard}: {sample.stem}"
        yield Row(name=name, key=sample.stem, pictures=pictures, caption=caption, cells=cells)

"""Choose the reader of a data set by the `type` of its block. Readers are imported when a block needs them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from flowhooks.data.blocks import TRAINED
from flowhooks.data.findings import Findings
from flowhooks.data.masks import refuse_values, valued
from flowhooks.data.records import DataSet
from flowhooks.data.sources.columns import take_columns, usual_partners
from flowhooks.data.sources.ranks import ranking_faults
from flowhooks.data.storage import Refused

_COLUMNS = (
    "image_column",
    "caption_column",
    "rejected_column",
    "mask_column",
    "reference_column",
    "columns",
    "text_columns",
    "pairs",
)
_HUB = ("split", "subset", "data_dir", "revision", "streaming", "max_samples")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Describes one type of data set.

    Args:
        reader: `module:function` of (block, JSON path, Findings) -> DataSet.
        columns: `module:function` of (block, Findings) -> names of columns, read quickly; None for types without
            columns.
        strategies: caption strategies that the type accepts.
        options: the keys of a block that the type accepts among those that only some types do.
    """

    reader: str
    columns: str | None = None
    strategies: tuple[str, ...]
    options: tuple[str, ...] = ()


_LISTED = "flowhooks.data.sources.listed"
_TABLE = ("column", "filename", "instanceprompt")
SOURCES = {
    "local": Source(
        reader="flowhooks.data.sources.local:read_local",
        strategies=("textfile", "filename", "instanceprompt"),
        options=("pair_names", "repeats_from_folder_names"),
    ),
    "imagefolder": Source(
        reader=f"{_LISTED}:read_imagefolder",
        columns=f"{_LISTED}:imagefolder_columns",
        strategies=_TABLE,
        options=_COLUMNS,
    ),
    "csv": Source(
        reader=f"{_LISTED}:read_csv",
        columns=f"{_LISTED}:csv_columns",
        strategies=_TABLE,
        options=_COLUMNS,
    ),
    "parquet": Source(
        reader="flowhooks.data.sources.parquet:read_parquet",
        columns="flowhooks.data.sources.parquet:parquet_columns",
        strategies=_TABLE,
        options=_COLUMNS,
    ),
    "huggingface": Source(
        reader="flowhooks.data.sources.hub:read_huggingface",
        columns="flowhooks.data.sources.hub:huggingface_columns",
        strategies=_TABLE,
        options=(*_COLUMNS, *_HUB),
    ),
    "webdataset": Source(
        reader="flowhooks.data.sources.webdataset:read_webdataset",
        columns="flowhooks.data.sources.webdataset:webdataset_columns",
        strategies=("textfile", *_TABLE),
        options=_COLUMNS,
    ),
}
_OPTIONAL = {option for source in SOURCES.values() for option in source.options}


def read_set(block: dict[str, Any], path: str, found: Findings) -> DataSet:
    """Inspect every image and caption of a block; problems go to `found`. A disabled block is not read."""
    if block["disabled"]:
        return DataSet.unread(block, path)
    return valued(_function(SOURCES[block["type"]].reader)(block, path, found))


def complete_block(block: dict[str, Any], path: str, found: Findings) -> None:
    """Fill in the columns of partners that the block does not name, and refuse keys that its type does not accept.

    Only the names of columns are read, so that a run's plan knows whether there are pairs and masks before the audit.
    What cannot be read is left for the audit to report.
    """
    kind = SOURCES[block["type"]]
    for key in sorted(_OPTIONAL.difference(kind.options)):
        if block[key] not in (None, False):
            types = ", ".join(repr(name) for name, each in SOURCES.items() if key in each.options)
            found.problem(f"{path}.{key}", f"does nothing for type {block['type']!r}, only for {types}; remove it")
    if block["dataset_type"] in TRAINED and block["caption_strategy"] not in kind.strategies:
        choices = ", ".join(map(repr, kind.strategies))
        message = f"{block['caption_strategy']!r} is not for type {block['type']!r}, which takes {choices}"
        found.problem(f"{path}.caption_strategy", message)
    if block["dataset_type"] in TRAINED:
        for where, message in ranking_faults(block, path):
            found.problem(where, message)
    take_columns(block, path, found)
    _complete_columns(kind, block, path, found)
    refuse_values(block, path, found)


def _complete_columns(kind: Source, block: dict[str, Any], path: str, found: Findings) -> None:
    if kind.columns is None or block["disabled"]:
        return
    if block["dataset_type"] == "conditioning":
        _refuse_partners(block, path, found)
    else:
        available = _available(kind.columns, block, found)
        for key, names in usual_partners(available or ()).items():
            if block[key] is not None:
                block[key] = _as_list(block[key])
            elif available is not None:
                block[key] = names


def _available(columns: str, block: dict[str, Any], found: Findings) -> list[str] | None:
    """Return the columns of a source; None where they cannot be read."""
    from flowhooks.data.sources.tables import BadTable

    if None not in (block["rejected_column"], block["mask_column"]):
        return []
    try:
        names: list[str] = _function(columns)(block, found)
    except (BadTable, Refused, OSError):
        return None
    # A set that would have to be fetched is assumed to have no partners; any other table without columns is not one.
    return names if names or block["type"] == "huggingface" else None


def _refuse_partners(block: dict[str, Any], path: str, found: Findings) -> None:
    for key in ("rejected_column", "mask_column"):
        if block[key]:
            message = "belongs to an image set; a conditioning set names its images in `image_column`"
            found.problem(f"{path}.{key}", message)


def _as_list(named: str | list[str]) -> list[str]:
    return [named] if isinstance(named, str) else named


def _function(spec: str) -> Any:
    module, name = spec.split(":")
    return getattr(import_module(module), name)

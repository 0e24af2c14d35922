"""Read data set files in both forms, and check their links. The audit looks at the files on disk."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowhooks.data.block_rules import drawing_problems
from flowhooks.data.blocks import Block, Datasets
from flowhooks.data.findings import Findings
from flowhooks.data.links import link
from flowhooks.data.sources import complete_block
from flowhooks.data.sources.opening import KINDS
from flowhooks.data.translation import translate
from flowhooks.documents.document import json_path, read_json, strip_secrets, without_remarks
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import DataError, FlowhooksWarning, Problem
from flowhooks.reading import user_path


def load_datasets(given: str | Path | list[Any] | dict[str, Any], base: Path, *, root: str = "$") -> Datasets:
    """Read, validate, complete and link data sets.

    Args:
        given: a file, or the content of one; or a folder, which means the blocks of
            :func:`~flowhooks.data.folder.folder_blocks`.
        base: the file or folder that a file name is relative to; for blocks, the file they are from.
        root: JSON path of given blocks in ``base``.

    Raises:
        DataError: with every problem found.
        ConfigError: the file is missing or no JSON.
    """
    folder = base if base.is_dir() else base.parent
    if isinstance(given, (str, Path)):
        source = _tidy(folder / user_path(given))
        given, root = _written(source), "$"
    else:
        source = base / "<inline>" if base.is_dir() else base
    _refuse_one(given, source, root)
    cleaned, problems = strip_secrets(without_remarks(given), str(source), root)
    read = translate(cleaned, str(source), root)
    cleaned = read.document
    problems += read.problems
    problems += problems_in(cleaned, "dataloader", file=str(source), root=root)
    if problems:
        raise DataError(problems)
    if read.warning is not None:
        warnings.warn(f"{source}: {read.warning}", FlowhooksWarning, stacklevel=2)
    complete = with_defaults(cleaned, "dataloader")
    if isinstance(complete, dict):
        complete, root = complete["datasets"], f"{root}.datasets"
    return _linked(tuple(complete), source, root)


def _written(source: Path) -> Any:
    """Return the content of a data set file, or the blocks of a folder."""
    if not source.is_dir():
        return _document(source)
    # Read only for a folder.
    from flowhooks.data.folder import folder_blocks

    return [
        {**block, "instance_data_dir": str(source.absolute() / block["instance_data_dir"])}
        for block in folder_blocks(source)
    ]


def _document(source: Path) -> Any:
    """Return the content of a JSON file. Raises DataError for a file of data, which a data set file names."""
    if (kind := KINDS.get(source.suffix.lower())) and source.is_file():
        block = json.dumps([{"id": "mine", "type": kind, "instance_data_dir": source.name}])
        message = f"is a file of data, and not the data set file that describes it; write one beside it: {block}"
        raise DataError(Problem(message, str(source)))
    return read_json(source)


def _refuse_one(given: Any, source: Path, root: str) -> None:
    """Raise DataError for a set that is in no list."""
    if _is_one(given):
        message = "is one set, and a data set file is a list of sets; put it between [ and ]"
        raise DataError(Problem(message, str(source), root))


def _is_one(document: Any) -> bool:
    return isinstance(document, dict) and "datasets" not in document and "instance_data_dir" in document


def is_datasets(document: Any) -> bool:
    """Return whether a file's content is data sets, in either of their two forms, or one set, and no run."""
    return not isinstance(document, dict) or "datasets" in document or _is_one(document)


def read_datasets(path: str | Path) -> Datasets | None:
    """Return the data sets of a data set file, or of a folder of data; None for any other JSON file.

    Raises:
        DataError: with every problem found.
        ConfigError: the file is missing or no JSON.
    """
    named = user_path(path).is_dir() or is_datasets(_document(Path(path)))
    return load_datasets(path, Path()) if named else None


def _tidy(path: Path) -> Path:
    """Remove ``..`` where that leads to the same file, which it need not do beside symbolic links."""
    plain = Path(os.path.normpath(path))
    return plain if path.exists() and plain.exists() and plain.samefile(path) else path


def _linked(blocks: tuple[Block, ...], source: Path, root: str) -> Datasets:
    found = Findings(source, root=root)
    for i, block in enumerate(blocks):
        complete_block(block, found.at(i), found)
    links = link(blocks, found)
    problems = _circles(blocks, str(source), root)
    # A circle also causes links to the wrong kind of set; reporting the circle is enough.
    places = {problem.path for problem in problems}
    problems += (problem for problem in found.problems if problem.path not in places)
    problems += drawing_problems(blocks, str(source), root)
    if problems:
        raise DataError(problems)
    for i, partners in links.items():
        blocks[i]["conditioning_data"] = [blocks[j]["id"] for j in partners]
    return Datasets(source=source, blocks=blocks, root=root, links=links)


def _circles(blocks: Sequence[Block], file: str, root: str) -> list[Problem]:
    """Return a problem for each set whose ``source_dataset_id`` leads back to itself."""
    source_of = {block["id"]: block["source_dataset_id"] for block in blocks}
    problems = []
    for i, block in enumerate(blocks):
        trail = [block["id"]]
        while (source := source_of.get(trail[-1])) is not None and source not in trail:
            trail.append(source)
        if source == block["id"]:
            chain = " -> ".join(repr(name) for name in [*trail, source])
            message = f"the links go in a circle: {chain}; a conditioning set belongs to an image set"
            problems.append(Problem(message, file, f"{json_path([i], root)}.source_dataset_id"))
    return problems

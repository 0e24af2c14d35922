"""Find the folder and the files of a data set block; a missing one is a problem, not an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, TypeVar

from flowhooks.data.assets import why
from flowhooks.data.files import Tree
from flowhooks.data.findings import Findings
from flowhooks.data.sources.tables import BadTable
from flowhooks.data.storage import Place, Refused, open_place

T = TypeVar("T")
#: The tables of an `imagefolder`.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
#: Suffix -> the type that reads such files.
KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".tar": "webdataset"}


@contextmanager
def problems_of(name: str, where: str, found: Findings) -> Iterator[None]:
    """Report a table or shard that cannot be read as a problem about `name` at the JSON path `where`."""
    try:
        yield
    except (BadTable, Refused) as error:
        found.problem(where, f"{name}: {error}")
    except OSError as error:
        found.problem(where, f"{error.filename or name} cannot be read ({why(error)})")


def or_problem(question: Callable[[], T], name: str, where: str, found: Findings) -> T | None:
    """Return the result of a call; None where a place cannot be read, which is then a problem about `name`."""
    try:
        return question()
    except Refused as error:
        found.problem(where, f"{name} {error}")
    except OSError as error:
        found.problem(where, f"{error.filename or name} cannot be read ({why(error)})")
    return None


def open_folder(block: dict[str, Any], where: str, found: Findings) -> tuple[Place, Tree] | None:
    """Return the folder of a block and all files below it."""
    located = _locate(block, where, found)
    if located is None:
        return None
    place, file = located
    if file is not None:
        kind = KINDS.get(PurePosixPath(file).suffix.lower())
        remedy = f"set `type` to {kind!r}" if kind else "name the folder that holds it"
        found.problem(where, f"{place.name}/{file} is a file, not a folder; {remedy}")
        return None
    tree = or_problem(place.tree, place.name, where, found)
    if tree is None:
        return None
    refused = [f"{name} {reason}" for name, reason in tree.refused]
    remedy = "copy what links lead to into the folder, rename the others, or remove them"
    found.listing(where, refused, "links, names and special files that are not followed", remedy)
    return place, tree


def open_files(
    block: dict[str, Any], where: str, suffixes: Sequence[str], found: Findings
) -> tuple[Place, list[str]] | None:
    """Return the folder of a block and the files of these suffixes directly in it, or the one file that the block
    names."""
    located = _locate(block, where, found)
    if located is None:
        return None
    place, file = located
    names = or_problem(lambda: place.matching(file or "*"), place.name, where, found)
    if names is None:
        return None
    fitting = [name for name in names if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")]
    if not fitting:
        wanted = " or ".join(suffixes)
        found.problem(where, f"{place.name}{f'/{file}' if file else ''} holds no {wanted} file; name one, or a folder")
        return None
    return place, fitting


def files_of(block: dict[str, Any], suffixes: Sequence[str], found: Findings) -> tuple[Place, list[str]]:
    """Return what `open_files` finds. Raises Refused or OSError instead of reporting a problem."""
    place, file = open_place(block["instance_data_dir"], found.source)
    return place, [name for name in place.matching(file or "*") if name.lower().endswith(tuple(suffixes))]


def _locate(block: dict[str, Any], where: str, found: Findings) -> tuple[Place, str | None] | None:
    try:
        return open_place(block["instance_data_dir"], found.source)
    except Refused as error:
        found.problem(where, str(error))
    except OSError as error:
        found.problem(where, f"{block['instance_data_dir']!r} cannot be opened ({why(error)})")
    return None

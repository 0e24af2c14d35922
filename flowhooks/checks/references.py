"""Check that a pipeline takes the references of a run's data, and what an ambiguous set holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from flowhooks.arguments import takes_images, takes_own
from flowhooks.checks.library import call_arguments
from flowhooks.checks.pipeline import INDEX, pipeline_folder
from flowhooks.checks.planning import plan_run
from flowhooks.data.blocks import REFERENCE_TYPE, REJECTED_TYPES, Datasets
from flowhooks.data.given_images import by_argument, open_images
from flowhooks.documents.document import read_settings
from flowhooks.errors import ConfigError, Problem

if TYPE_CHECKING:
    from flowhooks.config import Run


def with_references(run: Run) -> Datasets | None:
    """Return the data of a run. Where no hook reads a rejected side and the pipeline takes an image, sets of
    `reference_strict` and `reference_loose` hold references, as other trainers mean by these words."""
    data = run.data
    if data is None or "data:reference" in data.provides or _reads_rejected(run) or not _pictured(run):
        return data
    blocks = tuple(
        {**block, "conditioning_type": REFERENCE_TYPE} if block["conditioning_type"] in REJECTED_TYPES else block
        for block in data.blocks
    )
    return replace(data, blocks=blocks)


def reference_problems(run: Run) -> Iterator[Problem]:
    """Yield why the pipeline cannot take the references of data or validation, and images of validation that cannot
    be read."""
    yield from _validation_problems(run)
    known = _known(run)
    data = with_references(run)
    if known is None or data is None or "data:reference" not in data.provides:
        return
    taken = sorted(name for name in known if takes_own(name))
    for argument in data.arguments:
        if argument is None and not any(map(takes_images, taken)):
            message = "holds references, and the pipeline takes no image; use one that edits images, or remove them"
            yield Problem(message, str(data.source), data.root)
        elif argument is not None and argument not in taken:
            message = f"holds references for {argument!r}; the pipeline takes images in {', '.join(taken) or 'nothing'}"
            yield Problem(message, str(data.source), data.root)


def _validation_problems(run: Run) -> Iterator[Problem]:
    for i, given in enumerate(run.validation["images"]):
        for name, paths in by_argument(given, "").items():
            try:
                open_images({name: paths}, "", f"$.validation.images[{i}]")
            except ConfigError as error:
                for problem in error.problems:
                    yield Problem(f"{problem.file} {problem.message}", str(run.source), problem.path)


def _known(run: Run) -> frozenset[str] | None:
    folder = pipeline_folder(run.model)
    if folder is None:
        return None
    try:
        name = read_settings(folder / INDEX).get("_class_name")
    except ConfigError:
        # Reported with the pipeline.
        return None
    return call_arguments(name) if isinstance(name, str) else None


def _pictured(run: Run) -> bool:
    return any(map(takes_images, _known(run) or ()))


def _reads_rejected(run: Run) -> bool:
    """Return whether the run's hooks need the rejected side."""
    try:
        plan_run(run, run.provides - {"data:rejected"})
    except ConfigError:
        return True
    return False

"""Check what the output folder already holds, and the checkpoint that a run resumes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flowhooks.adapters.names import ADAPTER_FILES, PEFT_CONFIG_FILE
from flowhooks.config import Run
from flowhooks.data.blocks import Datasets
from flowhooks.data.files import realpath
from flowhooks.errors import Problem
from flowhooks.manifest import (
    CARD,
    EVENTS,
    HISTORY,
    LOADER,
    METRICS,
    MODULES,
    PIPELINE,
    REPORT,
    REPORT_MARK,
    RUN,
    VALIDATION,
    checkpoints_in,
    no_checkpoint,
)
from flowhooks.reading import MAX_TEXT, parse, read_text, user_path

LATEST = "latest"
_WEIGHTS = (*ADAPTER_FILES, PEFT_CONFIG_FILE, MODULES, PIPELINE)
#: Kinds of data set that train on every image below their folder.
_WALKED = ("local", "imagefolder", "huggingface")


def output_problems(run: Run, resume: str | None) -> Iterator[Problem]:
    """Yield problems with files that a run would overwrite, with an output folder inside a data set, and with a missing
    checkpoint."""
    folder = Path(run.output_dir)
    own = realpath(user_path(resume)).parent == realpath(folder) if resume not in (None, LATEST) else resume == LATEST
    if resume is not None and resume != LATEST:
        missing = no_checkpoint(user_path(resume))
        if missing is not None:
            yield Problem(missing, resume)
            return
    if (left := _earlier_results(folder, resumed=own)) is not None:
        yield Problem(left, str(folder))
    yield from _foreign(folder)
    yield from _sources_beside(run, folder)
    yield from _among_the_data(run)


def holds_results(folder: Path) -> bool:
    """Return whether an output folder holds checkpoints, weights or logged steps of an earlier run."""
    return _earlier_results(folder, resumed=False) is not None


def _earlier_results(folder: Path, *, resumed: bool) -> str | None:
    """Say which results of an earlier run would be overwritten, and what to do; None if none would.

    Args:
        resumed: whether the run resumes from a checkpoint of this folder, or starts at step 0 where it has none.
    """
    elsewhere = "choose another `output_dir`, or move that folder away"
    checkpoints = checkpoints_in(folder)
    if checkpoints:
        go_on = f"resume it with `--resume {LATEST}`, {elsewhere}"
        return None if resumed else f"holds {checkpoints[-1].name} of an earlier run; {go_on}"
    weights = next((name for name in _WEIGHTS if (folder / name).exists()), None)
    if weights is not None:
        return (
            f"holds {weights} of a finished earlier run, and no checkpoint to resume from; {elsewhere}. With "
            "`adapter.init_from` a new run starts from an adapter there"
        )
    logged = folder / HISTORY
    if not resumed and logged.is_file() and logged.stat().st_size:
        return (
            f"holds {HISTORY} of an earlier run, which left no checkpoint; {elsewhere}. With `--resume {LATEST}` it "
            "starts there again at step 0"
        )
    return None


def _foreign(folder: Path) -> Iterator[Problem]:
    """Yield a problem for each file that a run would overwrite and that no run wrote."""
    for name, written_by_a_run in _MARKS.items():
        file = folder / name
        if (file.exists() or file.is_symlink()) and not _marked(file, written_by_a_run):
            message = f"holds a {name} that no run wrote, and this run would overwrite it; choose another `output_dir`"
            yield Problem(message, str(folder))
    pictures = next((folder / VALIDATION).glob("step_*.png"), None)
    if pictures is not None and not (folder / RUN).exists():
        message = f"holds {VALIDATION}/{pictures.name} and no {RUN}, so no run wrote it; choose another `output_dir`"
        yield Problem(message, str(folder))


def _marked(file: Path, mark: Callable[[str], bool]) -> bool:
    try:
        return mark(read_text(file, MAX_TEXT))
    except (OSError, ValueError):
        return False


def _is_resolved(text: str) -> bool:
    """Return whether this is a run with every default filled in and no shorthand, as a run writes it and people do
    not."""
    document = parse(text)
    sections = {"model", "adapter", "data", "hooks", "training", "validation", "logging", "output_dir", "cache_dir"}
    return (
        isinstance(document, dict)
        and document.keys() >= sections
        and not document.keys() & {"$schema", "method"}
        and isinstance(document["training"], dict)
        and document["training"].keys() >= {"optimizer", "lr_scheduler", "seed", "use_ema", "mixed_precision"}
        and (document["data"] is None or isinstance(document["data"], dict))
    )


def _is_last_metrics(text: str) -> bool:
    found = parse(text)
    return (
        isinstance(found, dict)
        and found.keys() >= {"learning_rate", "epoch"}
        and not any(isinstance(value, (dict, list)) for value in found.values())
    )


def _is_history(text: str) -> bool:
    first = text.partition("\n")[0]
    # Empty until the first step is logged; the last line of a killed process may be cut off.
    return not first or first.startswith('{"step": ')


#: File of a run whose name other programs use too -> whether a text in a file of that name is a run's.
_MARKS: Mapping[str, Callable[[str], bool]] = {
    RUN: _is_resolved,
    CARD: lambda text: "Trained with flowhooks from " in text,
    METRICS: _is_last_metrics,
    HISTORY: _is_history,
    EVENTS: _is_history,
    REPORT: lambda text: text.startswith(REPORT_MARK),
    LOADER: lambda text: "\ndef load_flow_map(" in text,
}


def _sources_beside(run: Run, folder: Path) -> Iterator[Problem]:
    """Yield a problem if the run file or the data set file is in the output folder. The run.json that a run wrote there
    may be trained: it is written again unchanged."""
    sources = {"run file": run.source}
    if run.data is not None and run.data.source != run.source:
        sources["data set file"] = run.data.source
    for what, file in sources.items():
        beside = file.is_file() and realpath(file).parent == realpath(folder)
        if beside and not (file.name == RUN and _marked(file, _is_resolved)):
            message = f"is the folder of the {what} {file.name}; a run has a folder of its own, choose another"
            yield Problem(message, str(run.source), "$.output_dir")


def _among_the_data(run: Run) -> Iterator[Problem]:
    """Yield a problem for each output or cache folder whose images a data set would read as its own."""
    for key, place in (("output_dir", run.output_dir), ("cache_dir", run.cache_dir)):
        for name, data in [] if run.data is None else _walked(run.data):
            inside = realpath(Path(place))
            if inside.is_relative_to(data) and not any(p.startswith(".") for p in inside.relative_to(data).parts):
                message = (
                    f"{place} is inside the folder of the data set {name!r}, {data}, which would train on the "
                    f"images that a run generates; name a `{key}` outside it"
                )
                yield Problem(message, str(run.source), f"$.{key}")
                break


def _walked(data: Datasets) -> Iterator[tuple[str, Path]]:
    """Yield (id, folder) of the data sets that read all images below a folder of this disk."""
    for block in data.blocks:
        named = block["instance_data_dir"]
        if block["type"] in _WALKED and not block["disabled"] and "://" not in named:
            folder = realpath(data.source.parent / user_path(named))
            if folder.is_dir():
                yield block["id"], folder

"""What the folder of a finished run says of its base model. It may be a stranger's: nothing else of it is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowhooks.adapters.names import ADAPTER_FILES
from flowhooks.config.run import resolve_run
from flowhooks.documents.document import read_json
from flowhooks.errors import ConfigError, ModelError, Problem
from flowhooks.manifest import PIPELINE, RUN, damage


def model_section(folder: Path) -> dict[str, Any]:
    """The complete ``model`` section of the run in a folder.

    Raises:
        ConfigError: no run file, or none of flowhooks.
        ModelError: it is a checkpoint's, and is not as it was written.
    """
    file = folder / RUN
    if not file.is_file():
        raise ConfigError(Problem("there is no such file; give a run's output folder", str(file)))
    if (fault := damage(file)) is not None:
        raise ModelError(fault)
    document = read_json(file)
    section = document.get("model") if isinstance(document, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(
            Problem("is no run file of flowhooks, it has no `model`; give a run's output folder", str(file))
        )
    return dict(resolve_run({"model": section, "hooks": []}, file).model)


def read_run(folder: Path) -> tuple[dict[str, Any], Path | None]:
    """The complete ``model`` section of a finished run, and its adapter's file; None where it trained the whole
    transformer, whose pipeline the section then names.

    Raises:
        ConfigError: no run file.
        ModelError: no weights yet.
    """
    filled = model_section(folder)
    if (folder / PIPELINE).is_dir():
        return {
            **filled,
            "pretrained_model_name_or_path": str(folder / PIPELINE),
            "revision": None,
            "variant": None,
        }, None
    found = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not found:
        raise ModelError(
            f"{folder}: this run has written no weights yet; finish it with `flowhooks train ... --resume latest`"
        )
    return filled, found[0]

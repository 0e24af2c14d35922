"""The pipeline that a finished run, or a model with a LoRA, stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowhooks.adapters import load_adapter
from flowhooks.adapters.files import LORA_FILE, LYCORIS_FILE, PEFT_FILE
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError, ModelError, Problem
from flowhooks.train.load import load_pipeline
from flowhooks.train.outputs import PIPELINE, RUN


def restore_pipeline(model_or_run: str, lora: str | None, dtype: str) -> tuple[Any, Mapping[str, Any]]:
    """The pipeline, on the best device, and the arguments its calls take.

    Args:
        model_or_run: a run's output folder, with its weights put on its base model; or a model folder, a Hub id,
            ``digits``.
        lora: an adapter to use, in place of the run's own.
        dtype: fp32, bf16 or fp16.

    Raises:
        ModelError, AdapterError: not there, or it does not fit.
    """
    folder = Path(model_or_run).expanduser()
    section, own = _of_run(folder) if (folder / RUN).is_file() else (_defaults(model_or_run), None)
    pipe = load_pipeline({**section, "dtype": dtype})
    chosen = Path(lora) if lora is not None else own
    if chosen is not None:
        load_adapter(pipe.transformer, chosen)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return pipe.to(device), section["pipeline_arguments"]


def _of_run(folder: Path) -> tuple[dict[str, Any], Path | None]:
    file = folder / RUN
    try:
        section = json.loads(file.read_text(encoding="utf-8"))["model"]
        filled = {**_defaults(section["pretrained_model_name_or_path"]), **section}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            Problem(f"is no run file of flowhooks ({error}); give a run's output folder", str(file))
        ) from error
    if (folder / PIPELINE).is_dir():
        return {
            **filled,
            "pretrained_model_name_or_path": str(folder / PIPELINE),
            "revision": None,
            "variant": None,
        }, None
    found = [folder / name for name in (LORA_FILE, LYCORIS_FILE, PEFT_FILE) if (folder / name).is_file()]
    if not found:
        raise ModelError(
            f"{folder}: this run has written no weights yet; finish it with `flowhooks train ... --resume latest`"
        )
    return filled, found[0]


def _defaults(name: str) -> dict[str, Any]:
    """A complete ``model`` section for a name."""
    return dict(
        resolve_run({"model": {"pretrained_model_name_or_path": name}, "hooks": []}, Path("flowhooks sample")).model
    )

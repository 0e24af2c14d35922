"""Write the outputs of a run on the main process: weights, run, metrics, card."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flowhooks.config import Run
from flowhooks.errors import TrainingError
from flowhooks.export import CardPicture, write_card
from flowhooks.export.privacy import without_local_paths
from flowhooks.files import REFUSALS, aside_of, share, sweep
from flowhooks.hooks.weight_average.hook import averaged
from flowhooks.kernel.session import Session
from flowhooks.manifest import METRICS, PIPELINE, RUN, VALIDATION
from flowhooks.modules_file import save_modules
from flowhooks.train.files import refused, write_json

_PACKAGES = ("flowhooks", "torch", "diffusers", "transformers", "peft", "lycoris-lora", "accelerate")


def sweep_outputs(run: Run) -> None:
    """Remove what a killed run of this folder left half-written. The caller must hold the folder's lock."""
    for folder in (Path(run.output_dir), Path(run.output_dir) / VALIDATION):
        sweep(folder)


def write_run(run: Run) -> Path:
    """Write the resolved run at the start, so that a killed run leaves its settings."""
    return write_json(Path(run.output_dir) / RUN, run.document, TrainingError)


def write_outputs(
    run: Run, session: Session, pipe: Any, metrics: Mapping[str, float], pictures: list[CardPicture]
) -> None:
    """Write the trained weights and the files that describe them.

    Under ``use_ema`` these are the *averaged* weights; the last checkpoint has the others too. An adapter becomes its
    own file, a trained transformer a whole Diffusers pipeline in ``pipeline/``, modules of hooks
    ``flowhooks_modules.safetensors``. The run, without local paths, and the versions it was made with are in each
    file's header.

    Raises:
        TrainingError, AdapterError: the disk refuses.
    """
    folder, header = Path(run.output_dir), _header(run)
    with averaged(session):
        if session.adapter is not None:
            session.adapter.save(folder, header)
        else:
            _save_pipeline(pipe, folder / PIPELINE)
        save_modules(folder, session.assembly, session.model, header)
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    write_json(folder / METRICS, finite, TrainingError)
    prompts = () if run.data is None else run.data.instance_prompts
    write_card(folder, document=run.document, metrics=finite, pictures=pictures, pipe=pipe, instance_prompts=prompts)


def write_intermediate(run: Run, session: Session, folder: Path) -> None:
    """Write into a checkpoint what sampling, exporting and starting from it need: the run, its adapter and the modules
    of hooks, as they would be written at the end. Under ``use_ema`` these are the *averaged* weights. For a run that
    trains the whole transformer nothing is written: it would be a second copy of the model.

    Raises:
        TrainingError, AdapterError: the disk refuses.
    """
    if session.adapter is None:
        return
    write_json(folder / RUN, run.document, TrainingError)
    with averaged(session):
        session.adapter.save(folder, _header(run))
        save_modules(folder, session.assembly, session.model, _header(run))


def _header(run: Run) -> dict[str, str]:
    return {
        "flowhooks.run": json.dumps(without_local_paths(run.document)),
        "flowhooks.versions": json.dumps(versions()),
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a run depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _save_pipeline(pipe: Any, target: Path) -> None:
    aside = aside_of(target)
    old = aside.with_suffix(".old")
    try:
        pipe.save_pretrained(aside, safe_serialization=True)
        share(aside)
        if target.exists():
            target.rename(old)
        aside.rename(target)
    except REFUSALS as error:
        raise TrainingError(refused(target, error)) from error
    finally:
        # On any exception in between, an interrupt included.
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)

"""Write the outputs of a run on the main process: weights, run, metrics, card."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.adapter_file import read_adapter, read_tensors
from flowhooks.adapters.names import ALPHA, first_few
from flowhooks.config import Run
from flowhooks.documents.privacy import without_local_paths
from flowhooks.errors import FlowhooksWarning, TrainingError
from flowhooks.export import CardPicture, write_card
from flowhooks.export.flow_map_loader import is_loadable, loader_source
from flowhooks.files import REFUSALS, aside_of, share, sweep
from flowhooks.hooks.weight_average.hook import averaged
from flowhooks.kernel.session import Session
from flowhooks.manifest import LOADER, METRICS, PIPELINE, RUN, VALIDATION
from flowhooks.modules_file import packed_modules
from flowhooks.pipeline import tell_place
from flowhooks.sampling.flow_map_steps import scheduled, stock_of
from flowhooks.sharding import whole_on_main
from flowhooks.train.files import refused, write_aside, write_json
from flowhooks.transfer import on_host

_PACKAGES = ("flowhooks", "torch", "diffusers", "transformers", "peft", "lycoris-lora", "accelerate")


def sweep_outputs(run: Run) -> None:
    """Remove what a killed run of this folder left half-written. The caller must hold the folder's lock."""
    for folder in (Path(run.output_dir), Path(run.output_dir) / VALIDATION):
        sweep(folder)


def write_run(run: Run) -> Path:
    """Write the resolved run at the start, so that a killed run leaves its settings."""
    return write_json(Path(run.output_dir) / RUN, run.document, TrainingError)


def write_outputs(
    run: Run,
    session: Session,
    pipe: Any,
    metrics: Mapping[str, float],
    pictures: list[CardPicture],
    *,
    main: bool = True,
) -> None:
    """Write the trained weights and the files that describe them.

    Under ``use_ema`` these are the *averaged* weights; the last checkpoint has the others too. An adapter becomes its
    own file, a trained transformer a whole Diffusers pipeline in ``pipeline/``, modules of hooks
    ``flowhooks_modules.safetensors``. The run, without local paths, and the versions it was made with are in each
    file's header. What was written is read back and compared with what was trained.

    Args:
        main: whether this process writes; where weights are sharded, the others help it to put them together.

    Raises:
        TrainingError, AdapterError: the disk refuses, a file is not what was trained or not finite, or the adapter in
            it changes nothing. Where a run draws its samples and its rewards said nothing, the last is a warning.
    """
    folder, header = Path(run.output_dir), _header(run)
    model: Any = session.model
    with averaged(session):
        if session.adapter is None:
            with whole_on_main(model.transformer):
                if main:
                    _save_pipeline(pipe, folder / PIPELINE)
        if not main:
            return
        _packed_trained(session, header)(folder)
        if session.adapter is not None and not _changes_anything(session.adapter.state_dict()):
            sentence = f"{folder}: the adapter in this folder changes nothing: each layer has a factor that is 0"
            if session.source is None:
                raise TrainingError(f"{sentence}; train on from another start, longer or at a higher rate")
            warnings.warn(f"{sentence}, as where no reward tells samples apart", FlowhooksWarning, stacklevel=2)
    if model.interval is not None and is_loadable(session.assembly.exported(), run.document):
        source = loader_source()
        write_aside(folder / LOADER, lambda aside: aside.write_text(source, encoding="utf-8"), TrainingError)
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    write_json(folder / METRICS, finite, TrainingError)
    prompts = () if run.data is None else run.data.instance_prompts
    write_card(folder, document=run.document, metrics=finite, pictures=pictures, pipe=pipe, instance_prompts=prompts)


def packed_intermediate(run: Run, session: Session) -> Callable[[Path], None]:
    """Copy what sampling, exporting and starting from a checkpoint need: the run, its adapter and the modules of hooks,
    as they would be written at the end. Return what writes the copies into a folder, now or later. Under ``use_ema``
    these are the *averaged* weights. Of a run that trains the whole transformer nothing is written: it would be a
    second copy of the model.

    What is returned raises TrainingError or AdapterError: the disk refuses, or a file is not what was trained.
    """
    if session.adapter is None:
        return lambda folder: None
    with averaged(session):
        write_trained = _packed_trained(session, _header(run))

    def write(folder: Path) -> None:
        write_json(folder / RUN, run.document, TrainingError)
        write_trained(folder)

    return write


def _packed_trained(session: Session, header: Mapping[str, str]) -> Callable[[Path], None]:
    """Copy the adapter and what hooks trained beside it. What is returned writes both and reads them back."""
    adapter, modules = session.adapter, session.assembly.exported().items()
    write_adapter = None if adapter is None else adapter.packed(header)
    trained = {} if adapter is None else on_host(adapter.written())
    write_modules = packed_modules(session.assembly, session.model, header)
    beside = on_host({f"{name}.{key}": t for name, module in modules for key, t in module.state_dict().items()})

    def write(folder: Path) -> None:
        if write_adapter is not None:
            file = write_adapter(folder)
            _require_equal(file, read_adapter(file).tensors, trained)
        if write_modules is not None:
            file = write_modules(folder)
            _require_equal(file, read_tensors(file, integers=True)[0], beside)

    return write


def _require_equal(file: Path, found: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Raises TrainingError naming tensors of a file that are not those that were trained."""
    wrong = [
        name
        for name in sorted({*found, *trained})
        if name not in found or name not in trained or not torch.equal(found[name], trained[name])
    ]
    if wrong:
        raise TrainingError(
            f"{file}: {len(wrong):,} of {len(trained):,} tensors are not those that were trained ({first_few(wrong)}); "
            "check the disk, and write it again with --resume latest"
        )


def _changes_anything(state: Mapping[str, Tensor]) -> bool:
    """Whether an adapter has an effect. In every kind a layer's change is a product of its tensors."""
    empty = {_layer_of(name) for name, value in state.items() if not name.endswith(ALPHA) and not value.any()}
    return any(_layer_of(name) not in empty for name in state)


def _layer_of(name: str) -> str:
    """The layer in a tensor's name: what stands before its factor, `lora_A`, `hada_w1_b`, `lokr_w2` or the like."""
    return name.removesuffix(".weight").rpartition(".")[0]


def _header(run: Run) -> dict[str, str]:
    adapter = run.document["adapter"]
    # A training adapter is no part of the weights, and they are used without it; the card says that there was one.
    own = None if adapter is None else {key: value for key, value in adapter.items() if key != "training_adapter"}
    return {
        "flowhooks.run": json.dumps(without_local_paths({**run.document, "adapter": own})),
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
        # A model of Diffusers alone.
        with scheduled(pipe, stock_of(pipe.scheduler)):
            pipe.save_pretrained(aside, safe_serialization=True)
        tell_place(aside, target)
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

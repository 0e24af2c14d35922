"""Write the pipeline of a run with its adapter merged into the weights, or its network alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowhooks.adapters.fit import adapter_below
from flowhooks.adapters.load import load_adapter
from flowhooks.adapters.merge import merge_adapter
from flowhooks.adapters.names import refuse_other_file
from flowhooks.config.run import read_run
from flowhooks.errors import ModelError
from flowhooks.files import REFUSALS, whole
from flowhooks.manifest import CHECKPOINT, MODULES
from flowhooks.pipeline import load_pipeline, tell_place
from flowhooks.probe.runs import first_network
from flowhooks.reading import user_path

#: Format -> whether the network alone is written.
MERGED = {"merged": False, "merged-network": True}


def export_merged(run: Path, dialect: str, output: Path | None) -> Path:
    """Write a run's base model with its adapter merged, at the run's own ``model.dtype``. Returns its folder.

    Args:
        run: output folder of a run, or a checkpoint in it.
        dialect: one of `MERGED`: ``merged``, a Diffusers pipeline, or ``merged-network``, the trained network's own
            folder.
        output: folder to write; default: named after the dialect in the run's folder, and for a checkpoint beside it.

    Raises:
        ConfigError: ``run`` is no folder of a run.
        ModelError: it has written no weights, trained the whole network, or trained what no merged weight holds; the
            output exists already or cannot be written.
        AdapterError: the adapter does not fit the base.
    """
    run = user_path(run)
    if run.is_file():
        raise ModelError(f"{run}: is a file; format {dialect!r} needs the folder of a run, whose base model it merges")
    inside = CHECKPOINT.fullmatch(run.absolute().name)
    default = run.absolute().parent / f"{run.absolute().name}_{dialect}" if inside else run / dialect
    target = default if output is None else user_path(output)
    refuse_other_file(target, files=False)
    if target.exists():
        raise ModelError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    section, adapter = read_run(run)
    if adapter is None:
        raise ModelError(f"{run}: trained the whole network; its `pipeline` folder is what you want")
    if (run / MODULES).is_file():
        raise ModelError(
            f"{run / MODULES}: a hook trained modules beside the adapter, and a merged model has no place for them; "
            "without them it would compute something else. Sample with `flowhooks sample`"
        )
    if (below := adapter_below(adapter)) is not None:
        raise ModelError(
            f"{adapter}: was off above sigma {below:g} in training, and merged weights are always on. Use the LoRA, "
            "switched as the model card says"
        )
    pipe = load_pipeline(section)
    name = section["component"] or first_network(pipe)
    network = getattr(pipe, name)
    merge_adapter(load_adapter(network, adapter, pipeline=pipe))
    return save_whole(network if MERGED[dialect] else pipe, target)


def save_whole(part: Any, target: Path) -> Path:
    """Save a pipeline or a network as a folder that is whole or not there. Returns it.

    Raises:
        ModelError: the disk refuses.
    """
    try:
        with whole(target, alike=False) as aside:
            part.save_pretrained(aside, safe_serialization=True)
            tell_place(aside, target)
    except REFUSALS as error:
        raise ModelError(f"{target}: cannot be written ({error}); free space, or choose another output") from error
    return target

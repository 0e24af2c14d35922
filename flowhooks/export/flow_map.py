"""Export a flow map as one file under original names: its LoRA and its second time, which the ComfyUI node in
``integrations/comfyui`` reads."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from flowhooks.adapters.adapter_file import read_tensors, write_tensors
from flowhooks.adapters.fit import adapter_below
from flowhooks.adapters.network import Network, network_in, network_told
from flowhooks.documents.privacy import is_local_path, last_part
from flowhooks.errors import ModelError
from flowhooks.export.dialects import Exported, export_adapter
from flowhooks.export.second_time import TrainedSecondTime, read_second_time
from flowhooks.manifest import CHECKPOINT, MODULES
from flowhooks.naming import Family, TimeEmbedding, families, family_of
from flowhooks.reading import user_path
from flowhooks.restore import read_run

FORMAT = "flow-map"
#: Key of the header that says what the second time means, and the number of that description.
HEADER, VERSION = "flowhooks.flow_map", 1
#: A block's number in a name.
_BLOCK = re.compile(r"\.\d+\.")
#: What the names of the second time's tensors begin with.
PREFIX = "second_time."


@dataclass(frozen=True, kw_only=True)
class ExportedFlowMap:
    """Describes a file that was written.

    Args:
        adapter: the part that is an adapter, as its own export describes it.
        family: the family of networks that it is for.
        base: name of the model that it was trained on.
    """

    adapter: Exported
    family: str
    base: str


def export_flow_map(
    run: Path, output: Path | None, *, model: Path | None = None, as_lora: int | None = None, leave_out: bool = False
) -> ExportedFlowMap:
    """Write the adapter of a run, as format ``comfyui`` does, and its second time into one file.

    Args:
        run: output folder of a run with ``time_conditioning``, or a checkpoint in it.
        output: a .safetensors file, or a folder; default: ``flow_map.safetensors`` in ``run``, and for a checkpoint
            beside it.
        model, as_lora, leave_out: as `export_adapter` takes them.

    Raises:
        ConfigError: ``run`` is no folder of a run.
        ModelError: it trained no second time or the whole network, its family's embedding of the time is not known,
            its adapter was off above a sigma, or the output exists already.
        AdapterError: the adapter cannot be written under original names.
    """
    run = user_path(run)
    if run.is_file():
        raise ModelError(
            f"{run}: is a file; format {FORMAT!r} needs the folder of a run, which has the second time too"
        )
    section, adapter = read_run(run)
    second = read_second_time(run, FORMAT)
    family, time = _known(run, second)
    if adapter is None:
        raise ModelError(f"{run}: trained the whole network, and format {FORMAT!r} holds an adapter and a second time")
    if (below := adapter_below(adapter)) is not None:
        raise ModelError(
            f"{adapter}: was off above sigma {below:g} in training, and ComfyUI's LoRA is always on; it cannot be "
            "exported as a flow map"
        )
    target = _target(run, output)
    if target.exists():
        raise ModelError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / target.name
        written = export_adapter(adapter, "comfyui", part, model=model, as_lora=as_lora, leave_out=leave_out)
        tensors, header = read_tensors(part)
    network = network_told(header, str(adapter)) if model is None else network_in(user_path(model))
    base = section["pretrained_model_name_or_path"]
    base = last_part(base) if is_local_path(base) else base
    about = {**_about(second, family, time), "base": base, "layers": outline(family, network)}
    write_tensors(target, {**tensors, **_native(second, family, time)}, {**header, HEADER: json.dumps(about)})
    # Programs that read the adapter alone do not sample a flow map.
    written = replace(written, file=target, readings=())
    return ExportedFlowMap(adapter=written, family=family.name, base=base)


def _known(run: Path, second: TrainedSecondTime) -> tuple[Family, TimeEmbedding]:
    """Return the network's family, and how it embeds the time. Raises ModelError where that is not known."""
    family = family_of(second.network)
    if family is None or family.time is None:
        known = ", ".join(kind for each in families().values() if each.time is not None for kind in each.classes)
        raise ModelError(
            f"{run / MODULES}: was trained for {second.network}; format {FORMAT!r} is known for {known}. Sample it "
            "with flowhooks"
        )
    return family, family.time


def _target(run: Path, output: Path | None) -> Path:
    if output is None:
        inside = CHECKPOINT.fullmatch(run.absolute().name)
        return run.absolute().parent / f"{run.absolute().name}_flow_map.safetensors" if inside else _named(run)
    path = user_path(output)
    return path if path.suffix == ".safetensors" else _named(path)


def _named(folder: Path) -> Path:
    return folder / "flow_map.safetensors"


def _about(second: TrainedSecondTime, family: Family, time: TimeEmbedding) -> dict[str, Any]:
    """Return what the header says: the second embedding is that of ``scale * d + offset``, with d the end of the
    interval (mode ``r``) or its length (``t-r``) in sigma."""
    scale, offset = time.angle(second.options["timestep_scale"])
    return {
        "version": VERSION,
        "family": family.name,
        "network": second.network,
        "component": second.component,
        "gate": second.options["gate_value"],
        "mode": second.options["deltatime_type"],
        "scale": scale,
        "offset": offset,
    }


def outline(family: Family, network: Network | None) -> dict[str, list[int]]:
    """Return original name, with # for a block's number -> how many layers have it, and how many outputs and inputs
    these have together. Those that the family has and this network lacks are there with zeros.

    A program that has the original network compares these to know another one. It is empty where the network's layers
    are not known.
    """
    if network is None or not network.shapes:
        return {}
    sides: dict[str, tuple[int, int]] = {}
    for layer, shape in network.shapes.items():
        if layer in family.convolutions:
            sides[family.convolutions[layer]] = (shape[0], shape[1])
        elif len(shape) == 2 and (place := family.place(layer)) is not None:
            outputs, _ = sides.get(place.native, (0, 0))
            sides[place.native] = (outputs + shape[0], shape[1])
    found = {_BLOCK.sub(".#.", native): [0, 0, 0] for native in (*family.layers.values(), *family.fused)}
    for native, (outputs, inputs) in sides.items():
        total = found.setdefault(_BLOCK.sub(".#.", native), [0, 0, 0])
        total[:] = [total[0] + 1, total[1] + outputs, total[2] + inputs]
    return found


def _native(second: TrainedSecondTime, family: Family, time: TimeEmbedding) -> dict[str, Tensor]:
    """Return the second embedder's weights under the original names of the first's."""
    found = {}
    for key, tensor in second.weights.items():
        layer, _, part = key.rpartition(".")
        place = family.place(f"{time.module}.{layer}")
        if place is None or place.fused or place.swapped:
            raise ModelError(f"no original name is known for `{time.module}.{layer}` of {second.network}")
        found[f"{PREFIX}{place.native}.{part}"] = tensor
    return found

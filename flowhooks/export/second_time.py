"""Read the second time that a run trained beside its network, for formats that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flowhooks.adapters.adapter_file import read_tensors
from flowhooks.errors import ModelError
from flowhooks.manifest import MODULES
from flowhooks.modules_file import read_manifest

HOOK, EMBEDDER = "time_conditioning", "delta_embedder"


@dataclass(frozen=True, kw_only=True)
class TrainedSecondTime:
    """Holds a trained second time.

    Args:
        network: class name of the network that it was trained for.
        component: the network's name in its pipeline; None for the only one.
        options: the options of its hook.
        weights: the embedder's weights, by their names in it.
    """

    network: str
    component: str | None
    options: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def read_second_time(run: Path, dialect: str) -> TrainedSecondTime:
    """Return the second time in the folder of a run.

    Args:
        dialect: the format that it is for, which errors name.

    Raises:
        ModelError: there is none, or hooks trained more than that.
    """
    file = run / MODULES
    if not file.is_file():
        raise ModelError(
            f"{file}: missing, so this run trained no second time beside its network; format {dialect!r} is for runs "
            f"with the hook `{HOOK}` (a LoRA trained on a pipeline with a second time of its own loads there as it is)"
        )
    manifest = read_manifest(file)
    blocks = [block for block in manifest["hooks"] if block["type"] == HOOK]
    if len(blocks) != 1:
        raise ModelError(f"{file}: holds no second time; give a run with the hook `{HOOK}`")
    others = [block["type"] for block in manifest["hooks"] if block["type"] != HOOK]
    if others:
        raise ModelError(f"{file}: holds what {others[0]!r} trained too, which format {dialect!r} has no place for")
    tensors, _ = read_tensors(file)
    mark = f".{EMBEDDER}."
    return TrainedSecondTime(
        network=manifest["network"],
        component=manifest["component"],
        options=dict(blocks[0]),
        weights={key.partition(mark)[2]: tensor for key, tensor in tensors.items() if mark in key},
    )

"""Loads exported files by ComfyUI's own code: ``python -m tests.comfyui.files --comfyui DIR``.

The change that it makes of every layer is compared with the trained one. With ``--write`` the result goes into
``docs/files.md``, by way of `RESULT` and ``python -m tests.naming.page``.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flowhooks.adapters.network import network_of
from flowhooks.errors import AdapterError
from flowhooks.export.dialects import export_adapter
from flowhooks.naming import Family, family_of, places_of, tool_version
from tests.comfyui.engine import arguments, build, comfy, start
from tests.comfyui.native import COUNTERPARTS
from tests.naming.rows import PIPELINES, pipeline
from tests.naming.sources import Source, error, write_for, write_kind

RESULT = Path(__file__).with_name("result.json")
EXACT = 2e-7
#: LoHa and LoKr are products of products, in single precision.
EXACT_KINDS = 1e-6


Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What ComfyUI made of a file.

    Args:
        right: number of Diffusers' layers whose change it makes.
        layers: number of layers in the file.
        claimed: number of layers that it took in the version that ``names.json`` was made with; None where that is not
            known.
        dropped: keys that it said it did not load.
        worst: largest relative error of a change that it makes.
    """

    right: int
    layers: int
    claimed: int | None
    dropped: tuple[str, ...]
    worst: float

    @property
    def as_said(self) -> bool:
        return self.claimed is None or (self.right == self.claimed and (not self.dropped or self.right < self.layers))


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect what ComfyUI says."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear, root = Ear(logging.WARNING), logging.getLogger()
    root.addHandler(ear)
    try:
        yield said
    finally:
        root.removeHandler(ear)


def changes_of(model: Any, file: Path, shapes: Shapes) -> tuple[dict[str, Tensor], list[str]]:
    """The changes that ComfyUI makes of a file, by original names, and the keys that it drops.

    Args:
        model: its patcher.
        shapes: original name -> shape of the layer's weight.
    """
    lora = comfy("lora")
    copy = model.clone()
    with listening() as said:
        names = lora.model_lora_keys_unet(copy.model, {})
        found = lora.load_lora(comfy("lora_convert").convert_lora(load_file(file)), names)
        taken = copy.add_patches(found, 1.0)
        lost = [str(key) for key in found if key not in taken]
        changes = {}
        for key, patches in copy.patches.items():
            name = key.removeprefix("diffusion_model.").removesuffix(".weight")
            if name in shapes:
                changes[name] = lora.calculate_weight(patches, torch.zeros(shapes[name]), key)
    return changes, [*lost, *(line for line in said if "lora key not loaded" in line or "not match" in line.lower())]


def natives(family: Family, changes: Mapping[str, Tensor], sides: Shapes) -> dict[str, Any]:
    """Original name -> the changes of all its rows, and which rows are whose."""
    found: dict[str, Any] = {}
    for layer, place in places_of(family, sides).items():
        rows = [sides[part][0] for part in place.parts]
        first = sum(rows[: place.parts.index(layer)])
        found.setdefault(place.native, {"shape": (sum(rows), sides[layer][1]), "parts": {}})
        change = changes.get(layer)
        if change is not None and place.swaps(*sides[layer]):
            change = change.roll(len(change) // 2, 0)
        found[place.native]["parts"][layer] = (slice(first, first + sides[layer][0]), change)
    return found


def compared(
    model: Any,
    family: Family,
    source: Source,
    file: Path,
    claimed: int | None,
    sides: Shapes,
    most: float,
) -> Loaded:
    wanted = natives(family, source.changes, sides)
    made, dropped = changes_of(model, file, {name: each["shape"] for name, each in wanted.items()})
    right, worst = 0, 0.0
    for native, each in wanted.items():
        for _, (rows, change) in each["parts"].items():
            if change is None or native not in made:
                continue
            off = error(made[native][rows].double(), change)
            worst = max(worst, off)
            right += off <= most
    return Loaded(right=right, layers=len(source.changes), claimed=claimed, dropped=tuple(dropped), worst=worst)


def one(name: str, folder: Path) -> dict[str, Loaded]:
    """Every layout of every kind for one network."""
    counterpart = COUNTERPARTS[name]
    network = pipeline(name).transformer if counterpart.network is None else counterpart.network()
    shapes = {layer: shape for layer, shape in network_of(network).shapes.items() if len(shape) == 2}
    family = family_of(type(network).__name__)
    assert family is not None
    model = build(counterpart.kind, counterpart.settings(network.config), None)
    own = {key.removeprefix("diffusion_model."): tuple(each.shape) for key, each in model.model.state_dict().items()}
    for native, each in natives(family, {}, shapes).items():
        if own.get(f"{native}.weight") != each["shape"]:
            print(f"  {name}: `{native}` {each['shape']} is {own.get(f'{native}.weight')} in ComfyUI")
    found = {}
    lora = write_for(folder, network, list(shapes))
    for dialect in ("portable", "comfyui", "kohya", "diffusers"):
        found[dialect] = _exported(model, family, lora, dialect, shapes, EXACT)
    some = write_for(folder, network, list(shapes)[::2], ranks=(4, 2))
    found["half of the layers, two ranks"] = _exported(model, family, some, "comfyui", shapes, EXACT)
    for kind in ("loha", "lokr", "locon"):
        source = write_kind(folder, network, kind)
        for dialect in ("comfyui", "lycoris"):
            found[f"{kind} as {dialect}"] = _exported(model, family, source, dialect, shapes, EXACT_KINDS)
    return {key: each for key, each in found.items() if each is not None}


def _exported(model: Any, family: Family, source: Source, dialect: str, shapes: Shapes, most: float) -> Loaded | None:
    file = source.file.with_name("exported.safetensors")
    file.unlink(missing_ok=True)
    written = None
    for leave_out in (False, True) if dialect == "portable" else (dialect in ("comfyui", "kohya"),):
        try:
            written = export_adapter(source.file, dialect, file, leave_out=leave_out)
            break
        except AdapterError:
            continue
    if written is None:
        return None
    told = [each.lost for each in written.readings if each.tool == "ComfyUI"]
    claimed = written.layers - len(told[0]) if told else None
    return compared(model, family, source, file, claimed, shapes, most)


def main() -> None:
    given = arguments(__doc__)
    version = start(given.comfyui)
    names: Sequence[str] = given.names or PIPELINES
    results: dict[str, Any] = {}
    for name in names:
        if name not in COUNTERPARTS:
            print(f"{name}: no such model was tried")
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = one(name, Path(folder))
        except Exception as fault:
            print(f"{name}: ComfyUI {version} has no such model, or another ({type(fault).__name__}: {fault})")
            continue
        results[name] = {key: f"{each.right}/{each.layers}" for key, each in found.items()}
        for key, each in found.items():
            said = "" if each.claimed is None else f", {each.claimed} in {tool_version('ComfyUI')}"
            word = "" if each.as_said else " DIFFERS"
            print(
                f"{name}: {key}: {each.right}/{each.layers}{said}, {len(each.dropped)} dropped, {each.worst:.1e}{word}"
            )
            for line in each.dropped[:3] if not each.as_said else ():
                print(f"    {line}")
    if given.write:
        document = {"version": version, "day": date.today().isoformat(), "layers": results}
        RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Find out what a first run must know of a pipeline: from its configuration where that is on this disk, and from a run
of `examples/` for the same model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowhooks.arguments import takes_images
from flowhooks.checks import hub
from flowhooks.checks.library import call_arguments
from flowhooks.checks.pipeline import NETWORKS, no_pipeline, pipeline_folder, read_index
from flowhooks.checks.sizes import FRAMES, edge_step
from flowhooks.digits.places import NAMES, PRETRAINING, example
from flowhooks.documents.document import read_settings
from flowhooks.errors import ConfigError, Problem
from flowhooks.reading import read_json

#: Bytes of a network's weights in fp32 from which a run holds them in bf16.
LARGE = 2**30
#: Edge of the squares that models are made for, where a configuration does not say.
USUAL_EDGE = 1024
#: Keys of an example's `validation` that say how the model samples.
_SAMPLING = ("num_inference_steps", "guidance_scale", "negative_prompt")


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """Holds what is known of a pipeline.

    Args:
        name: as a run names it.
        read: whether its configuration is on this disk; else nothing below is sure.
        edge: edge of the squares that it is made for, in pixels.
        step: what edges must be a multiple of, in pixels.
        large: whether its weights are held in bf16.
        images: whether it takes images beside the prompt.
        moving: whether it generates videos.
        recipe: the run of `examples/` for the same model; empty where there is none.
        source: that run's file, relative to `examples/`.
    """

    name: str
    read: bool
    edge: int = USUAL_EDGE
    step: int = 1
    large: bool = True
    images: bool = False
    moving: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def sampling(self) -> dict[str, Any]:
        """Return how the model samples, as far as an example says."""
        told = self.recipe.get("validation") or {}
        return {key: told[key] for key in _SAMPLING if isinstance(told.get(key), (int, float, str))}


def known_model(name: str, method: str) -> KnownModel:
    """Look at a pipeline without loading a weight.

    Raises:
        ConfigError: there is no such pipeline, or it cannot be read.
    """
    section = {"pretrained_model_name_or_path": name, "revision": None, "component": None}
    message = no_pipeline(name, None)
    # What may not be fetched now may be later.
    if message is not None and not (hub.is_hub_id(name) and hub.is_offline()):
        raise ConfigError(Problem(message, "--model"))
    source, recipe = _recipe(name, method)
    folder = pipeline_folder(section)
    if folder is None:
        return KnownModel(name=name, read=False, recipe=recipe, source=source)
    parts, kind = read_index(folder)
    network = next((part for part in NETWORKS if part in parts), None)
    arguments = call_arguments(kind) or frozenset()
    return KnownModel(
        name=name,
        read=True,
        edge=_edge(folder, network),
        step=edge_step(folder, parts) or 1,
        large=name not in NAMES and _bytes(folder, network) > LARGE,
        images=any(map(takes_images, arguments)),
        moving=bool(arguments.intersection(FRAMES)),
        recipe=recipe,
        source=source,
    )


def _edge(folder: Path, network: str | None) -> int:
    """Return the edge that a network's `sample_size` stands for."""
    try:
        size = read_settings(folder / str(network) / "config.json").get("sample_size")
        vae = read_settings(folder / "vae" / "config.json")
        channels = vae.get("block_out_channels")
    except ConfigError:
        return USUAL_EDGE
    if isinstance(size, int) and size > 0 and isinstance(channels, list) and channels:
        return int(size) * 2 ** (len(channels) - 1)
    return USUAL_EDGE


def _bytes(folder: Path, network: str | None) -> float:
    """Return the bytes of a network's weights in fp32, built without numbers; infinite where it cannot be."""
    from flowhooks.memory.plan import NotCounted, measure

    if network is None:
        return float("inf")
    try:
        return 4 * measure(folder / network, *read_index(folder)[0][network]).numbers or float("inf")
    except NotCounted:
        return float("inf")


def _recipe(name: str, method: str) -> tuple[str, dict[str, Any]]:
    """Return the file and the content of an example for a model, of this method if there is one."""
    root = example(PRETRAINING).parents[1]
    found = {}
    for file in sorted(root.glob("*/*.json")):
        document = read_json(file)
        model = document.get("model") if isinstance(document, dict) else None
        named = (model or {}).get("pretrained_model_name_or_path")
        if isinstance(named, str) and named.lower() == name.lower():
            found[file.relative_to(root).as_posix()] = document
    first = next((file for file in found if file.startswith(f"{method}/")), next(iter(found), ""))
    return first, found.get(first, {})

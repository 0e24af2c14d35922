"""Check that a network has the layers that an adapter is to be added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flowhooks.adapters.fit import Shapes, transformer_shapes
from flowhooks.adapters.names import PROJECTIONS, USE_DORA, named_by
from flowhooks.checks.pipeline import NETWORKS, pipeline_folder, read_index
from flowhooks.config import Run
from flowhooks.errors import AdapterError, ConfigError, Problem


def target_problems(run: Run) -> Iterator[Problem]:
    """Yield why ``adapter.target_modules`` does not select layers of the network.

    The headers of its weights suffice for most runs. Where they do not, the network is built from its configuration
    without weights, which imports torch and Diffusers.
    """
    folder = None if run.adapter is None else pipeline_folder(run.model)
    if run.adapter is None or folder is None:
        return
    try:
        parts = read_index(folder)[0]
    except ConfigError:
        return
    network = run.model["component"] or next((part for part in NETWORKS if part in parts), None)
    if network not in parts or not (folder / network / "config.json").is_file():
        return
    entries = run.adapter["target_modules"]
    yield from _dora_problems(run, transformer_shapes(folder, network))
    if not _sure(transformer_shapes(folder, network), entries):
        message = _refusal(folder / network, parts[network], entries)
        if message is not None:
            yield Problem(
                message.removeprefix("`adapter.target_modules`: "), str(run.source), "$.adapter.target_modules"
            )


def _dora_problems(run: Run, shapes: Shapes) -> Iterator[Problem]:
    """Yield why a DoRA cannot be on a convolution: PEFT measures its weights in the precision of autocast, in which a
    fresh adapter would change the prediction."""
    adapter, half = run.adapter or {}, run.model["dtype"] != "fp32"
    if not adapter.get(USE_DORA) or not half or run.training["mixed_precision"] == "no":
        return
    for entry in adapter["target_modules"] or ():
        for key, sides in shapes.items():
            if len(sides) > 2 and key.endswith(".weight") and named_by(key.removesuffix(".weight"), entry):
                message = (
                    f"{entry!r} names a convolution, and PEFT's DoRA measures its weights in the precision of "
                    f"`training.mixed_precision` {run.training['mixed_precision']!r}; leave it out, or set "
                    "`model.dtype` to 'fp32'"
                )
                yield Problem(message, str(run.source), "$.adapter.target_modules")
                return


def _sure(shapes: Shapes, entries: Sequence[str] | None) -> bool:
    """Return whether headers prove that every entry names layers, and only layers.

    A weight of two dimensions with a bias beside it is a Linear layer's, one of more dimensions a convolution's;
    without a bias it may be an embedding's, unless it has the name of an attention projection.
    """
    modules = {".".join(key.split(".")[:i]) for key in shapes for i in range(1, key.count(".") + 1)}

    def is_layer(name: str) -> bool:
        sides = len(shapes.get(f"{name}.weight", ()))
        projects = any(named_by(name, each) for each in PROJECTIONS)
        return sides in (3, 4, 5) or (sides == 2 and (projects or f"{name}.bias" in shapes))

    if entries is None:
        return any(is_layer(name) and any(named_by(name, each) for each in PROJECTIONS) for name in modules)
    named = {entry: [name for name in modules if named_by(name, entry)] for entry in entries}
    return bool(named) and all(names and all(map(is_layer, names)) for names in named.values())


def _refusal(folder: Path, part: tuple[str, str], entries: Sequence[str] | None) -> str | None:
    """Build the network of a configuration and return why choosing its layers fails; None if it does not, or if the
    network cannot be built."""
    import diffusers
    import torch

    from flowhooks.adapters.targets import find_targets

    kind = getattr(diffusers, part[1], None)
    if part[0] != "diffusers" or kind is None:
        return None
    try:
        with torch.device("meta"):
            network = kind.from_config(kind.load_config(folder))
    except Exception:  # a configuration that builds no network is reported when its weights load
        return None
    try:
        find_targets(network, entries)
    except AdapterError as error:
        return str(error)
    return None

"""Read single weights of a base model from its folder: what a DoRA changes depends on them."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowhooks.adapters.names import unreadable
from flowhooks.errors import AdapterError


class BaseWeights:
    """Reads weights of a network, one at a time.

    Args:
        folder: of a pipeline, or of the network itself.
        component: the network's name in the pipeline.

    Raises:
        AdapterError: it cannot be read.
    """

    def __init__(self, folder: Path, component: str = "transformer"):
        self.folder = folder / component if (folder / component).is_dir() else folder
        self._files: dict[str, Path] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as handle:
                    self._files |= dict.fromkeys(handle.keys(), file)
            except (SafetensorError, OSError) as error:
                raise AdapterError(unreadable(file, error)) from error

    def weight(self, layer: str) -> Tensor:
        """Return the weight ``[out, ...]`` of a layer. Raises `AdapterError` where there is none, or none of floats."""
        key = f"{layer}.weight"
        if key not in self._files:
            raise AdapterError(f"{self.folder}: has no `{key}`. Give the folder of the pipeline that was trained on.")
        with safe_open(self._files[key], framework="pt") as handle:
            found: Tensor = handle.get_tensor(key)
        if found.dtype.itemsize < 2 or not found.is_floating_point():
            raise AdapterError(
                f"{self._files[key]}: `{key}` is stored as {found.dtype}, and a DoRA needs the weight's numbers. Give "
                "the folder of an unquantised pipeline."
            )
        return found

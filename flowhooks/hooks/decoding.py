"""Clean latents as pictures, while a run keeps its VAE parked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.probe.recorder import execution_device


class Decoder:
    """Decodes through the pipeline's own VAE, without gradient.

    Raises:
        ModelError: the pipeline has no VAE.
    """

    def __init__(self, model: Any, who: str):
        self.model = model
        if not isinstance(getattr(model.pipe, "vae", None), nn.Module):
            raise ModelError(f"{who} looks at pictures, and this pipeline has no `vae` to decode latents with")

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The VAE goes back to where it was."""
        vae = self.model.pipe.vae
        device = next(vae.parameters()).device
        try:
            yield
        finally:
            vae.to(device)

    @torch.no_grad()
    def frames(self, clean: Tensor) -> Tensor:
        """Latents ``[B, ...]`` -> pixels ``[B, 3, F, H, W]`` in [-1, 1], one sample at a time, in the VAE's own
        precision."""
        # The trainer and its validation park the VAE on the CPU; one that offloading moves is left to that.
        vae = self.model.pipe.vae
        if execution_device(vae) != self.model.device:
            vae.to(self.model.device)
        with torch.autocast(clean.device.type, enabled=False):
            pixels = torch.cat([self.model.decode(sample) for sample in clean.split(1)])
        return pixels if pixels.dim() == 5 else pixels.unsqueeze(2)

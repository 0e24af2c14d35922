"""Decodes clean latents to images with a VAE that may be parked on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.autocast import without_autocast
from flowhooks.errors import ModelError
from flowhooks.probe.recorder import execution_device
from flowhooks.splice import restore_attributes


def as_pictures(frames: Tensor) -> Tensor:
    """Pixels ``[B, 3, F, H, W]`` in [-1, 1] -> ``[B, 3, H, W]``, or video ``[B, 3, F, H, W]``, in [0, 1]."""
    return ((frames[:, :, 0] if frames.shape[2] == 1 else frames) / 2 + 0.5).clamp(0, 1)


class Decoder:
    """Decodes through the pipeline's own VAE.

    Raises:
        ModelError: the pipeline has no VAE.
    """

    def __init__(self, model: Any, who: str):
        self.model = model
        if not isinstance(getattr(model.pipe, "vae", None), nn.Module):
            raise ModelError(f"{who} looks at images, and this pipeline has no `vae` to decode latents with")

    @contextmanager
    def attached(self) -> Iterator[None]:
        """On leaving, moves the VAE back to its device."""
        vae = self.model.pipe.vae
        device = next(vae.parameters()).device
        try:
            yield
        finally:
            vae.to(device)

    @torch.no_grad()
    def frames(self, clean: Tensor, model: Any = None) -> Tensor:
        """Latents ``[B, ...]`` -> pixels ``[B, 3, F, H, W]`` in [-1, 1], one sample at a time, in the VAE's own
        precision.

        Args:
            model: the model at the size of the latents; by default at the probed size.
        """
        self._wake()
        with without_autocast(clean):
            return torch.cat([self._one(sample, model) for sample in clean.split(1)])

    def gradient(self, clean: Tensor, judge: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the fp32 gradient ``[B, ...]`` of a function of images with respect to their latents ``[B, ...]``,
        with the VAE in fp32.

        Images are decoded twice. So the graph of only one image is in memory, never beside that of the function; with
        gradient checkpointing in the VAE, not even a whole one.

        Args:
            judge: takes images in [0, 1], see :func:`as_pictures`; returns the function's gradient by them.
        """
        self._wake()
        vae = self.model.pipe.vae
        with without_autocast(clean), _in_full_precision(vae), _checkpointed(vae):
            with torch.no_grad():
                pictures = torch.cat([as_pictures(self._one(sample)) for sample in clean.split(1)])
            by_pixels = judge(pictures)
            found = []
            for sample, weight in zip(clean.split(1), by_pixels.split(1), strict=True):
                leaf = sample.detach().float().requires_grad_()
                with torch.enable_grad():
                    picture = as_pictures(self._one(leaf, gradient=True))
                found.append(torch.autograd.grad(picture, leaf, weight)[0])
        return torch.cat(found)

    def _one(self, sample: Tensor, model: Any = None, *, gradient: bool = False) -> Tensor:
        model = model or self.model
        pixels = model.decode(sample, **model.size, gradient=gradient)
        return pixels if pixels.dim() == 5 else pixels.unsqueeze(2)

    def _wake(self) -> None:
        """Moves a VAE back that was parked on the CPU; one that comes by itself when it decodes, as in a run, does
        so."""
        vae = self.model.pipe.vae
        if execution_device(vae) != self.model.device:
            vae.to(self.model.device)


@contextmanager
def _in_full_precision(module: nn.Module) -> Iterator[None]:
    """Inside, every weight is in fp32; then it has its own type again. Half precision to fp32 and back is exact."""
    halves = [
        (t, t.dtype) for t in (*module.parameters(), *module.buffers()) if t.dtype in (torch.float16, torch.bfloat16)
    ]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _checkpointed(vae: Any) -> Iterator[None]:
    """Inside, gradient checkpointing is on where Diffusers builds it into this VAE."""
    if not getattr(vae, "_supports_gradient_checkpointing", False):
        yield
        return
    with restore_attributes(*vae.modules()):
        vae.enable_gradient_checkpointing()
        yield

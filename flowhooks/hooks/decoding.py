"""Decodes clean latents to images with a VAE that may be parked on the CPU."""

from __future__ import annotations

import math
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
    """Pixels ``[B, 3, F, H, W]`` in [-1, 1] -> ``[B, 3, H, W]``, or video ``[B, 3, F, H, W]``, in [0, 1]. Waveforms
    ``[B, channels, samples]`` stay in [-1, 1]."""
    if frames.dim() == 3:
        return frames.clamp(-1, 1)
    return ((frames[:, :, 0] if frames.shape[2] == 1 else frames) / 2 + 0.5).clamp(0, 1)


#: Pixels that are decoded together: those of one image of 1024 x 1024, or of 16 of 256 x 256.
AT_ONCE = 1 << 20


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
    def frames(self, clean: Tensor, model: Any = None, condition: Any = None) -> Tensor:
        """Latents ``[B, ...]`` -> pixels ``[B, 3, F, H, W]`` in [-1, 1], or waveforms ``[B, channels, samples]``, in
        the VAE's own precision, as many samples at once as have :data:`AT_ONCE` pixels.

        Args:
            model: the model at the size of the latents; by default at the probed size.
            condition: of the same samples, for a pipeline that decodes a part of their references beside them.
        """
        self._wake()
        with without_autocast(clean):
            parts = self._parts(clean, condition, self._at_once(clean, model))
            return torch.cat([self._decoded(some, model, condition=own) for some, own in parts])

    def gradient(self, clean: Tensor, judge: Callable[[Tensor], Tensor], condition: Any = None) -> Tensor:
        """Return the fp32 gradient ``[B, ...]`` of a function of images with respect to their latents ``[B, ...]``,
        with the VAE in fp32.

        Images are decoded twice, and one by one where a graph is kept. So the graph of only one image is in memory,
        never beside that of the function; with gradient checkpointing in the VAE, not even a whole one.

        Args:
            judge: takes images in [0, 1], see :func:`as_pictures`; returns the function's gradient by them.
            condition: as :meth:`frames` takes it.
        """
        self._wake()
        vae = self.model.pipe.vae
        with without_autocast(clean), _in_full_precision(vae), _checkpointed(vae):
            with torch.no_grad():
                some = self._parts(clean, condition, self._at_once(clean))
                pictures = torch.cat([as_pictures(self._decoded(each, condition=own)) for each, own in some])
            by_pixels = judge(pictures)
            found = []
            for (sample, own), weight in zip(self._parts(clean, condition, 1), by_pixels.split(1), strict=True):
                leaf = sample.detach().float().requires_grad_()
                with torch.enable_grad():
                    picture = as_pictures(self._decoded(leaf, gradient=True, condition=own))
                found.append(torch.autograd.grad(picture, leaf, weight)[0])
        return torch.cat(found)

    @staticmethod
    def _parts(clean: Tensor, condition: Any, size: int) -> list[tuple[Tensor, Any]]:
        """Latents ``[B, ...]`` and the condition of each, in parts of ``size`` samples."""
        rows = range(len(clean))
        held = [None if condition is None else condition.take(rows[i : i + size]) for i in rows[::size]]
        return list(zip(clean.split(size), held, strict=True))

    def _decoded(self, some: Tensor, model: Any = None, *, gradient: bool = False, condition: Any = None) -> Tensor:
        model = model or self.model
        pixels = model.decode(some, **model.size, gradient=gradient, condition=condition)
        return pixels.unsqueeze(2) if pixels.dim() == 4 else pixels

    def _at_once(self, clean: Tensor, model: Any = None) -> int:
        """Samples that are decoded together: a decoder needs as much memory as it makes pixels."""
        model = model or self.model
        each = math.prod(model.size.values()) * (model.length or 1)
        return min(len(clean), max(1, AT_ONCE // each))

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

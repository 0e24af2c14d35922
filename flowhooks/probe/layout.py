"""How the scheduler's sample becomes what ``vae.decode`` gets, learnt by sending codes through the pipeline's own loop.

``z = x[permutation] * scale + shift``, element by element. Zeros give the shift, ones the scale, and index codes the
permutation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.recorder import Recording, recording_decode, recording_steps, run, skipping_transformer

ROUND_TRIP = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A learnt map between the sample space and the VAE's latent space, for one resolution.

    Args:
        sample_shape: one sample in the scheduler's space, without batch.
        vae_shape: the same sample as the VAE gets it.
        permutation: ``[n]``; element i of the flattened VAE latent is element ``permutation[i]`` of the flattened
            sample.
        scale, shift: ``[n]`` float64, in VAE order.
    """

    sample_shape: tuple[int, ...]
    vae_shape: tuple[int, ...]
    permutation: Tensor
    scale: Tensor
    shift: Tensor

    def to_vae(self, sample: Tensor) -> Tensor:
        """``[B, *sample_shape]`` -> ``[B, *vae_shape]``, as ``vae.decode`` wants it."""
        flat = self._permuted(sample.flatten(1)) * self._like(self.scale, sample) + self._like(self.shift, sample)
        return flat.reshape(-1, *self.vae_shape)

    def from_vae(self, z: Tensor) -> Tensor:
        """``[B, *vae_shape]`` -> ``[B, *sample_shape]``: the inverse, for encoding."""
        flat = (z.flatten(1) - self._like(self.shift, z)) / self._like(self.scale, z)
        return self._scattered(flat)

    def pack(self, z: Tensor) -> Tensor:
        """Only the order of :meth:`from_vae`, no scale or shift: for masks."""
        return self._scattered(z.flatten(1))

    @property
    def ordered(self) -> bool:
        """Whether sample and latent hold their elements in one order, so that nothing needs to be moved."""
        return bool((self.permutation == torch.arange(len(self.permutation))).all())

    def _permuted(self, flat: Tensor) -> Tensor:
        return flat if self.ordered else flat[:, self.permutation.to(flat.device)]

    def _scattered(self, flat: Tensor) -> Tensor:
        if not self.ordered:
            index = self.permutation.to(flat.device).expand_as(flat)
            flat = torch.empty_like(flat).scatter_(1, index, flat)
        return flat.reshape(-1, *self.sample_shape)

    @staticmethod
    def _like(values: Tensor, other: Tensor) -> Tensor:
        return values.to(other.device, other.dtype)


def learn_layout(pipe: Any, transformer: Any, output: Any, call: dict[str, Any]) -> Layout:
    """Learn and verify the layout at the resolution of ``call``; neither transformer nor VAE runs.

    Args:
        output: what the transformer may answer with, shaped like its real output.
        call: arguments of a one-prompt run.

    Raises:
        ModelError: the latents are not a permutation of the sample, or the round trip is off.
    """

    def decoded(code: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = Recording()

        def answer(sample: Tensor) -> Tensor:
            return sample if code is None else code.reshape(sample.shape).to(sample.device)

        with (
            recording_steps(pipe.scheduler, seen, answer),
            recording_decode(pipe.vae, seen),
            skipping_transformer(transformer, output),
        ):
            run(pipe, **{**call, "num_inference_steps": 1, "output_type": "pt"})
        if seen.decoded is None or not seen.steps:
            raise ModelError(
                f"{type(pipe).__name__} never handed latents to its VAE; the probe cannot learn their layout"
            )
        return seen.steps[-1].sample, seen.decoded

    sample, _ = decoded(None)
    n = sample[0].numel()
    _, zeros = decoded(torch.zeros(n))
    if zeros.numel() != n:
        raise ModelError(
            f"the VAE of {type(pipe).__name__} gets {zeros.numel()} numbers for a sample of {n}; not a permutation"
        )
    shift = _flat(zeros)
    scale = _flat(decoded(torch.ones(n))[1]) - shift
    codes = torch.arange(n, dtype=torch.float32) / n
    permutation = ((_flat(decoded(codes)[1]) - shift) / scale * n).round().long()
    if not torch.equal(permutation.sort().values, torch.arange(n)):
        raise ModelError(
            f"the latents of {type(pipe).__name__} at {tuple(sample.shape)} are not a permutation of its sample"
        )
    layout = Layout(
        sample_shape=tuple(sample.shape[1:]),
        vae_shape=tuple(zeros.shape[1:]),
        permutation=permutation,
        scale=scale,
        shift=shift,
    )
    _verify(layout, decoded, n)
    return layout


def _verify(layout: Layout, decoded: Any, n: int) -> None:
    z = torch.randn(1, *layout.vae_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    back = _flat(decoded(layout.from_vae(z).float().flatten())[1])
    error = (back - z.flatten()).abs().max().item()
    if error > ROUND_TRIP * max(1.0, z.abs().max().item()):
        raise ModelError(
            f"latent layout: the round trip through the pipeline is off by {error:.2g}, allowed {ROUND_TRIP:g}"
        )


def _flat(z: Tensor) -> Tensor:
    return z.detach().cpu().double().flatten()

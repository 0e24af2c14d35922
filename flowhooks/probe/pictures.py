"""Verify that we encode and decode images as the pipeline's own VAE path does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flowhooks.errors import ModelError
from flowhooks.probe.conditioning import Condition
from flowhooks.probe.layout import Layout, without_transparency
from flowhooks.probe.model import FlowModel, without_dropped
from flowhooks.probe.recorder import Recording, recording_encode
from flowhooks.probe.runs import returned_at

#: Largest difference of an image in [0, 1]; on tiny pipelines it is below 1e-5.
DECODING = 1e-4
#: Largest average difference where the VAE is in half precision: single pixels of an untrained VAE differ by more.
HALF = 2e-2
#: Largest relative difference between the posterior's mode and our latents mapped back to the VAE.
ENCODING = 1e-6


@torch.no_grad()
def verify_pictures(
    model: FlowModel, networks: Mapping[str, nn.Module], output: Any, call: Mapping[str, Any], condition: Condition
) -> None:
    """Encode an image, and let the pipeline decode its latents after its own loop.

    Args:
        output: an output of the network; every call of this run returns it.
        call: arguments of a one-prompt run without guidance.
        condition: conditioning of this call.

    Raises:
        ModelError: the latents do not come back as the VAE made them, or the pipeline decodes another image from them
            than :meth:`FlowModel.decode`.
    """
    height, width = call["height"], call["width"]
    layout = model.layout(height, width)
    seen = Recording()
    with recording_encode(model.pipe.vae, seen):
        latents = model.encode_images(_smooth(_pixels_shape(model, height, width)).to(model.device))
    _compare_latents(model, layout, latents, seen)
    mine = _unit(model.decode(latents, height, width, condition=condition))
    theirs = _drawn_by_pipeline(model, networks, output, call, latents, seed=1)
    model.contract = replace(model.contract, dropped=_dropped(mine, theirs))
    mine = without_dropped(mine, model.contract.dropped)
    if theirs.shape != mine.shape:
        raise ModelError(
            f"{model.contract.pipeline} generates images of shape {tuple(theirs.shape)} from latents that its VAE "
            f"decodes to {tuple(mine.shape)}: it changes their size, or adds to them, after its VAE"
        )
    exact = model.pipe.vae.dtype == torch.float32
    allowed = DECODING if exact else HALF
    off = _apart(theirs, mine, exact)
    if not off <= allowed:
        again = _drawn_by_pipeline(model, networks, output, call, latents, seed=2)
        chance = _apart(again, theirs, exact) > allowed
        raise ModelError(
            f"{model.contract.pipeline}: its image is off by {off:.2g} in [0, 1] from what its VAE decodes, "
            + (
                "and another seed gives another image from the same latents: it adds noise between its loop and its "
                "VAE; switch that off with `arguments`"
                if chance
                else "so it changes latents or image by more than a scale, shift or order of the latents"
            )
        )


def _dropped(mine: Tensor, theirs: Tensor) -> int:
    """Return by how many frames the pipeline's video is shorter than what its VAE decodes; 0 where that is not all."""
    if mine.dim() < 5 or theirs.dim() < 5 or mine.shape[:2] != theirs.shape[:2] or mine.shape[3:] != theirs.shape[3:]:
        return 0
    return max(0, mine.shape[2] - theirs.shape[2])


@torch.no_grad()
def verify_size(model: FlowModel) -> None:
    """Check that the pipeline returns exactly the requested size.

    Raises:
        ModelError: the size differs, for example because the pipeline rounds it.
    """
    asked = (1, 3, *((model.length,) if (model.length or 1) > 1 else ()), *model.size.values())
    found = tuple(_decoded_zeros(model, **model.size).shape)
    if found != asked:
        raise ModelError(f"{model.contract.pipeline} makes {_named(found)} when asked for {_named(asked)}")


@torch.no_grad()
def drawn_frames(model: FlowModel) -> int | None:
    """Return how many frames the pipeline's videos have, whatever number was requested; None for images."""
    if len(model.layout(**model.size).vae_shape) < 4:
        return None
    height, width = model.size.values()
    drawn = _decoded_zeros(model, height, width)
    return drawn.shape[2] if drawn.dim() == 5 else 1


def _named(shape: Sequence[int]) -> str:
    frames = f"{shape[2]} frames of " if len(shape) == 5 else ""
    return f"{frames}{shape[-1]}x{shape[-2]} pixels"


def _pixels_shape(model: FlowModel, height: int, width: int) -> tuple[int, ...]:
    """Return the shape of one image as the VAE takes it; the number of frames comes from what its latents decode to."""
    vae_shape = model.layout(height, width).vae_shape
    if len(vae_shape) == 3 or vae_shape[1] == 1:
        return (1, 3, height, width)
    clip = _decoded_zeros(model, height, width)
    return (1, 3, clip.shape[2], height, width)


def _decoded_zeros(model: FlowModel, height: int, width: int) -> Tensor:
    """Return what zeros decode to, for its shape."""
    layout = model.layout(height, width)
    return layout.decode(model.pipe.vae, torch.zeros(1, *layout.sample_shape, device=model.device))


def _smooth(shape: tuple[int, ...]) -> Tensor:
    """Return a random image or video in [-1, 1] without edges."""
    few = torch.rand(shape[0], 3, *(min(4, n) for n in shape[2:]), generator=torch.Generator().manual_seed(0))
    return 2 * interpolate(few, shape[2:], mode="trilinear" if len(shape) == 5 else "bilinear") - 1


def _compare_latents(model: FlowModel, layout: Layout, latents: Tensor, seen: Recording) -> None:
    if seen.encoded is None:
        raise ModelError(f"{model.contract.pipeline}: its VAE was not asked to encode")
    encoded = seen.encoded.float()
    back = layout.vae.filled(layout.to_vae(latents), encoded)
    off = float((back - encoded).abs().max() / encoded.abs().max())
    if not off <= ENCODING:
        raise ModelError(
            f"{model.contract.pipeline}: encoded latents come back to its VAE {off:.2g} off, relative, from what it "
            "encoded"
        )


def _drawn_by_pipeline(
    model: FlowModel,
    networks: Mapping[str, nn.Module],
    output: Any,
    call: Mapping[str, Any],
    latents: Tensor,
    seed: int,
) -> Tensor:
    """Return the image that comes out when the pipeline's loop ends at these latents."""
    returned = returned_at(model.pipe, networks, output, call, latents, seed)
    return pictures_of(returned).to(latents.device, torch.float32)


def pictures_of(returned: Any) -> Tensor:
    """Return ``[B, 3, H, W]``, or ``[B, 3, F, H, W]`` for videos, from what a pipeline returned as ``pt``.

    Raises:
        ModelError: it holds no images as tensors.
    """
    pictures = returned[0]
    if isinstance(pictures, (list, tuple)) and pictures and isinstance(pictures[0], Tensor):
        pictures = torch.stack(list(pictures))
    if not isinstance(pictures, Tensor) or pictures.dim() not in (4, 5):
        found = type(pictures).__name__
        if isinstance(pictures, Tensor):
            found = f"a tensor of shape {tuple(pictures.shape)}" + (", as sound has" if pictures.dim() < 4 else "")
        raise ModelError(f"`output_type='pt'` gives {found}, not images `[B, 3, H, W]` or videos")
    if pictures.dim() == 5:
        pictures = pictures.transpose(1, 2)
        pictures = pictures[:, :, 0] if pictures.shape[2] == 1 else pictures
    return without_transparency(pictures)


def _apart(a: Tensor, b: Tensor, exact: bool) -> float:
    off = (a - b).abs()
    return float(off.max() if exact else off.mean())


def _unit(pictures: Tensor) -> Tensor:
    return (pictures / 2 + 0.5).clamp(0, 1)

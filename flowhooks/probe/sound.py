"""Learn what a pipeline of sound is asked for, and verify that we encode and decode waveforms as it does.

The size of a clip is written as that of an image one pixel high: height 1, and as wide as the clip has samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from flowhooks.arguments import duration_argument
from flowhooks.errors import ModelError
from flowhooks.probe.conditioning import Condition
from flowhooks.probe.recorder import Recording, recording_encode
from flowhooks.probe.runs import returned_at

if TYPE_CHECKING:
    from flowhooks.probe.model import FlowModel

#: Names under which autoencoders and pipelines say how many samples a second has, and how many become one latent.
RATES, HOPS, CHANNELS = ("sampling_rate", "sample_rate"), ("hop_length", "downsampling_ratio"), ("audio_channels",)
#: Latents of the probe's clip where the caller names no length.
SHORT = 16
#: Largest difference of a waveform from the pipeline's, of its peak; and where the VAE is in half precision.
DECODING, HALF = 1e-4, 5e-2
#: Largest relative difference between the VAE's latents and ours mapped back to it.
ENCODING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sound:
    """Describes the clips of a pipeline that makes sound.

    Args:
        argument: the pipeline argument that takes their length in seconds.
        rate: samples of a second.
        hop: samples that become one latent.
        channels: 1 for mono, 2 for stereo.
    """

    argument: str
    rate: int
    hop: int
    channels: int

    def seconds(self, samples: int) -> float:
        """Return the length in seconds of a clip of this many samples."""
        return samples / self.rate

    def samples(self, seconds: float) -> int:
        """Return the number of samples of a clip of this length, the nearest whole number."""
        return round(seconds * self.rate)


def sound_of(pipe: Any) -> Sound | None:
    """Return what a pipeline's clips are; None for a pipeline of images or videos.

    Raises:
        ModelError: neither the pipeline nor its VAE says how many samples a second has, or become one latent.
    """
    argument = duration_argument(inspect.signature(type(pipe).__call__).parameters)
    if argument is None:
        return None
    vae = getattr(pipe, "vae", None)
    rate, hop, channels = (_stated(pipe, vae, names) for names in (RATES, HOPS, CHANNELS))
    if rate is None or hop is None:
        lacking = " or ".join(f"`{name}`" for name in (RATES if rate is None else HOPS))
        raise ModelError(f"{type(pipe).__name__} makes sound, and its VAE has no {lacking}, so lengths cannot be told")
    return Sound(argument=argument, rate=rate, hop=hop, channels=channels or _stated(pipe, vae, ("in_channels",)) or 1)


def _stated(pipe: Any, vae: Any, names: tuple[str, ...]) -> int | None:
    config = getattr(vae, "config", None)
    for name in names:
        for place in (config, vae, pipe):
            value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
            if isinstance(value, int):
                return value
    return None


@torch.no_grad()
def verify_sound(
    model: FlowModel, networks: Mapping[str, nn.Module], output: Any, call: Mapping[str, Any], condition: Condition
) -> None:
    """Encode a clip, and let the pipeline decode its latents after its own loop.

    Args:
        output: an output of the network; every call of this run returns it.
        call: arguments of a one-prompt run without guidance.
        condition: conditioning of this call.

    Raises:
        ModelError: the latents do not come back as the VAE made them, or the pipeline makes another clip of them than
            :meth:`FlowModel.decode`, its loudness aside.
    """
    assert model.sound is not None
    name, layout = model.contract.pipeline, model.layout(**model.size)
    if len(layout.vae_shape) != 2:
        raise ModelError(
            f"{name}: the VAE of a pipeline of sound decodes {layout.vae_shape}, not `[channels, latents]`"
        )
    seen, wanted = Recording(), model.size["width"]
    with recording_encode(model.pipe.vae, seen):
        latents = model.encode_images(_smooth(model.sound.channels, wanted).to(model.device))
    assert seen.encoded is not None, "it was just encoded"
    encoded = seen.encoded.float()
    off = float((layout.to_vae(latents) - encoded).abs().max() / encoded.abs().max())
    if not off <= ENCODING:
        raise ModelError(f"{name}: encoded latents come back to its VAE {off:.2g} off, relative, from what it encoded")
    mine = model.decode(latents, *model.size.values(), condition=condition)
    theirs = _made(model, networks, output, call, latents, seed=1)
    if theirs.shape != mine.shape or mine.shape[-1] != wanted:
        raise ModelError(
            f"{name} makes a clip of {tuple(theirs.shape[1:])} channels and samples from latents that its VAE decodes "
            f"to {tuple(mine.shape[1:])}, and {wanted:,} samples were asked for; lengths are multiples of "
            f"{model.sound.hop:,} samples"
        )
    allowed = DECODING if model.pipe.vae.dtype == torch.float32 else HALF
    off = _apart(mine, theirs)
    if not off <= allowed:
        again = _made(model, networks, output, call, latents, seed=2)
        raise ModelError(
            f"{name}: its clip is off by {off:.2g} of its peak from what its VAE decodes, "
            + (
                "and another seed gives another clip from the same latents: it adds noise between its loop and its VAE"
                if _apart(again, theirs) > allowed
                else "so it changes latents or clip by more than a scale, shift or order of latents and the loudness"
            )
        )


@torch.no_grad()
def verify_length(model: FlowModel) -> None:
    """Check that the pipeline makes exactly as many samples as it is asked for.

    Raises:
        ModelError: it makes others, for example because it rounds up to whole latents.
    """
    assert model.sound is not None
    sound, wanted = model.sound, model.size["width"]
    layout = model.layout(**model.size)
    zeros = torch.zeros(1, *layout.sample_shape, device=model.device)
    made = layout.decode(model.pipe.vae, zeros).shape[-1]
    if made != wanted:
        raise ModelError(
            f"{model.contract.pipeline} makes {made:,} samples ({sound.seconds(made):g} s) when asked for {wanted:,} "
            f"({sound.seconds(wanted):g} s); lengths are multiples of {sound.hop:,} samples"
        )


def _smooth(channels: int, samples: int) -> Tensor:
    """Return a random clip ``[1, channels, samples]`` in [-1, 1] without edges."""
    few = torch.rand(1, channels, min(8, samples), generator=torch.Generator().manual_seed(0))
    return 2 * interpolate(few, samples, mode="linear") - 1


def _made(
    model: FlowModel,
    networks: Mapping[str, nn.Module],
    output: Any,
    call: Mapping[str, Any],
    latents: Tensor,
    seed: int,
) -> Tensor:
    """Return the clip ``[1, channels, samples]`` that comes out when the pipeline's loop ends at these latents."""
    returned = returned_at(model.pipe, networks, output, call, latents, seed)
    clip = returned[0]
    if not isinstance(clip, Tensor) or clip.dim() != 3:
        found = f"a tensor of shape {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
        raise ModelError(f"`output_type='pt'` gives {found}, not clips `[B, channels, samples]`")
    return clip.to(latents.device, torch.float32)


def _apart(mine: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to the peak of ``theirs``: of the clip as it is, cut at [-1, 1], or as
    loud as theirs, whichever is nearest."""
    loudness = (mine * theirs).sum() / mine.square().sum().clamp(min=1e-12)
    peak = theirs.abs().max().clamp(min=1e-6)
    return min(float((each - theirs).abs().max() / peak) for each in (mine, mine.clamp(-1, 1), loudness * mine))

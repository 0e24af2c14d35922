"""Learn where each number of a sample goes (into the transformer, out of it, and into the VAE) by sending codes through
the pipeline.

The pipeline's own loop runs two steps with the network's output and the scheduler's next sample replaced by codes:
zeros, ones, and the digits of every element's index. What arrives shows the order, the scale and the shift. Digits are
small whole numbers, so this is exact in half precision too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import signature_of
from flowhooks.probe.gather import Gather, digit, digit_count, flat, learn_gather
from flowhooks.probe.posterior import posterior_mode
from flowhooks.probe.recorder import (
    Recording,
    answering,
    execution_device,
    first_of,
    map_output,
    recording_calls,
    recording_decode,
    recording_steps,
    run,
    with_first,
)
from flowhooks.probe.values import map_tensors
from flowhooks.transfer import sent


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Describes the sample at one resolution.

    Args:
        sample_shape: shape of one sample in the scheduler's space, without batch; the canonical form.
        sample_argument: the network's argument that takes the sample.
        listed: whether that argument is a list with one tensor a sample.
        into: sample -> argument.
        out: network's output -> velocity that the scheduler gets, sign included.
        vae: sample -> input of ``vae.decode``.
        vae_shape: shape of one sample as the VAE gets it.
        arguments: the network's arguments that depend on the resolution, for a batch of one.
        shift: the scheduler's shift of sigma at this resolution.
        time_shapes: time argument -> its shape after the batch axis, for networks that take one time per frame.
        time_rest: time argument -> where it follows sigma, bool of that shape, and what it holds elsewhere; only where
            it holds both, such as the time 0 of a given first frame.
        decode_args, decode_options: the pipeline's other arguments of ``vae.decode``, for a batch of one.
        blank: an output of the network of zeros, only where the VAE gets more than the sample.
        tail: how many of the last numbers of the network's output ``out`` reads, where it ends with the sample and a
            text of any length comes before; None where ``out`` reads it all.
    """

    sample_shape: tuple[int, ...]
    sample_argument: str
    listed: bool
    into: Gather
    out: Gather
    vae: Gather
    arguments: Mapping[str, Any]
    shift: float
    time_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    time_rest: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    decode_args: tuple[Any, ...] = ()
    decode_options: Mapping[str, Any] = field(default_factory=dict)
    blank: Any = None
    tail: int | None = None

    @cached_property
    def seen(self) -> Tensor | None:
        """Return which numbers of a sample reach the network, bool ``[*sample_shape]``; None for all."""
        arrived = self.into.arrived(math.prod(self.sample_shape)).reshape(self.sample_shape)
        return None if bool(arrived.all()) else arrived

    @cached_property
    def behind(self) -> int:
        """Return how many tokens of references follow those of the sample in the network's argument; 0 for an argument
        that is no sequence of tokens."""
        if self.into.source is None or len(self.into.shape) != 2:
            return 0
        rows = (self.into.source.reshape(self.into.shape) >= 0).any(1)
        return len(rows) - 1 - int(rows.nonzero()[-1])

    @cached_property
    def extent(self) -> tuple[int, int, int]:
        """Return latent frames, rows and columns that the network denoises: those of the VAE without given frames. An
        axis that latents lack has one."""
        places = self.vae_shape[1:]
        frames, height, width = (*[1] * (3 - len(places)), *places)
        here = torch.arange(math.prod(self.vae_shape)) if self.vae.source is None else self.vae.source
        sampled = here >= 0 if self.seen is None else (here >= 0) & self.seen.flatten()[here.clamp(min=0)]
        held = sampled.reshape(self.vae_shape[0], frames, height, width).any(0).flatten(1).any(1)
        return int(held.sum()), height, width

    @property
    def vae_shape(self) -> tuple[int, ...]:
        return self.vae.shape

    @property
    def ordered(self) -> bool:
        """Return whether sample and VAE latent hold their elements in the same order."""
        return self.vae.source is None

    def spread(self, name: str, time: Tensor) -> Tensor:
        """Return times ``[B]`` in the form of the network's argument ``name``: one per sample, or one for each of its
        frames."""
        shape = self.time_shapes.get(name, ())
        spread = time.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)
        if name not in self.time_rest:
            return spread
        moves, rest = (sent(part, time.device) for part in self.time_rest[name])
        return torch.where(moves, spread, rest.to(spread.dtype))

    def moving(self, name: str, value: Any) -> float:
        """Return the time in what the pipeline passed as the network's argument ``name`` for one sample."""
        flat = torch.as_tensor(value).flatten()
        return float(flat[self.time_rest[name][0].flatten()][0] if name in self.time_rest else flat[0])

    def to_vae(self, sample: Tensor) -> Tensor:
        """Map ``[B, *sample_shape]`` to ``[B, *vae_shape]``, the input of ``vae.decode``."""
        return self.vae.apply(sample)

    def from_vae(self, z: Tensor) -> Tensor:
        """Map ``[B, *vae_shape]`` to ``[B, *sample_shape]``: the inverse, for encoding."""
        return self.vae.invert(z, self.sample_shape)

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Encode pixels ``[B, 3, H, W]``, or ``[B, 3, F, H, W]``, or waveforms ``[B, channels, samples]``, to ``[B,
        *sample_shape]`` in fp32: the mode of the posterior. A VAE of images with transparency gets opaque ones.

        Raises:
            ModelError: the latents do not have the shape that the pipeline decodes.
        """
        pixels = sent(pixels, execution_device(vae), vae.dtype)
        if len(self.vae_shape) == 4 and pixels.dim() == 4:
            pixels = pixels.unsqueeze(2)
        if pixels.shape[1] == 3 and getattr(vae.config, "in_channels", 3) == 4:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        drawn = {"sample_posterior": False} if "sample_posterior" in signature_of(vae.encode).parameters else {}
        z = posterior_mode(vae.encode(pixels, **drawn))
        if tuple(z.shape[1:]) != self.vae_shape:
            raise ModelError(f"the VAE encodes to {tuple(z.shape[1:])}, the pipeline decodes {self.vae_shape}")
        return self.from_vae(z.float())

    def decode(self, vae: Any, sample: Tensor, rest: Tensor | None = None) -> Tensor:
        """Decode ``[B, *sample_shape]`` to fp32 pixels ``[B, 3, H, W]``, or ``[B, 3, F, H, W]``, with the arguments of
        ``vae.decode`` that the pipeline passes; ``rest`` ``[B, *vae_shape]`` holds what the VAE gets beside the
        sample."""
        z = sent(self.vae.filled(self.to_vae(sample.float()), rest), execution_device(vae), vae.dtype)
        given = [map_tensors(v, lambda t: _for_batch(t, z)) for v in (self.decode_args, self.decode_options)]
        pixels = without_transparency(vae.decode(z, *given[0], **given[1], return_dict=False)[0].float())
        return pixels.squeeze(2) if pixels.dim() == 5 and pixels.shape[2] == 1 else pixels

    def pack(self, z: Tensor) -> Tensor:
        """Apply only the order of :meth:`from_vae`, no scale or shift: for masks."""
        return self.vae.unordered(z.flatten(1), math.prod(self.sample_shape)).reshape(-1, *self.sample_shape)

    def pack_mask(self, mask: Tensor) -> Tensor:
        """Bring a mask ``[B, 1, h, w]`` on the VAE's latent grid, or ``[B, 1, t]`` of sound, to a shape that broadcasts
        to samples ``[B, ...]``."""
        grid = self.mask_grid
        if mask.shape[2:] != grid:
            raise ModelError(f"the mask's grid is {tuple(mask.shape[2:])}, the latents' is {grid}")
        if len(self.vae_shape) == 4:
            mask = mask.unsqueeze(2)
        if self.ordered and self.sample_shape == self.vae_shape:
            return mask
        return self.pack(mask.expand(-1, *self.vae_shape))

    @property
    def mask_grid(self) -> tuple[int, ...]:
        """Return the shape of a mask: ``(h, w)``, or ``(t,)`` of sound."""
        return self.vae_shape[1:] if len(self.vae_shape) == 2 else self.vae_shape[-2:]

    def to_network(self, sample: Tensor, dtype: torch.dtype | None = None, rest: Tensor | None = None) -> Any:
        """Map ``[B, *sample_shape]`` to the network's sample argument in ``dtype``; ``rest`` ``[B, ...]``, shaped like
        the argument, holds what is not the sample."""
        argument = sent(self.into.apply(sample), None, dtype)
        if rest is not None:
            argument = self.into.filled(argument, rest)
        return list(argument.unbind(0)) if self.listed else argument

    def from_network(self, output: Any) -> Tensor:
        """Map the network's output to the velocity ``[B, *sample_shape]``."""
        prediction = first_of(output)
        if isinstance(prediction, (list, tuple)):
            prediction = torch.stack(list(prediction))
        return self.out.apply(prediction if self.tail is None else prediction.flatten(1)[:, -self.tail :])


@dataclass(frozen=True, kw_only=True)
class Response:
    """Holds what arrived when one code was sent: the arguments of both calls, the velocity of the first step, the VAE's
    input."""

    first: dict[str, Any]
    arguments: dict[str, Any]
    velocity: Tensor
    decoded: Tensor
    decode_args: tuple[Any, ...]
    decode_options: Mapping[str, Any]


def learn_layout(
    pipe: Any,
    networks: Mapping[str, nn.Module],
    call: Mapping[str, Any],
    follows_resolution: Sequence[str],
    times: Sequence[str],
    *,
    partly: bool = False,
) -> Layout:
    """Learn and verify the layout at the resolution of ``call``, with one real step of the network; the VAE does not
    run.

    Args:
        call: arguments of a one-prompt run without guidance.
        follows_resolution: names of the arguments to keep for this resolution.
        times: names of the arguments that hold times.
        partly: whether the network and the VAE may get images of each sample beside it or in place of parts of it.

    Raises:
        ModelError: what arrives is not a rearrangement of what was sent, or the round trip is off.
    """
    if not isinstance(getattr(pipe, "vae", None), nn.Module):
        raise ModelError(f"{type(pipe).__name__} has no `vae`; flowhooks trains pipelines that work in latents")
    real = Recording()
    with recording_calls(networks, real), recording_steps(pipe.scheduler, real, limit=1):
        run(pipe, **{**call, "num_inference_steps": 2, "output_type": "latent"})
    output, sample = real.outputs[0], real.steps[0].sample

    lowest = 0

    def send(code: Callable[[int], Tensor]) -> Response:
        return _send(pipe, networks, call, output, code, lowest)

    n, m = sample.numel(), stacked(first_of(output)).numel()
    zeros = send(torch.zeros)
    if not zeros.velocity.isfinite().all():
        # The pipeline divides by the size of a prediction; then what its network answers begins with one.
        lowest = 1
        zeros = send(torch.zeros)
    ones = send(torch.ones)
    digits = [send(partial(digit, k)) for k in range(digit_count(max(n, m)))]
    name, listed = _sample_argument(pipe, zeros, ones, n, partly)
    shape = tuple(sample.shape[1:])

    def learn(
        read: Callable[[Response], Tensor], out_shape: Sequence[int], sent: int, rest: bool = False, lowest: int = 0
    ) -> Gather:
        read_digits = [read(d) for d in digits]
        return learn_gather(read(zeros), read(ones), read_digits, tuple(out_shape), sent, rest=rest, lowest=lowest)

    argument = stacked(zeros.arguments[name])
    out, tail = _from_the_end(learn(lambda r: r.velocity, shape, m, lowest=lowest), m)
    layout = Layout(
        sample_shape=shape,
        sample_argument=name,
        listed=listed,
        into=learn(lambda r: stacked(r.arguments[name]), argument.shape[1:], n, partly),
        out=out,
        tail=tail,
        vae=learn(lambda r: r.decoded, zeros.decoded.shape[1:], n, partly),
        arguments={a: real.calls[0][a] for a in follows_resolution},
        shift=real.shift,
        time_shapes={name: tuple(torch.as_tensor(real.calls[0][name]).shape[1:]) for name in times},
        time_rest={name: part for name in times if (part := _time_rest(zeros, name)) is not None},
        decode_args=zeros.decode_args,
        decode_options=zeros.decode_options,
    )
    _verify(pipe, layout, n, send, partly)
    return layout if layout.vae.whole else replace(layout, blank=map_output(output, torch.zeros_like))


def _from_the_end(out: Gather, sent: int) -> tuple[Gather, int | None]:
    """Return a mapping from the last numbers of an output, and of how many, where the sample is at the end of the
    output's ``sent`` numbers and others come before; the mapping as it is and None elsewhere."""
    if out.source is None or int(out.source.max()) != sent - 1 or not (out.source >= 0).all():
        return out, None
    start = int(out.source.min())
    return (replace(out, source=out.source - start), sent - start) if start else (out, None)


def _time_rest(seen: Response, name: str) -> tuple[Tensor, Tensor] | None:
    """Return where a time of one sample follows sigma, and what it holds elsewhere; None where it follows all over."""
    first, second = seen.first[name], seen.arguments[name]
    if not isinstance(first, Tensor) or first.dim() < 2 or first.shape != second.shape:
        return None
    moves = first != second
    return None if bool(moves.all()) else (moves[0].cpu(), first[0].cpu())


def _send(
    pipe: Any, networks: Mapping[str, nn.Module], call: Mapping[str, Any], output: Any, code: Callable, lowest: int
) -> Response:
    seen = Recording()
    prediction = first_of(output)

    def answer() -> Any:
        like = stacked(prediction)
        coded = (code(like.numel()) + lowest).reshape(like.shape).to(like.device, like.dtype)
        return with_first(output, list(coded.unbind(0)) if isinstance(prediction, (list, tuple)) else coded)

    def following(sample: Tensor) -> Tensor:
        return code(sample.numel()).reshape(sample.shape).to(sample.device)

    with (
        recording_calls(networks, seen),
        recording_steps(pipe.scheduler, seen, following),
        recording_decode(pipe.vae, seen),
        answering(networks, answer),
    ):
        run(pipe, **{**call, "num_inference_steps": 2, "output_type": "pt"})
    if len(seen.calls) < 2 or not seen.steps:
        raise ModelError(
            f"{type(pipe).__name__}, run with two steps, calls its network {len(seen.calls)} times in "
            f"{len(seen.steps)} steps; the probe needs two, so let it take more with `arguments`"
        )
    if seen.decoded is None:
        raise ModelError(f"{type(pipe).__name__} never handed latents to its VAE; the probe cannot learn their layout")
    return Response(
        first=seen.calls[0],
        arguments=seen.calls[1],
        velocity=seen.steps[0].velocity,
        decoded=seen.decoded,
        decode_args=seen.decode_args,
        decode_options=seen.decode_options,
    )


def _sample_argument(pipe: Any, zeros: Response, ones: Response, n: int, partly: bool) -> tuple[str, bool]:
    part: dict[tuple[str, bool], int] = {}
    for name, value in ones.arguments.items():
        before = zeros.arguments[name]
        listed = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, Tensor) for v in value)
        if listed:
            if same_shapes(value, before):
                part[name, True] = sum(int((v != b).sum()) for v, b in zip(value, before, strict=True))
        elif isinstance(value, Tensor) and value.shape == before.shape:
            part[name, False] = int((value != before).sum())
    for found, count in part.items():
        if count == n:
            return found
    if partly and any(part.values()):
        return max(part, key=lambda found: part[found])
    raise ModelError(f"no argument of {type(pipe).__name__}'s network holds the scheduler's sample of {n} numbers")


def without_transparency(pixels: Tensor) -> Tensor:
    """Return ``[B, 3, ...]`` of images ``[B, 4, H, W]`` or videos ``[B, 4, F, H, W]`` that have it; others as they
    are."""
    return pixels[:, :3] if pixels.dim() > 3 and pixels.shape[1] == 4 else pixels


def same_shapes(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return [x.shape for x in a] == [x.shape for x in b]


def _verify(pipe: Any, layout: Layout, n: int, send: Callable, partly: bool) -> None:
    """Check that the VAE's side can be inverted, and that random latents come back through the pipeline's own loop."""
    once = layout.vae.source is None or bool((layout.vae.source[layout.vae.source >= 0].bincount() < 2).all())
    if not once or not (partly or (math.prod(layout.vae_shape) == n and layout.vae.permutes(n))):
        raise ModelError(
            f"the VAE of {type(pipe).__name__} gets {layout.vae_shape} for a sample of {layout.sample_shape}, which is "
            "not a rearrangement of it"
        )
    z = torch.randn(1, *layout.vae_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sent = layout.from_vae(z).flatten()
    back = send(lambda size: sent.float() if size == n else torch.zeros(size)).decoded
    difference = flat(back) - z.flatten()
    if layout.vae.source is not None:
        difference = difference[layout.vae.source >= 0]
    error = difference.abs().max().item()
    allowed = 1e-6 if back.dtype == torch.float32 else 4 * torch.finfo(back.dtype).eps
    if error > allowed * max(1.0, float(z.abs().max()), float(layout.to_vae(sent.reshape(1, -1)).abs().max())):
        raise ModelError(
            f"latent layout: the round trip through the pipeline is off by {error:.2g}, allowed {allowed:g}"
        )


def _for_batch(value: Tensor, z: Tensor) -> Tensor:
    """Expand a tensor of a batch of one to the batch of ``z``."""
    value = value.to(z.device)
    return value.expand(len(z), *value.shape[1:]) if value.dim() and len(value) == 1 else value


def stacked(value: Any) -> Tensor:
    """Return ``[B, ...]``, also of a list with one tensor a sample."""
    return torch.stack(list(value)) if isinstance(value, (list, tuple)) else value

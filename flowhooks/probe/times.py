"""Find out which of a network's arguments depend on sigma, and in what unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import TimeUnit, unshift
from flowhooks.probe.recorder import Recording
from flowhooks.probe.values import same, tensors_in

#: (scale, offset) of the times in use: sigma, its complement, and both in thousandths. A fit must hold at every step.
TIME_UNITS = ((1.0, 0.0), (-1.0, 1.0), (1000.0, 0.0), (-1000.0, 1000.0))


@dataclass(frozen=True, kw_only=True)
class Time(TimeUnit):
    """Describes one argument that depends on sigma, as :class:`TimeUnit` does.

    Args:
        rounded: whether the pipeline's scheduler rounds it to whole numbers; training uses it unrounded.
        second: whether it depends on the sigma where the step ends, not where it starts.
    """

    rounded: bool = False
    second: bool = False


def learn_times(pipe: Any, walk: Recording, *, partly: bool = False) -> tuple[tuple[Time, ...], str]:
    """Return the arguments that change from step to step: those that depend on sigma, and the one that holds the
    sample.

    Args:
        partly: whether some numbers of the sample may not reach the network, such as those of a given first frame.

    Raises:
        ModelError: a number changes and does not depend on sigma, or no argument does.
    """
    starts, ends = ([getattr(step, side) for step in walk.steps] for side in ("sigma", "next_sigma"))
    times, samples = [], set()
    for name, value in walk.calls[0].items():
        if all(same(value, call.get(name)) for call in walk.calls[1:]):
            continue
        values = _moving([call.get(name) for call in walk.calls])
        if None in values:
            samples.add(name)
            continue
        last = walk.calls[-1][name]
        dtype = last.dtype if isinstance(last, Tensor) and last.is_floating_point() else torch.float32
        candidates = (
            _linear(Time(name=name, scale=1.0, offset=0.0, dtype=dtype), values, starts),
            _linear(Time(name=name, scale=1.0, offset=0.0, dtype=dtype, second=True), values, ends),
            _linear(
                Time(name=name, scale=1.0, offset=0.0, dtype=dtype, unshifted=True),
                values,
                [unshift(s, walk.shift) for s in starts],
            ),
        )
        times += [time for time in candidates if time is not None][:1]
        if not any(candidates):
            raise ModelError(
                f"the argument {name!r} of {type(pipe).__name__}'s network takes the values {values} at the sigmas "
                f"{starts}; its unit of time cannot be learned"
            )
    if not any(not time.second for time in times):
        raise ModelError(f"no argument of {type(pipe).__name__}'s network depends on the sigmas {starts}")
    return tuple(sorted(times, key=lambda time: time.second)), _holder(samples, walk, partly)


def _moving(values: Sequence[Any]) -> list[float | None]:
    """Return the one number that each step's value holds where it changes, whatever stays elsewhere (the time of a
    given frame is 0); None where it holds several."""
    first, last = values[0], values[-1]
    if not all(isinstance(value, Tensor) and value.shape == first.shape for value in values):
        return [_single(value) for value in values]
    moves = first != last
    if any(not torch.equal(value[~moves], first[~moves]) for value in values):
        return [None for _ in values]
    return [_single(value[moves]) for value in values]


def _holder(samples: set[str], walk: Recording, partly: bool) -> str:
    """Return the argument that holds the scheduler's sample, of those that hold samples; others (sound beside images)
    stay as in the first call."""
    wanted = walk.steps[0].sample.flatten()
    shares: dict[str, float] = {}
    for name in sorted(samples):
        held = torch.cat([tensor.flatten() for tensor in tensors_in(walk.calls[0][name])])
        there = torch.isin(wanted.to(held.dtype), held)
        if bool(there.all()):
            return name
        shares[name] = float(there.float().mean())
    if shares and max(shares.values()) > 0:
        most = max(shares, key=lambda name: shares[name])
        if partly:
            return most
        raise ModelError(
            f"the network's argument {most!r} holds {shares[most]:.0%} of the scheduler's sample of {wanted.numel()} "
            "numbers, as when the first frame of a video is a given image; name the argument of that image in "
            "`references`"
        )
    raise ModelError(f"no argument of the network holds the scheduler's sample of {wanted.numel()} numbers")


def _single(value: Any) -> float | None:
    """Return the one number in a tensor whose elements are all equal, else None."""
    if isinstance(value, Tensor) and value.numel() and bool((value == value.flatten()[0]).all()):
        return float(value.flatten()[0])
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _linear(time: Time, values: Sequence[Any], levels: Sequence[float]) -> Time | None:
    """Return ``time`` in the unit that fits every step, or None."""
    if levels[0] == levels[-1]:
        return None
    slope = (values[0] - values[-1]) / (levels[0] - levels[-1])
    scale, offset = min(TIME_UNITS, key=lambda unit: abs(unit[0] - slope))
    whole = abs(scale) > 1 and all(float(v).is_integer() for v in values)
    error = max(abs(scale * level + offset - t) for level, t in zip(levels, values, strict=True))
    exact = max(1e-4, 4 * torch.finfo(time.dtype).eps) * abs(scale)
    if error <= exact or (whole and error <= 1):
        return replace(time, scale=scale, offset=offset, rounded=error > exact)
    return None

"""Compute rewards, and refuse values that nothing should be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowhooks.errors import RewardError
from flowhooks.numberless import holds
from flowhooks.rewards.base import Records, Reward

#: Rounding by which a value may leave its range, for a bound of 1.
SLACK = 1e-3


def scored(
    rewards: Sequence[Reward], weights: Sequence[float], pixels: Tensor, prompts: Sequence[str], records: Records
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum ``[B]``, and every reward's own values ``[B]`` by its name. Waits for the device once.

    Args:
        weights: one for each reward, of either sign. A reward with weight 0 is measured and left out of the sum.
        pixels: ``[B, 3, H, W]``, or video ``[B, 3, F, H, W]``, in [0, 1]. The graph, if any, is kept.

    Raises:
        RewardError: a value is not finite or outside the reward's range, or pixels are; the message names reward and
            prompt.
        ValueError: the arguments do not fit together.
    """
    _agree(rewards, weights, pixels, prompts, records)
    each = {r.name: _checked_form(r, r(pixels, prompts, records), len(prompts)) for r in rewards}
    _refuse(rewards, each, pixels, prompts)
    return _summed(rewards, weights, each, pixels), each


def scored_with_gradient(
    rewards: Sequence[Reward], weights: Sequence[float], pixels: Tensor, prompts: Sequence[str], records: Records
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Score as :func:`scored` does, without a graph, and also return the gradient of the sum with respect to
    ``pixels``, of their shape.

    Rewards run one after the other, so only one graph is in memory at a time.

    Raises:
        RewardError: as :func:`scored`; a reward with a weight has no gradient, or one that is zero or not finite.
    """
    _agree(rewards, weights, pixels, prompts, records)
    total_gradient = torch.zeros_like(pixels, dtype=torch.promote_types(pixels.dtype, torch.float32))
    each, largest = {}, {}
    for reward, weight in zip(rewards, weights, strict=True):
        if weight:
            each[reward.name], gradient = _with_gradient(reward, pixels, prompts, records)
            largest[reward.name] = gradient.abs().flatten(1).amax(1)
            total_gradient += weight * gradient
        else:
            with torch.no_grad():
                values = reward(pixels.detach(), prompts, records)
            each[reward.name] = _checked_form(reward, values, len(prompts)).detach()
    _refuse(rewards, each, pixels, prompts, largest)
    return _summed(rewards, weights, each, pixels), each, total_gradient


def reward_gradient(reward: Reward, pixels: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
    """Return the gradient of the sum of a reward's values with respect to ``pixels``, of their shape.

    Raises:
        RewardError: the reward is not differentiable, has no graph to the pixels, or its gradient is zero on the whole
            batch or not finite; or as :func:`scored`.
    """
    return scored_with_gradient([reward], [1.0], pixels, prompts, records)[2]


def _with_gradient(reward: Reward, pixels: Tensor, prompts: Sequence[str], records: Records) -> tuple[Tensor, Tensor]:
    if not reward.differentiable:
        raise RewardError(
            f"reward {reward.name!r} is not differentiable, and a gradient is needed; use one that is, or give it "
            "the weight 0 to only measure it"
        )
    leaf = pixels.detach().to(torch.promote_types(pixels.dtype, torch.float32)).requires_grad_()
    with torch.enable_grad():
        values = _checked_form(reward, reward(leaf, prompts, records), len(prompts))
        gradient = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    if gradient is None:
        raise RewardError(
            f"reward {reward.name!r} declares a gradient, but no graph leads from values to pixels; it must not "
            "pass through uint8, NumPy, Pillow, detach() or no_grad()"
        )
    return values.detach(), gradient


def _agree(
    rewards: Sequence[Reward], weights: Sequence[float], pixels: Tensor, prompts: Sequence[str], records: Records
) -> None:
    names = [reward.name for reward in rewards]
    if len(set(names)) < len(names):
        raise ValueError(f"rewards must have different names, got {names}; set `name`")
    if len(weights) != len(rewards):
        raise ValueError(f"got {len(weights)} weights for {len(rewards)} rewards")
    # Of sound, waveforms [B, channels, samples].
    waves = pixels.dim() == 3 and pixels.shape[1] in (1, 2)
    shaped = waves or (pixels.dim() in (4, 5) and pixels.shape[1] == 3)
    if not shaped or not pixels.is_floating_point():
        found = f"{tuple(pixels.shape)} of {pixels.dtype}"
        raise ValueError(f"`pixels` must be floating-point [B, 3, H, W] or [B, 3, F, H, W] in [0, 1], got {found}")
    if not len(pixels) == len(prompts) == len(records):
        raise ValueError(f"got {len(pixels)} images, {len(prompts)} prompts and {len(records)} records")


def _checked_form(reward: Reward, values: Tensor, count: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (count,) or not values.is_floating_point():
        found = f"{tuple(values.shape)} of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise RewardError(f"reward {reward.name!r} gave {found}, expected floating-point ({count},): one per image")
    return values


def _refuse(
    rewards: Sequence[Reward],
    each: Mapping[str, Tensor],
    pixels: Tensor,
    prompts: Sequence[str],
    largest: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise for values and gradients that cannot be right. Only the check whether there are any waits for the device,
    and only once.

    Args:
        largest: name -> ``[B]``, the largest number in the gradient of each image.
    """
    largest = largest or {}
    with torch.no_grad():
        bad = {reward.name: _outside(each[reward.name], reward.range) for reward in rewards}
        strange = _outside(pixels, (-1.0 if pixels.dim() == 3 else 0.0, 1.0)).flatten(1).any(1)
        broken = {name: ~sizes.isfinite() for name, sizes in largest.items()}
        zero = [~sizes.any() for sizes in largest.values()]
        flags = [*(each.any() for each in (strange, *bad.values(), *broken.values())), *zero]
        if not holds(torch.stack([flag.to(strange.device) for flag in flags]).any(), False):
            return
        if bool(strange.any()):
            at = int(strange.nonzero()[0])
            darkest, brightest = (float(bound) for bound in pixels[at].aminmax())
            raise RewardError(
                f"the image of prompt {prompts[at]!r} reaches from {darkest:.6g} to {brightest:.6g}, and rewards "
                "take [0, 1]; convert pixels of [-1, 1] by x / 2 + 0.5, and clamp; if they are not finite, look "
                "at the model that generated them"
            )
        for reward in rewards:
            if bool(bad[reward.name].any()):
                at = int(bad[reward.name].nonzero()[0])
                value, (low, high) = float(each[reward.name][at]), reward.range
                raise RewardError(
                    f"reward {reward.name!r} gave {value:.6g} for prompt {prompts[at]!r} (image {at + 1} of "
                    f"{len(prompts)}), expected a finite number{_between(low, high)}; nothing was trained on it"
                )
            if reward.name not in largest:
                continue
            if bool(broken[reward.name].any()):
                at = int(broken[reward.name].nonzero()[0])
                raise RewardError(f"the gradient of reward {reward.name!r} is not finite for prompt {prompts[at]!r}")
            if not bool(largest[reward.name].any()):
                raise RewardError(
                    f"the gradient of reward {reward.name!r} is zero in every pixel of the batch, so nothing can be "
                    f"learned from it; its values are {_shown(each[reward.name])}; rounding, clamping and saturation "
                    "do this"
                )


def _outside(values: Tensor, bounds: tuple[float | None, float | None]) -> Tensor:
    low, high = bounds
    flags = ~values.isfinite()
    if low is not None:
        flags |= values < low - SLACK * max(1.0, abs(low))
    if high is not None:
        flags |= values > high + SLACK * max(1.0, abs(high))
    return flags


def _summed(rewards: Sequence[Reward], weights: Sequence[float], each: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    total = torch.zeros(len(pixels), device=pixels.device)
    for reward, weight in zip(rewards, weights, strict=True):
        if weight:
            total = total + weight * each[reward.name]
    return total


def _between(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return f" of at most {high:g}" if low is None else f" of at least {low:g}"
    return f" in [{low:g}, {high:g}]"


def _shown(values: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in values[:4].tolist()) + (", ..." if len(values) > 4 else "")

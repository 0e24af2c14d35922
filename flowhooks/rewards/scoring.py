"""Compute rewards, and refuse values that nothing should be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowhooks.batch import Batch
from flowhooks.errors import FlowhooksError, RewardError
from flowhooks.numberless import holds
from flowhooks.rewards.attempts import RETRIES, WAIT, persistently, waits
from flowhooks.rewards.base import IMAGE, Records, Reward, SampleReferences, members

#: Rounding by which a value may leave its range, for a bound of 1.
SLACK = 1e-3


#: For each image, what it was made from; empty where that is not known.
References = Sequence[SampleReferences]


def scored(
    rewards: Sequence[Reward],
    weights: Sequence[float],
    pixels: Tensor,
    prompts: Sequence[str],
    records: Records,
    references: References = (),
    groups: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum ``[B]``, and every reward's own values ``[B]`` by its name; of a reward of several
    numbers also these, by ``<reward>.<number>``. Waits for the device once.

    Args:
        weights: one for each reward, of either sign. A reward with weight 0 is measured and left out of the sum.
        pixels: ``[B, 3, H, W]``, or video ``[B, 3, F, H, W]``, in [0, 1]. The graph, if any, is kept.
        references: for each image, what rewards that compare get.
        groups: for each image, the number of its group; for rewards that judge groups or pairs.

    Raises:
        RewardError: a reward raised an error; it compares, and an image has no reference; it judges groups, and an
            image is alone; a value is not finite or outside the reward's range, or pixels are. The message names reward
            and prompt.
        ValueError: the arguments do not fit together.
    """
    _agree(rewards, weights, pixels, prompts, records)
    each: dict[str, Tensor] = {}
    for reward in rewards:
        each |= _judged(reward, pixels, prompts, records, references, groups)
    _refuse(rewards, each, pixels, prompts)
    return _summed(rewards, weights, each, pixels), each


def scored_with_gradient(
    rewards: Sequence[Reward],
    weights: Sequence[float],
    pixels: Tensor,
    prompts: Sequence[str],
    records: Records,
    references: References = (),
    groups: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Score as :func:`scored` does, without a graph, and also return the gradient of the sum with respect to
    ``pixels``, of their shape.

    Rewards run one after the other, so only one graph is in memory at a time.

    Raises:
        RewardError: as :func:`scored`; a reward with a weight has no gradient, or one that is zero or not finite.
    """
    _agree(rewards, weights, pixels, prompts, records)
    total_gradient = torch.zeros_like(pixels, dtype=torch.promote_types(pixels.dtype, torch.float32))
    each: dict[str, Tensor] = {}
    largest = {}
    for reward, weight in zip(rewards, weights, strict=True):
        if weight:
            values, gradient = _with_gradient(reward, pixels, prompts, records, references, groups)
            largest[reward.name] = gradient.abs().flatten(1).amax(1)
            total_gradient += weight * gradient
        else:
            with torch.no_grad():
                values = _judged(reward, pixels.detach(), prompts, records, references, groups)
        each |= {name: value.detach() for name, value in values.items()}
    _refuse(rewards, each, pixels, prompts, largest)
    return _summed(rewards, weights, each, pixels), each, total_gradient


def references_of(rewards: Sequence[Reward], batch: Batch) -> tuple[SampleReferences, ...]:
    """Return what rewards that compare get of the samples of a batch; empty where none of them compares."""
    if not batch.references or not any(getattr(reward, "compares", False) for reward in rewards):
        return ()
    read: dict[int, tuple[Tensor, ...]] = {}
    found = []
    for i, images in enumerate(batch.references):
        # Samples of one prompt share theirs.
        if id(images) not in read:
            listed = [each if isinstance(each, list) else [each] for each in images.values()]
            read[id(images)] = tuple(_pixels(image).to(batch.clean.device) for each in listed for image in each)
        mask = None if batch.mask is None else batch.mask[i]
        found.append(SampleReferences(images=read[id(images)], mask=mask))
    return tuple(found)


def _pixels(image: Any) -> Tensor:
    """Return ``[3, h, w]`` fp32 in [0, 1] of a Pillow image."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def reward_gradient(
    reward: Reward, pixels: Tensor, prompts: Sequence[str], records: Records, references: References = ()
) -> Tensor:
    """Return the gradient of the sum of a reward's values with respect to ``pixels``, of their shape.

    Raises:
        RewardError: the reward is not differentiable, has no graph to the pixels, or its gradient is zero on the whole
            batch or not finite; or as :func:`scored`.
    """
    return scored_with_gradient([reward], [1.0], pixels, prompts, records, references)[2]


def _judged(
    reward: Reward,
    pixels: Tensor,
    prompts: Sequence[str],
    records: Records,
    references: References,
    groups: Sequence[int],
) -> dict[str, Tensor]:
    """Return a reward's values ``[B]`` by its name, and each of its numbers, if it has several, by ``<name>.<number>``.

    Raises:
        RewardError: it raised an error; it compares, and an image has no reference; it judges groups, and an image is
            alone.
    """
    given: list[Any] = [pixels, prompts, records]
    together: dict[str, Any] = {}
    if getattr(reward, "compares", False):
        _referenced(reward, prompts, references)
        given.append(references)
    if getattr(reward, "judges", IMAGE) != IMAGE:
        _accompanied(reward, prompts, groups)
        together["groups"] = groups
    try:
        pauses = waits(RETRIES, WAIT) if getattr(reward, "retryable", False) else []
        values = persistently(lambda: _asked(reward, given, together), _OwnError, pauses, f"reward {reward.name!r}: ")
    except _OwnError as failure:
        error = failure.__cause__
        code = f"{type(reward).__module__}:{type(reward).__qualname__}"
        raise RewardError(f"reward {reward.name!r} ({code}) raised {type(error).__name__}: {error}") from error
    if not isinstance(values, Mapping):
        return {reward.name: _checked_form(reward, values, len(prompts))}
    weights: Mapping[str, float] = getattr(reward, "numbers", None) or {}
    if values.keys() != weights.keys():
        found, named = (", ".join(map(repr, each)) or "none" for each in (values, weights))
        raise RewardError(f"reward {reward.name!r} gave the numbers {found}, and its `numbers` name {named}")
    checked = {name: _checked_form(reward, value, len(prompts)) for name, value in values.items()}
    total = sum((weights[name] * value for name, value in checked.items()), start=torch.zeros(1, device=pixels.device))
    return {reward.name: total, **{f"{reward.name}.{name}": value for name, value in checked.items()}}


class _OwnError(Exception):
    """A reward raised an exception that is no error of flowhooks; its cause is that exception."""

    def __str__(self) -> str:
        return f"{type(self.__cause__).__name__}: {self.__cause__}"


def _asked(reward: Reward, given: Sequence[Any], together: Mapping[str, Any]) -> Any:
    try:
        return reward(*given, **together)
    except FlowhooksError:
        raise
    except Exception as error:
        raise _OwnError from error


def _referenced(reward: Reward, prompts: Sequence[str], references: References) -> None:
    for i, prompt in enumerate(prompts):
        if i >= len(references) or not references[i].images:
            raise RewardError(
                f"reward {reward.name!r} compares images with their references, and that of prompt {prompt!r} has "
                "none; name references in the data or in the prompts, or remove the reward"
            )


def _accompanied(reward: Reward, prompts: Sequence[str], groups: Sequence[int]) -> None:
    if len(groups) != len(prompts):
        raise RewardError(
            f"reward {reward.name!r} judges images of one prompt together, and got {len(groups)} groups for "
            f"{len(prompts)} images; give `groups`, for each image the number of its group"
        )
    for rows in members(groups):
        if len(rows) < 2:
            raise RewardError(
                f"reward {reward.name!r} judges images of one prompt together, and that of prompt "
                f"{prompts[rows[0]]!r} is alone in its group; set `group_size` to 2 or more"
            )


def _with_gradient(
    reward: Reward,
    pixels: Tensor,
    prompts: Sequence[str],
    records: Records,
    references: References,
    groups: Sequence[int],
) -> tuple[dict[str, Tensor], Tensor]:
    if not reward.differentiable:
        raise RewardError(
            f"reward {reward.name!r} is not differentiable, and a gradient is needed; use one that is, or give it "
            "the weight 0 to only measure it"
        )
    leaf = pixels.detach().to(torch.promote_types(pixels.dtype, torch.float32)).requires_grad_()
    with torch.enable_grad():
        each = _judged(reward, leaf, prompts, records, references, groups)
        values = each[reward.name]
        gradient = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    if gradient is None:
        raise RewardError(
            f"reward {reward.name!r} declares a gradient, but no graph leads from values to pixels; it must not "
            "pass through uint8, NumPy, Pillow, detach() or no_grad()"
        )
    return each, gradient


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

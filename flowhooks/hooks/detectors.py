"""Detects signs that a preference run hacks its objective instead of learning. They are logged and cause warnings; they
never stop a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowhooks.kernel.step import Step

#: Adds a tensor over processes.
Total = Callable[[Tensor], Tensor]
SIGMA_BUCKETS = 4
SATURATED = 0.05
#: Of the error that a margin is a difference of: what is smaller may be rounding.
ROUNDING = 1e-5
#: Relative; a smaller drift says nothing of where a model moves, nor does one that is hardly the larger.
DRIFT, MORE = 1e-4, 1.1


def drift(policy: Tensor, reference: Tensor, where: Tensor, total: Total = Tensor.detach) -> Tensor:
    """``|policy - reference| / |reference|`` over the elements weighed by ``where`` ``[B, ...]``; 0-dim, NaN when
    there are none. ``total`` adds sums over processes."""
    moved, size = total(
        torch.stack([(where * (policy - reference).square()).sum(), (where * reference.square()).sum()])
    )
    return (moved / size).sqrt()


def margin_by_sigma(
    margin: Tensor, sigma: Tensor, weight: Tensor | None = None, total: Total = Tensor.detach
) -> dict[str, Tensor]:
    """Mean margin in each quarter of sigma, NaN where no sample fell. ``total`` adds sums over processes."""
    bucket = (sigma * SIGMA_BUCKETS).long().clamp(max=SIGMA_BUCKETS - 1)
    counted = torch.ones_like(margin) if weight is None else (weight > 0).to(margin.dtype)
    found = {}
    for k in range(SIGMA_BUCKETS):
        here = counted * (bucket == k)
        name = f"margin_sigma_{k / SIGMA_BUCKETS:.2f}_{(k + 1) / SIGMA_BUCKETS:.2f}"
        whole, count = total(torch.stack([(here * margin).sum(), here.sum()]))
        found[name] = whole / count
    return found


def detect(step: Step, weight: Tensor | None, win_adv: Tensor, lose_adv: Tensor) -> dict[str, Tensor]:
    """The detectors of one step that are about margins, 0-dim each.

    Args:
        weight: ``[B]`` of the pairs that count; None: all.
        win_adv, lose_adv: ``[B]``.
    """
    main = step.views["main"]
    margin = win_adv + lose_adv
    hacked = (win_adv < 0) & (margin > 0)
    found = {
        "lose_only_pct": step.mean(100.0 * hacked.to(margin.dtype), weight),
        "lose_share": _ratio(step, lose_adv, margin, weight),
        **margin_by_sigma(margin, main.level, weight, step.all_reduce),
    }
    return found


def drifts(step: Step, role: str, views: Sequence[str]) -> dict[str, Tensor]:
    """How far the policy is from the reference on these views, 0-dim; inside and outside of masks where there are some.

    Args:
        role: that of the reference.
    """
    pairs = [(step.predict(name), step.predict(name, role)) for name in views]
    policy, reference = (torch.cat(side) for side in zip(*pairs, strict=True))
    masks = [step.views[name].mask for name in views]
    if masks[0] is None:
        return {"drift": drift(policy, reference, torch.ones_like(policy), step.all_reduce)}
    shaped = [mask.expand_as(one) for mask, (one, _) in zip(masks, pairs, strict=True) if mask is not None]
    inside = torch.cat(shaped).clamp(max=1)
    return {
        "drift_inside": drift(policy, reference, inside, step.all_reduce),
        "drift_outside": drift(policy, reference, 1 - inside, step.all_reduce),
    }


def _ratio(step: Step, part: Tensor, whole: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of ``part`` divided by that of ``whole`` ``[]``, over the global batch; a mean of ratios means
    nothing."""
    above, below = step.all_reduce(torch.stack([step.mean(part, weight), step.mean(whole, weight)]))
    return above / below


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The part of a run's configuration that the detectors' advice depends on.

    Args:
        name: type of the objective.
        adapts: whether the objective can adapt its beta at all.
        auto_beta: whether beta follows the margin.
        target: the gradient factor that it then aims at, in (0, 0.5).
        low, high: its clamp, or None.
        sft_loss_weight: of the ordinary loss on the preferred side, >= 0.
        anchor: weight of the anchor, 0 where there is none.
    """

    name: str
    adapts: bool = False
    auto_beta: bool = False
    target: float = 0.2
    low: float | None = None
    high: float | None = None
    sft_loss_weight: float = 0.0
    anchor: float = 0.0

    @property
    def stronger_anchor(self) -> str:
        """How to hold the policy nearer to the reference."""
        if self.anchor:
            return f"raise the anchor (`anchor_alpha`, or the `weight` of `anchor_regularizer`) above {self.anchor:g}"
        return "add an anchor (`anchor_alpha`, or the hook `anchor_regularizer`)"

    @property
    def plain_loss(self) -> str:
        if self.sft_loss_weight:
            return f"raise `sft_loss_weight` above {self.sft_loss_weight:g}"
        return "set `sft_loss_weight`"


def warn(metrics: Mapping[str, float], terms: Terms) -> list[str]:
    """Sentences for the log from running means of the metrics, in the terms of the run's configuration."""

    def read(name: str) -> float:
        return metrics.get(f"{terms.name}_{name}", math.nan)

    said = []
    floor = ROUNDING * sum(value for name in ("ref_win_err", "ref_lose_err") if math.isfinite(value := read(name)))
    if read("win_adv") < -floor and read("margin") > floor:
        said.append(
            f"{terms.name}: the margin, {read('margin'):.3g}, is there only because the rejected side gets worse: the "
            f"preferred one does too (win_adv {read('win_adv'):.3g}); {terms.stronger_anchor}, lower the learning "
            f"rate, or {terms.plain_loss}"
        )
    # Exactly 0: what is only small may become a margin yet.
    if floor > 0 and read("margin") == 0 and abs(read("ref_win_err") - read("ref_lose_err")) <= floor:
        said.append(
            f"{terms.name}: both sides of the pairs are alike: the reference errs by {read('ref_win_err'):.4g} on "
            "either, and the margin stays 0; there is nothing to prefer, so see whether the rejected images are copies"
        )
    # One that auto_beta was told to aim at is no fault.
    least = min(SATURATED, terms.target / 2) if terms.auto_beta else SATURATED
    if read("gradient_factor") < least:
        said.append(
            f"{terms.name}: the gradient factor {read('gradient_factor'):.3f} is below {least:g}: pairs are saturated; "
            f"{_softer(read('beta'), terms)}"
        )
    if read("beta_clamped") > 0.5:
        said.append(
            f"{terms.name}: in most steps {_held(read('beta'), terms)} holds beta away from what `auto_beta` asks for; "
            "widen the bound"
        )
    inside, outside = read("drift_inside"), read("drift_outside")
    if outside > max(MORE * inside, DRIFT):
        said.append(
            f"{terms.name}: the model moves more outside the mask ({outside:.3g}) than inside ({inside:.3g}); "
            f"{terms.stronger_anchor}"
        )
    return said


def _softer(beta: float, terms: Terms) -> str:
    """How to make a smaller beta of this run."""
    if not terms.auto_beta:
        other = ", or set `auto_beta`" if terms.adapts else ""
        return f"lower `beta`{f' below {beta:.4g}' if math.isfinite(beta) else ''}{other}"
    if terms.low is not None and beta <= 1.01 * terms.low:
        return f"lower `auto_beta_min`, {terms.low:g}, at which beta stands"
    return "`auto_beta` follows too slowly: lower `auto_beta_decay`, or the learning rate"


def _held(beta: float, terms: Terms) -> str:
    """The bound that beta stands at."""
    bounds = (("auto_beta_min", terms.low), ("auto_beta_max", terms.high))
    named = [f"`{key}` ({value:g})" for key, value in bounds if value is not None]
    if len(named) == 2 and terms.low is not None and terms.high is not None and math.isfinite(beta):
        return named[abs(beta - terms.high) < abs(beta - terms.low)]
    return " or ".join(named) or "a bound"

"""Signs that a preference run hacks its objective instead of learning. They are logged and warned of; they never stop
a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flowhooks.kernel.step import Step

#: Adds a tensor over processes.
Total = Callable[[Tensor], Tensor]
SIGMA_BUCKETS = 4
SATURATED = 0.05


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


def detect(step: Step, win_adv: Tensor, lose_adv: Tensor) -> dict[str, Tensor]:
    """The detectors of one step, 0-dim each.

    Args:
        win_adv, lose_adv: ``[B]``.
    """
    main = step.views["main"]
    margin = win_adv + lose_adv
    hacked = (win_adv < 0) & (margin > 0)
    found = {
        "lose_only_pct": step.mean(100.0 * hacked.to(margin.dtype), main.weight),
        "lose_share": _ratio(step, lose_adv, margin, main.weight),
        **margin_by_sigma(margin, main.level, main.weight, step.all_reduce),
    }
    pairs = [(step.predict(name), step.predict(name, "reference")) for name in ("main", "rejected")]
    policy, reference = (torch.cat(side) for side in zip(*pairs, strict=True))
    if main.mask is None:
        found["drift"] = drift(policy, reference, torch.ones_like(policy), step.all_reduce)
    else:
        inside = torch.cat([main.mask.expand_as(policy[: len(margin)])] * 2).clamp(max=1)
        found["drift_inside"] = drift(policy, reference, inside, step.all_reduce)
        found["drift_outside"] = drift(policy, reference, 1 - inside, step.all_reduce)
    return found


def _ratio(step: Step, part: Tensor, whole: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of ``part`` by that of ``whole`` ``[]``, both of the global batch: a mean of ratios says nothing."""
    above, below = step.all_reduce(torch.stack([step.mean(part, weight), step.mean(whole, weight)]))
    return above / below


def warn(metrics: Mapping[str, float]) -> list[str]:
    """Sentences for the log from averaged metrics."""

    def read(name: str) -> float:
        return metrics.get(f"flow_dpo_{name}", math.nan)

    said = []
    if read("win_adv") < 0 < read("margin"):
        said.append(
            "flow_dpo: the margin grows only because the rejected side gets worse (win_adv < 0); raise the anchor, "
            "lower the learning "
            "rate, or mix in sft_loss_weight"
        )
    if read("gradient_factor") < SATURATED:
        said.append(
            f"flow_dpo: the gradient factor {read('gradient_factor'):.3f} is below {SATURATED}: pairs are "
            f"saturated; lower beta, or set auto_beta"
        )
    if read("beta_clamped") > 0:
        said.append(
            "flow_dpo: auto_beta_min/auto_beta_max hold beta away from what auto_beta asks for; widen them or leave "
            "them out"
        )
    if read("drift_outside") > read("drift_inside"):
        said.append("flow_dpo: the model moves more outside the mask than inside; raise the anchor weight")
    return said

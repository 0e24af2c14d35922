"""Say which metrics stand in which figure, in which order, and how each is read."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

#: Groups, in the order of the page.
METHOD, HELD_OUT, OPTIMISER, SPEED, OTHER = "method", "held out", "optimiser", "speed", "other"
#: Metrics on samples that are never trained on.
VAL = "val/"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Describes one figure.

    Args:
        title: what it shows.
        note: one sentence on how to read it.
        metrics: names or patterns of metrics, each a line.
        group: its place on the page.
        reference: a value that is marked, if one has a meaning.
        log: whether a logarithmic axis is used where the values span more than a decade.
        smooth: whether the line is a mean of neighbours.
        ordered: whether its lines are one quantity at rising levels, such as bands of sigma.
        names: metric -> its label, where the metric's own name says too little.
    """

    title: str
    note: str
    metrics: tuple[str, ...]
    group: str = METHOD
    reference: float | None = None
    log: bool = False
    smooth: bool = True
    ordered: bool = False
    names: Mapping[str, str] | None = None


#: Hooks that learn from preferences, whose metrics of one name stand in one figure.
_PREFERENCES = ("flow_dpo", "ipo", "linear_dpo", "mapo", "kto")


def _of_preferences(*names: str) -> tuple[str, ...]:
    return tuple(f"{hook}_{name}" for hook in _PREFERENCES for name in names)


#: Hooks that learn from scored samples, and what each of them logs alike.
_SCORED = ("diffusion_nft", "awm", "dgpo", "crd")


def _of_scored(name: str) -> tuple[str, ...]:
    return tuple(f"{hook}_{name}" for hook in _SCORED)


def _labels(**labels: str) -> dict[str, str]:
    return {f"{hook}_{name}": label for hook in _PREFERENCES for name, label in labels.items()}


FIGURES = (
    Figure(
        title="Implicit accuracy",
        note="Share of pairs whose margin is above 0. At 0.5 the model tells no pair apart.",
        metrics=_of_preferences("implicit_accuracy"),
        reference=0.5,
    ),
    Figure(
        title="Margin",
        note="How much more the model has gained on preferred than on rejected images, against its reference.",
        metrics=_of_preferences("margin"),
        reference=0,
    ),
    Figure(
        title="Advantages",
        note="The two parts of the margin. It is earned where the preferred side rises, not only the rejected.",
        metrics=_of_preferences("win_adv", "lose_adv"),
        reference=0,
        names=_labels(win_adv="preferred", lose_adv="rejected"),
    ),
    Figure(
        title="Margin by noise level",
        note="The margin in each quarter of sigma, from little noise to much.",
        metrics=_of_preferences("margin_sigma_*"),
        reference=0,
        ordered=True,
    ),
    Figure(
        title="Beta",
        note="How sharply a margin counts. With auto_beta it follows the size of the margin.",
        metrics=_of_preferences("beta"),
        log=True,
        smooth=False,
    ),
    Figure(
        title="Gradient factor",
        note="Share of the gradient that the average pair still gives, 0.5 at the start. Near 0 pairs are saturated.",
        metrics=_of_preferences("gradient_factor"),
    ),
    Figure(
        title="Drift",
        note="How far the prediction has moved from the reference, relative to it.",
        metrics=_of_preferences("drift", "drift_inside", "drift_outside"),
        names=_labels(drift_inside="inside the mask", drift_outside="outside"),
    ),
    Figure(
        title="Reward",
        note="Mean reward of the run's own samples, and of each reward by itself.",
        metrics=tuple(f"{hook}_reward{rest}" for hook in ("flow_grpo", "adjoint", "ends") for rest in ("", "_*")),
    ),
    Figure(
        title="Spread of rewards",
        note="Standard deviation within a group of one prompt. At 0 a group teaches nothing.",
        metrics=("flow_grpo_reward_spread", "ends_reward_spread", "adjoint_reward_scale"),
    ),
    Figure(
        title="Ratio of likelihoods",
        note="How likely the policy makes the steps of its rollout, over how likely they were before the first update.",
        metrics=("flow_grpo_ratio",),
        reference=1,
    ),
    Figure(
        title="Distance from the rollout",
        note="KL divergence per element of the policy's steps from those of its rollout, before the first update 0.",
        metrics=("flow_grpo_divergence",),
    ),
    Figure(
        title="Outside of the trust region",
        note="Percentage of images and steps without a gradient, which have gone as far as they may.",
        metrics=("flow_grpo_clipped_pct",),
    ),
    Figure(
        title="Rounding of ratios",
        note="How far the logarithm of the ratio is from 0 before the first update, where it should be 0.",
        metrics=("flow_grpo_rounding",),
    ),
    Figure(
        title="Divergence from the base",
        note="Weighted KL divergence of stochastic steps from those of the base.",
        metrics=("flow_grpo_kl_loss",),
    ),
    Figure(
        title="Gap of the pairs",
        note="By how much the best of a group is better than the worst, by the rewards.",
        metrics=("best_and_worst_gap",),
    ),
    Figure(
        title="Distance from the old model",
        note="How far the policy is from its lagged copy, relative to it.",
        metrics=_of_scored("drift"),
    ),
    Figure(
        title="Gain over the old model",
        note="By how much the policy's error on the samples is below that of its lagged copy. Good and bad samples "
        "count alike, so it stays near 0.",
        metrics=_of_scored("gain"),
        reference=0,
    ),
    Figure(
        title="Clipped advantages",
        note="Percentage of samples whose advantage is cut off.",
        metrics=_of_scored("clipped_pct"),
    ),
    Figure(
        title="Likelihood ratio",
        note="Mean ratio of the likelihoods of samples under the policy and under its lagged copy; 1 at the start.",
        metrics=("awm_ratio",),
        reference=1,
    ),
    Figure(
        title="Beyond the clip range",
        note="Percentage of samples whose likelihood ratio is outside it (AWM), or that have moved as far as they may "
        "and give no gradient (DGPO).",
        metrics=("awm_beyond_pct", "dgpo_still_pct"),
    ),
    Figure(
        title="Weight of the groups",
        note="0.5 at the start, and the lower, the more a group's good samples have gained over the reference against "
        "its bad ones.",
        metrics=("dgpo_weight",),
        reference=0.5,
    ),
    Figure(
        title="Mismatch of gains and rewards",
        note="How far what samples have gained over the lagged copy is from how good they are, as seen from the mean "
        "of their group. It falls while rewards are learned.",
        metrics=("crd_mismatch",),
    ),
    Figure(
        title="Groups left out",
        note="Percentage of groups whose rewards are too close to make a pair. At 100 nothing is learned.",
        metrics=("best_and_worst_left_out_pct",),
    ),
    Figure(
        title="Control and drift",
        note="The best control, and the policy's, as shares of the base's velocity.",
        metrics=("adjoint_control", "adjoint_drift", "adjoint_early_drift"),
    ),
    Figure(
        title="Gap to the teacher",
        note="How far the student is from its teachers, relative to them. It falls.",
        metrics=("flow_opd_gap", "flow_opd_gap_*"),
    ),
    Figure(
        title="Sensitivity to the end of the interval",
        note="How much the prediction depends on where an interval ends. At 0 no flow map is learned.",
        metrics=("anyflow_r_sensitivity",),
        reference=0,
    ),
    Figure(title="Flow map error", note="Unscaled error of the flow map's target.", metrics=("anyflow_loss",)),
    Figure(
        title="Gap of the distributions",
        note="How far real and generated scores are apart.",
        metrics=("dmd_gap", "twin_flow_gap"),
    ),
    Figure(
        title="Alignment",
        note="Cosine of the student's features to the teacher's; 1 is the same direction.",
        metrics=("crepa_alignment_score",),
    ),
    Figure(
        title="Distance to the anchor",
        note="Mean square of what the prediction has moved away from the anchor.",
        metrics=("anchor_*_distance",),
        log=True,
    ),
    Figure(
        title="Images by step count",
        note="How far images of fewer sampling steps are from those of the most, from 0 to 1.",
        metrics=("val/distance_*_steps",),
        group=HELD_OUT,
        ordered=True,
        smooth=False,
    ),
    Figure(
        title="Loss",
        note="What is minimised. The method's own curves say more about whether it works.",
        metrics=("loss",),
        group=OPTIMISER,
    ),
    Figure(title="Gradient norm", note="Before clipping.", metrics=("grad_norm",), group=OPTIMISER, log=True),
    Figure(
        title="Learning rate",
        note="As the scheduler set it.",
        metrics=("learning_rate",),
        group=OPTIMISER,
        smooth=False,
    ),
    Figure(
        title="Seconds per step",
        note="Mean since the step that was logged before; validation and checkpoints count where they are waited for.",
        metrics=("seconds_per_step",),
        group=SPEED,
        smooth=False,
    ),
)
#: Logged, and no figure: it rises with the steps.
_HIDDEN = {"epoch"}


def figures_for(names: Collection[str], health: Mapping[str, str]) -> Iterator[tuple[Figure, list[str]]]:
    """Yield each figure that any of these metrics belongs into, with its metrics; held-out ones stand beside those of
    the same name, and what no figure names has one of its own.

    Args:
        health: metric -> short name, of those by which the run's hooks are best judged.
    """
    left = [name for name in dict.fromkeys(names) if name not in _HIDDEN]
    own = [name for name in health if name in left and not any(_takes(each, name) for each in FIGURES)]
    for figure in (*(_single(name, METHOD, health[name]) for name in own), *FIGURES):
        found = [name for name in _of(figure, left) if not _claimed_better(figure, name)]
        found += [VAL + name for name in found if VAL + name in left]
        if found:
            left = [name for name in left if name not in found]
            yield figure, found
    for name in sorted(left):
        yield _single(name, HELD_OUT if name.startswith(VAL) else OTHER, name), [name]


def label(figure: Figure, name: str, found: Collection[str]) -> str:
    """Return the label of one line: what sets it apart from the others of its figure."""
    plain, held = name.removeprefix(VAL), name.startswith(VAL) and name.removeprefix(VAL) in found
    if figure.names and plain in figure.names:
        text = figure.names[plain]
    elif (band := re.search(r"sigma_([\d.]+)_([\d.]+)$", plain)) is not None:
        text = f"{float(band[1]):g} to {float(band[2]):g}"
    elif (count := re.search(r"distance_(\d+)_steps$", plain)) is not None:
        text = f"{count[1]} step{'' if count[1] == '1' else 's'}"
    elif len({name.removeprefix(VAL) for name in found}) == 1:
        text = figure.title[:1].lower() + figure.title[1:]
    else:
        shared = _shared(found)
        text = plain.rpartition("_")[2] if f"{plain}_" == shared else plain.removeprefix(shared).replace("_", " ")
    return f"{text}, held out" if held else text


def _shared(found: Collection[str]) -> str:
    """Return what all names of a figure begin with, up to a whole word; nothing for one name."""
    plain = {f"{name.removeprefix(VAL)}_" for name in found}
    return os.path.commonprefix(sorted(plain)).rpartition("_")[0] + "_" if len(plain) > 1 else ""


def _of(figure: Figure, names: Collection[str]) -> list[str]:
    return [name for pattern in figure.metrics for name in names if fnmatchcase(name, pattern)]


def _takes(figure: Figure, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in figure.metrics)


def _claimed_better(figure: Figure, name: str) -> bool:
    """Return whether another figure names a metric outright that this one has by a pattern."""
    return name not in figure.metrics and any(name in each.metrics for each in FIGURES)


def _single(name: str, group: str, title: str) -> Figure:
    words = title.removeprefix(VAL).replace("_", " ")
    note = "On samples that are never trained on." if group == HELD_OUT else f"The metric {name}."
    return Figure(title=words[:1].upper() + words[1:], note=note, metrics=(name,), group=group)

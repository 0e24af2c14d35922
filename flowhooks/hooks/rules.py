"""What no schema can say of one hook's options, free of torch: `check` asks here, and so do the hooks' classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowhooks.sampling.prompts import by_task, read_prompts

Options = Mapping[str, Any]
#: The teacher that stands for the model without an adapter.
BASE = "base"


def refused(type: str, options: Options) -> str | None:
    """Why the class of a shipped hook refuses options that its schema allows; None where it takes them.

    Args:
        type: name of a hook.
        options: all of its options, or those that its rule reads.
    """
    return RULES[type](options) if type in RULES else None


def refuse(type: str, /, **options: Any) -> None:
    """Raises ValueError where :func:`refused` has a reason."""
    if message := refused(type, options):
        raise ValueError(message)


def _rollout(options: Options) -> str | None:
    steps, window, early = options["num_inference_steps"], options["window"], options["early_visits"]
    last, sigma = options["last_steps"], options["sigma_max"]
    from_the_end = last is not None or sigma is not None
    if window is not None and not 0 <= window[0] < window[1] <= steps:
        return f"`window` must be two indices of steps, the first below the second, got {list(window)}"
    if from_the_end and (options["sampler"] != "ode" or options["visits"] is not None):
        return "`last_steps` and `sigma_max` go with the sampler 'ode', and in place of `visits`"
    if last is not None and sigma is not None:
        return "`last_steps` and `sigma_max` both say where the end starts; give one of them"
    if early and not from_the_end:
        return "`early_visits` counts states before those of `last_steps` or `sigma_max`; give one"
    if options["prompts"] is None:
        return None
    try:
        by_task(read_prompts(options["prompts"]), options["task_column"])
    except ValueError as error:
        return str(error)
    return None


def _intervals(options: Options) -> str | None:
    shares = options["diffusion_ratio"], options["zero_ratio"]
    if min(shares) < 0 or sum(shares) > 1:
        return f"`diffusion_ratio` and `zero_ratio` are shares of one batch, got {shares[0]} and {shares[1]}"
    return None


def _teacher(options: Options) -> str | None:
    teachers, routes = options["teachers"], options["routes"] or {}
    if not teachers or BASE in teachers:
        return f"`teachers` must name one or more adapters, none of them {BASE!r}; got {list(teachers)}"
    unknown = sorted(set(routes.values()) - {*teachers, BASE})
    if unknown:
        return f"`routes` lead to {unknown[0]!r}, which is none of the teachers {sorted(teachers)}"
    return None


def _twin(options: Options) -> str | None:
    if options["rectification_weight"] and not options["adversarial_weight"]:
        return (
            f"`rectification_weight` is {options['rectification_weight']}, but with an `adversarial_weight` of 0 "
            "nothing trains the branch it corrects by; set both to 0, or neither"
        )
    return None


#: Hook -> the weight that switches it on, of those that draw samples from pure noise with the network they train.
WHOLE_PATH: Mapping[str, str] = {"twin_flow": "adversarial_weight", "distribution_matching": "weight"}

RULES: Mapping[str, Callable[[Options], str | None]] = {
    "on_policy_rollout": _rollout,
    "interval_times": _intervals,
    "teacher_velocity": _teacher,
    "twin_flow": _twin,
}

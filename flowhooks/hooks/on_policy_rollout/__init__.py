"""On-policy rollouts: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.prompted_spec import PromptedSpec
from flowhooks.sampling.prompts import visited_places

#: How the option is offered by methods whose steps are stochastic.
NOISY_WEIGHTINGS: Mapping[str, Any] = {
    "description": "Weight W of a visited state. `uniform`: 1. `kl`: the factor of the exact divergence of two SDE "
    "steps. `kl_nodt`: that times the step's length. `x_t`: the length squared. `x0`: sigma squared.",
    "enum": ["uniform", "kl", "kl_nodt", "x_t", "x0"],
}


class OnPolicyRolloutSpec(PromptedSpec, type="on_policy_rollout", title="On-policy rollout"):
    """Generates images with the student, through the pipeline's own loop, and trains on the states it went through."""

    slots = {"source"}
    gives = {"drawn", "rollout", "sigma"}
    implied_by = ("rollout", "drawn")
    papers = ("liu2025flowgrpo", "wang2025coefficients")
    page = "flow_opd.md"

    sampler: Literal["ode", "sde", "cps"] = option(
        "`ode`: the pipeline's own steps. `sde`: stochastic steps that keep the flow's marginals. `cps`: stochastic "
        "steps that keep the shares of data and noise.",
        default="sde",
    )
    num_inference_steps: int = option("Sampling steps of a rollout.", default=10, minimum=2, maximum=10_000)
    noise_level: float = option(
        "Strength of the noise that `sde` and `cps` steps add.", default=0.7, exclusiveMinimum=0, maximum=1_000_000
    )
    window: Sequence[Any] | None = option(
        "First and end index of the stochastic steps; the others are `ode`. `null` makes all but the last stochastic.",
        default=None,
        items={"type": "integer", "minimum": 0, "maximum": 10000},
        minItems=2,
        maxItems=2,
    )
    visits: int | None = option(
        "How many states of each rollout are trained on, chosen at random; `null` takes all that may be.",
        default=None,
        minimum=1,
        maximum=10_000,
    )
    train_fraction: float = option(
        "Only states in this first part of the steps are trained on; the default leaves out the last one.",
        default=0.99,
        exclusiveMinimum=0,
        maximum=1,
    )
    last_steps: int | None = option(
        "Visit this many steps at the end, all of them, with the sampler `ode` and in place of `visits`, "
        "`train_fraction` and `window`; `null` does not.",
        default=None,
        minimum=1,
        maximum=10_000,
    )
    sigma_max: float | None = option(
        "In place of `last_steps`: visit all steps that start at or below this sigma.",
        default=None,
        exclusiveMinimum=0,
        maximum=1,
    )
    early_visits: int = option(
        "How many states before those of `last_steps` or `sigma_max` are visited too, at random; each stands for "
        "all of them.",
        default=0,
        minimum=0,
        maximum=10_000,
    )
    weighting: Literal["uniform", "kl", "kl_nodt", "x_t", "x0", "dt"] = option(
        "Weight W of a visited state. `uniform`: 1. `kl`: the factor of the exact divergence of two SDE steps. "
        "`kl_nodt`: that times the step's length. `x_t`: the length squared. `x0`: sigma squared. `dt`: the length "
        "relative to the mean length.",
        default="uniform",
    )
    pipeline_arguments: Mapping[str, Any] | None = option(
        "Arguments for the pipeline's call, such as `guidance_scale` and `negative_prompt`. Guidance is off unless "
        "it is named here.",
        default=None,
    )
    offload_states: bool = option("Keep states on the CPU until they are visited.", default=False)

    def declares(self) -> Mapping[str, Any]:
        window = self.window if self.sampler != "ode" else None
        places = visited_places(self.num_inference_steps, self.train_fraction, window)
        chunks = min(self.visits or len(places), len(places))
        if self.last_steps is not None:
            chunks = min(self.last_steps + self.early_visits, self.num_inference_steps)
        elif self.sigma_max is not None:
            chunks = self.num_inference_steps
        return {
            "needs": self.of_data,
            "queries": self.num_inference_steps,
            "chunks": chunks,
        }

    def refusal(self) -> str | None:
        window, steps = self.window, self.num_inference_steps
        from_the_end = self.last_steps is not None or self.sigma_max is not None
        if window is not None and not 0 <= window[0] < window[1] <= steps:
            return f"`window` must be two indices of steps, the first below the second, got {list(window)}"
        if from_the_end and (self.sampler != "ode" or self.visits is not None):
            return "`last_steps` and `sigma_max` go with the sampler 'ode', and in place of `visits`"
        if self.last_steps is not None and self.sigma_max is not None:
            return "`last_steps` and `sigma_max` both say where the end starts; give one of them"
        if self.early_visits and not from_the_end:
            return "`early_visits` counts states before those of `last_steps` or `sigma_max`; give one"
        return super().refusal()

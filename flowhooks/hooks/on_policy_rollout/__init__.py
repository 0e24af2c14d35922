"""On-policy rollouts: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

#: Options for methods that compare samples of a group, or weigh later updates on a rollout; others do not offer them.
FOR_RATIOS = ("noise_schedule", "shared_start", "window_every", "updates_per_rollout")
#: Option that is set -> the paper that it is of.
_VARIANTS = {"shared_start": "xue2025dancegrpo", "window_every": "li2025mixgrpo"}


class OnPolicyRolloutSpec(PromptedSpec, type="on_policy_rollout", title="On-policy rollout"):
    """Generates images with the student, through the pipeline's own loop, and trains on the states it went through."""

    slots = {"source"}
    gives = {"drawn", "rollout", "sigma"}
    implied_by = ("rollout", "drawn")
    papers = ("liu2025flowgrpo", "wang2025coefficients", *_VARIANTS.values())
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
    noise_schedule: Literal["flow", "constant"] = option(
        "How the noise of `sde` steps depends on sigma s. `flow`: `noise_level * sqrt(s / (1 - s))`. `constant`: "
        "`noise_level` everywhere.",
        default="flow",
    )
    shared_start: bool = option(
        "Start all images of a group from one noise, so that stochastic steps alone tell them apart.", default=False
    )
    window: Sequence[Any] | None = option(
        "First and end index of the stochastic steps; the others are `ode`. `null` makes all but the last stochastic.",
        default=None,
        items={"type": "integer", "minimum": 0, "maximum": 10000},
        minItems=2,
        maxItems=2,
    )
    window_every: int | None = option(
        "Optimiser steps after which `window` moves on by one step, until it holds the last ones; `null` leaves it.",
        default=None,
        minimum=1,
        maximum=1_000_000_000,
    )
    updates_per_rollout: int = option(
        "Optimiser steps that train on a rollout: `visits` states each, in a random order in which none comes twice "
        "before all came once. Above 1 the run needs `prompts`, and `flow_grpo`.",
        default=1,
        minimum=1,
        maximum=10_000,
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

    @classmethod
    def cites(cls, block: Mapping[str, Any]) -> tuple[str, ...]:
        return (*cls.papers[:2], *(paper for name, paper in _VARIANTS.items() if block.get(name)))

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

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if self.sampler != "sde" and self.noise_schedule != "flow":
            yield (
                "noise_schedule",
                f"is about `sde` steps, and the sampler is {self.sampler!r}; set that to 'sde', or leave this out",
            )
        if self.shared_start and (self.group_size < 2 or self.sampler == "ode"):
            yield (
                "shared_start",
                "gives the images of a group one noise, and stochastic steps differ: it needs a `group_size` of 2 or "
                "more, and the sampler 'sde' or 'cps'; set these, or leave it out",
            )
        if self.window_every is not None and (self.window is None or self.sampler == "ode"):
            yield (
                "window_every",
                "moves the `window` of stochastic steps, and there is none; name `window` and the sampler 'sde' or "
                "'cps', or leave this out",
            )
        yield from self._update_faults()

    def _update_faults(self) -> Iterator[tuple[str, str]]:
        """Yield what speaks against several updates on a rollout."""
        if self.updates_per_rollout == 1:
            return
        if self.prompts is None:
            yield (
                "updates_per_rollout",
                f"{self.updates_per_rollout} updates train on a rollout, and a batch of the data, whose captions this "
                "run samples, is there for one; name `prompts`, or set it to 1",
            )
        if self.sampler == "ode":
            yield (
                "updates_per_rollout",
                "weighs later updates by how likely they make the stochastic steps of the rollout, and those of the "
                "sampler 'ode' are not; set that to 'sde' or 'cps', or this to 1",
            )

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

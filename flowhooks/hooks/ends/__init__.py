"""Scored samples, as they came out in the end: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.prompted_spec import PromptedSpec
from flowhooks.rewards.registry import masked_by

#: Why what trains on whole samples cannot be beside a hook that visits states.
WHOLE_SAMPLES = "{name} trains on whole samples, and {other} on the states that its samples go through"
_ONE_LEVEL = "{name} trains on whole samples at one noise level each, and {other} gives a sample two"


class EndsSpec(PromptedSpec, type="ends", title="Ends"):
    """Generates groups of samples of one prompt with the pipeline's own scheduler, scores them by rewards, and trains
    on them as on images of the data, at fresh noise levels and noise, as often as it should."""

    slots = {"source", "views", "metrics"}
    gives = {"drawn", "ends"}
    excludes = {
        "mask": "a mask belongs to an image of the data, and {name} trains on samples that it generates",
        "paired_views": "{name} trains on samples that it generates, and {other} on pairs of the data",
        "r_sigma": _ONE_LEVEL,
        "rollout": WHOLE_SAMPLES,
        "teacher_velocity": "{name} trains on samples that rewards tell apart, and {other} sets a target for all alike",
        "token_sigma": _ONE_LEVEL,
    }
    page = "online_dpo.md"

    rewards: Sequence[Any] = option(
        "One block per reward, with `type`, the options of that reward, and `weight`.",
        minItems=1,
        items={"$ref": "../reward.schema.json"},
    )
    num_inference_steps: int = option(
        "Sampling steps, by the pipeline's own scheduler.", default=10, minimum=1, maximum=10_000
    )
    updates_per_rollout: int = option(
        "Optimiser steps that train on a rollout, each at noise levels and noise of its own. Above 1 the run needs "
        "`prompts`.",
        default=1,
        minimum=1,
        maximum=10_000,
    )
    sampled_by: Literal["policy", "old", "sampler", "ema"] = option(
        "Whose samples they are: `policy`, the model that is trained; `old` or `sampler`, a lagged copy; `ema`, the "
        "average of its weights.",
        default="policy",
    )
    noise: Literal["sample", "group"] = option(
        "What has a noise level and noise of its own: each `sample`, or each `group`, whose samples are then told "
        "apart by nothing else.",
        default="sample",
    )
    pipeline_arguments: Mapping[str, Any] | None = option(
        "Arguments for the pipeline's call, such as `guidance_scale` and `negative_prompt`. Guidance is off unless "
        "it is named here; the loss has none.",
        default=None,
    )

    def declares(self) -> Mapping[str, Any]:
        role = set() if self.sampled_by == "policy" else {f"role:{self.sampled_by}"}
        return {
            "needs": {"sigma", *role, *self.of_data, *masked_by(self.rewards)},
            "gives": {*self.gives, *(["group_noise"] if self.noise == "group" else [])},
            "queries": self.num_inference_steps,
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if self.prompts is None and self.updates_per_rollout > 1:
            yield (
                "updates_per_rollout",
                f"{self.updates_per_rollout} updates train on a rollout, and a batch of the data, whose captions this "
                "run samples, is there for one; name `prompts`, or set it to 1",
            )

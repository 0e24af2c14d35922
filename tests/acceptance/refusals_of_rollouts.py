"""Rollouts and objectives on them whose options contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.acceptance.refusal_makers import JUDGE, PROMPTED, Refusal, rollout, written
from tests.acceptance.user import User


def compared(objective: Mapping[str, Any], **drawn: Any) -> Callable[[User], object]:
    """Rollouts that `flow_grpo` compares under these options."""
    hooks = [{"type": "flow_grpo", "rewards": [JUDGE], **objective}, {**PROMPTED, "group_size": 2, **drawn}]
    return written(data=None, hooks=hooks)


ROLLOUTS: dict[str, Refusal] = {
    "a window that is larger than the steps": Refusal(
        make=rollout(window=[0, 9], num_inference_steps=8), words=("`window` must be two indices",)
    ),
    "a window that moves, and is not there": Refusal(
        make=rollout(window_every=5), words=("$.hooks[1].window_every: ", "name `window`")
    ),
    "a window of chance that moves where there is none": Refusal(
        make=rollout(window_every=5, window=[0, 2], sampler="ode"),
        words=("$.hooks[1].window_every: ", "'sde' or 'cps'"),
    ),
    "a schedule of the noise of other steps": Refusal(
        make=rollout(noise_schedule="constant", sampler="cps"), words=("$.hooks[1].noise_schedule: ", "is 'cps'")
    ),
    "one start for one image": Refusal(
        make=rollout(shared_start=True), words=("$.hooks[1].shared_start: ", "`group_size` of 2 or more")
    ),
    "one start without chance": Refusal(
        make=rollout(shared_start=True, group_size=4, sampler="ode"), words=("$.hooks[1].shared_start: ",)
    ),
    "several updates on a batch of the data": Refusal(
        make=written(
            hooks=[
                {"type": "flow_grpo", "rewards": [JUDGE]},
                {"type": "on_policy_rollout", "group_size": 2, "updates_per_rollout": 2},
            ]
        ),
        words=("$.hooks[1].updates_per_rollout: ", "name `prompts`, or set it to 1"),
    ),
    "several updates on steps without chance": Refusal(
        make=rollout(updates_per_rollout=2, sampler="ode"), words=("$.hooks[1].updates_per_rollout: ", "'ode' are not")
    ),
    "several updates that nothing weighs": Refusal(
        make=written(
            data=None,
            hooks=[
                {"type": "teacher_velocity", "teachers": {"ink": "a/b"}},
                {**PROMPTED, "updates_per_rollout": 2},
            ],
        ),
        words=("$.hooks[1].updates_per_rollout: ", "weighed by 'flow_grpo', which is not in this run"),
    ),
    "several updates under dropout": Refusal(
        make=lambda user: user.write(
            data=None,
            adapter={"dropout": 0.1},
            hooks=[
                {"type": "flow_grpo", "rewards": [JUDGE]},
                {**PROMPTED, "group_size": 2, "updates_per_rollout": 2},
            ],
        ),
        words=("$.hooks[1].updates_per_rollout: ", "two masks of `adapter.dropout` 0.1"),
    ),
    **{
        f"{option} of a single update": Refusal(
            make=compared({option: value}),
            words=(f"$.hooks[0].{option}: counts from the second update", "`updates_per_rollout` is 1"),
        )
        for option, value in {"ratio": "guarded", "trust": "divergence", "clip_range": 0.2}.items()
    },
    "a clip of what is not clipped": Refusal(
        make=compared({"trust": "divergence", "clip_range": 0.2}, updates_per_rollout=2),
        words=("$.hooks[0].clip_range: ", "leave one of them out"),
    ),
    "a threshold of what is clipped": Refusal(
        make=compared({"divergence_threshold": 0.2}, updates_per_rollout=2),
        words=("$.hooks[0].divergence_threshold: ", "about `trust` 'divergence'"),
    ),
    "a form of a divergence of no weight": Refusal(
        make=compared({"kl_form": "released"}), words=("$.hooks[0].kl_form: ", "give that a weight")
    ),
    "a spread of rewards that have both": Refusal(
        make=compared({"combine": "decoupled", "spread": "batch"}), words=("$.hooks[0].spread: ", "has both spreads")
    ),
    "a divergence from a base that is trained": Refusal(
        make=lambda user: user.write(
            data=None,
            adapter=None,
            training={"trainable": "transformer"},
            hooks=[{"type": "flow_grpo", "rewards": [JUDGE], "kl_weight": 0.1}, {**PROMPTED, "group_size": 2}],
        ),
        words=("needs a reference", "its adapter off"),
    ),
}

"""Policy gradient on rewards: images of one prompt compete (Flow-GRPO, arXiv 2505.05470)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.hooks.decoding import Decoder, as_pictures
from flowhooks.hooks.flow_grpo import FlowGRPOSpec
from flowhooks.hooks.judging import Judges
from flowhooks.hooks.on_policy_rollout.hook import RolloutSource, visit_of
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step

SMALL = 1e-4


def group_advantages(rewards: Tensor, size: int, clip: float) -> Tensor:
    """``[B]`` of groups of ``size`` in a row: ``(r - mean) / (std + 1e-4)`` within each, cut off at ``clip``."""
    groups = rewards.unflatten(0, (-1, size))
    spread = groups.std(1, correction=0, keepdim=True)
    return ((groups - groups.mean(1, keepdim=True)) / (spread + SMALL)).clamp(-clip, clip).flatten()


def policy_gradient_loss(log_prob: Tensor, before: Tensor, advantage: Tensor) -> Tensor:
    """``[B]`` ``-A pi / pi_before``.

    Args:
        log_prob: ``[B]`` of the sampled step, mean over elements, with gradient.
        before: ``[B]`` the same when it was sampled. With one update per rollout the ratio is exactly 1, so that
            clipping would change nothing.
        advantage: ``[B]``.
    """
    return -advantage * torch.exp(log_prob - before)


class FlowGRPO(FlowGRPOSpec, Hook):
    """Sets the objective of stochastic rollouts: an image's advantage over the others of its prompt, times the log
    density of every visited step.

    Raises:
        ModelError: on attaching, groups of one, a deterministic sampler, or a pipeline without a VAE.
        RewardFailure: in a step, a reward gives no number; every process raises it.
    """

    health = "flow_grpo_reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks = [dict(block) for block in self.rewards]
        self._rollout: Any = None
        self._advantages: Tensor | None = None
        self._values: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        source: RolloutSource = session.source
        if source.group_size < 2 or source.sampling.kind == "ode":
            raise ModelError(
                "`flow_grpo` compares images of one prompt along stochastic steps; set `group_size` to 2 or more, "
                "and `sampler` to 'sde' or 'cps'"
            )
        model: Any = session.model
        self._size = source.group_size
        self._decoder = Decoder(model, "`flow_grpo`")
        self._judges = Judges(self.blocks, model.device, self._size)
        with self._decoder.attached():
            yield

    def objective(self, step: Step) -> Tensor:
        view = step.views[MAIN_VIEW]
        visit = visit_of(view)
        if visit.rollout is not self._rollout:
            self._judge(step, visit.rollout)
        assert self._advantages is not None
        if not visit.transition.deviation:
            return 0 * step.predict(MAIN_VIEW).sum()
        policy = step.predict(MAIN_VIEW)
        log_prob = visit.stepped_by(policy).log_density(policy).flatten(1).mean(1)
        return step.mean(policy_gradient_loss(log_prob, log_prob.detach(), self._advantages), view.weight)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return dict(self._values)

    @torch.no_grad()
    def _judge(self, step: Step, rollout: Any) -> None:
        """Computes the advantages once per rollout; all of its states share them."""
        batch = step.batch
        pixels = as_pictures(self._decoder.frames(batch.clean, condition=batch.condition))
        total, each = self._judges.scored(step, pixels, batch)
        self._rollout = rollout
        self._advantages = group_advantages(total, self._size, self.advantage_clip)
        spread = total.unflatten(0, (-1, self._size)).std(1, correction=0).mean()
        named = {f"flow_grpo_reward_{name}": value.mean() for name, value in each.items()}
        self._values = {"flow_grpo_reward": total.mean(), "flow_grpo_reward_spread": spread, **named}

"""Policy gradient on rewards: images of one prompt compete (Flow-GRPO, arXiv 2505.05470)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.hooks.anchor_regularizer.hook import anchor
from flowhooks.hooks.asking import seen_part
from flowhooks.hooks.decoding import Decoder, as_pictures
from flowhooks.hooks.flow_grpo import FlowGRPOSpec
from flowhooks.hooks.flow_grpo.ratios import (
    DIVERGENCE,
    ComparedStep,
    beyond_clip,
    beyond_divergence,
    clipped_loss,
    compared,
    gated_loss,
)
from flowhooks.hooks.judging import Judges
from flowhooks.hooks.on_policy_rollout.hook import RolloutSource, visit_of, visited
from flowhooks.hooks.on_policy_rollout.kept import DrawnPart
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import at_least_fp32
from flowhooks.rewards.advantages import batch_advantages, decoupled_advantages, group_advantages
from flowhooks.transfer import sent

#: Names under which the samples keep what they are worth.
ADVANTAGE, TOTAL, EACH = "advantage", "total", "each."
OF_UPDATES = ("flow_grpo_ratio", "flow_grpo_divergence", "flow_grpo_clipped_pct", "flow_grpo_rounding")


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

    With several updates on a rollout it is the advantage times the ratio of densities, within a trust region; see
    :mod:`flowhooks.hooks.flow_grpo.ratios`. Rewards are asked once a rollout.

    Raises:
        ModelError: on attaching, groups of one, a deterministic sampler, or a pipeline without a VAE.
        RewardFailure: in a step, a reward gives no number; every process raises it.
    """

    health = "flow_grpo_reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks = [dict(block) for block in self.rewards]

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        source: RolloutSource = session.source
        if source.group_size < 2 or source.sampling.kind == "ode":
            raise ModelError(
                "`flow_grpo` compares images of one prompt along stochastic steps; set `group_size` to 2 or more, "
                "and `sampler` to 'sde' or 'cps'"
            )
        model: Any = session.model
        self._size, self._updates = source.group_size, source.updates_per_rollout
        self._decoder = Decoder(model, "`flow_grpo`")
        self._judges = Judges(self.blocks, model.device, self._size)
        with self._decoder.attached():
            yield

    def objective(self, step: Step) -> Tensor:
        view = step.views[MAIN_VIEW]
        advantage = self._judged(step)[ADVANTAGE]
        visit = visit_of(view)
        policy = step.predict(MAIN_VIEW)
        if not visit.transition.deviation:
            return 0 * policy.sum()
        if self._updates == 1:
            log_prob = visit.stepped_by(policy).log_density(policy).flatten(1).mean(1)
            return step.mean(policy_gradient_loss(log_prob, log_prob.detach(), advantage), view.weight)
        found = self._compared(step)
        if self.trust == DIVERGENCE:
            loss = gated_loss(found.ratio, advantage, found.divergence, self.divergence_threshold)
        else:
            loss = clipped_loss(found.ratio, advantage, self.clip_range)
        return step.mean(loss, view.weight)

    def penalty(self, step: Step) -> dict[str, Tensor]:
        """``flow_grpo_kl_loss``: the weighted divergence of a stochastic step from the base's."""
        view = step.views[MAIN_VIEW]
        taken = visit_of(view).transition
        if not self.kl_weight or not taken.deviation:
            return {}
        apart = anchor(*(at_least_fp32(step.predict(MAIN_VIEW, role)) for role in (POLICY, "reference")))
        weight = taken.kl_weight * (taken.start - taken.end if self.kl_form == "released" else 1.0)
        return {"flow_grpo_kl_loss": self.kl_weight * weight * step.mean(apart, view.weight)}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        notes = self._judged(step)
        total = notes[TOTAL]
        spread = total.unflatten(0, (-1, self._size)).std(1, correction=0).mean()
        named = {f"flow_grpo_reward_{n.removeprefix(EACH)}": v.mean() for n, v in notes.items() if n.startswith(EACH)}
        found = {"flow_grpo_reward": total.mean(), "flow_grpo_reward_spread": spread, **named}
        return found if self._updates == 1 else {**found, **self._of_updates(step, notes[ADVANTAGE])}

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        rounding = metrics.get("flow_grpo_rounding", 0.0)
        if self.trust == DIVERGENCE or rounding <= self.clip_range:
            return []
        return [
            f"before any update the ratios are off 1 by {rounding:.1g}, by rounding alone, and `clip_range` is "
            f"{self.clip_range:.1g}: samples are clipped at random; train in 'fp32', widen `clip_range`, or set "
            "`trust` to 'divergence'"
        ]

    def _compared(self, step: Step) -> ComparedStep:
        """Returns how the step at the main view compares with the one that was sampled before the first update."""
        view = step.views[MAIN_VIEW]
        visit, policy = visit_of(view), step.predict(MAIN_VIEW)
        before = sent(visit.before, policy.device)
        if visit.rollout.scored:
            visit = visit.stepped_by(before)
        state, after = (sent(each, policy.device) for each in (visit.state, visit.after))
        before = seen_part(step, before, view.condition)
        return compared(visit.transition, state, after, policy, before, self.ratio)

    def _of_updates(self, step: Step, advantage: Tensor) -> dict[str, Tensor]:
        """Returns what is measured of several updates on one rollout; NaN where a step has no noise."""
        state = visited(step.views[MAIN_VIEW])
        nothing = torch.full((), float("nan"), device=advantage.device)
        if not state.visit.transition.deviation:
            return dict.fromkeys(OF_UPDATES, nothing)
        found = self._compared(step)
        if self.trust == DIVERGENCE:
            out = beyond_divergence(found.ratio, advantage, found.divergence, self.divergence_threshold)
        else:
            out = beyond_clip(found.ratio, advantage, self.clip_range)
        values = (
            found.ratio.mean(),
            found.divergence.mean(),
            100.0 * out.float().mean(),
            nothing if state.update else found.log_ratio.abs().mean(),
        )
        return dict(zip(OF_UPDATES, values, strict=True))

    @torch.no_grad()
    def _judged(self, step: Step) -> Mapping[str, Tensor]:
        """Returns what is known of the samples of the main view, by name. All samples of the micro-batch are judged
        together, when the first state of them is visited."""
        state = visited(step.views[MAIN_VIEW])
        assert state.part is not None, "the visit was changed"
        if ADVANTAGE not in state.part.notes:
            for part in state.together:
                batch = part.batch
                pixels = as_pictures(self._decoder.frames(batch.clean, condition=batch.condition))
                total, each = self._judges.scored(step, pixels, batch)
                part.notes.update({TOTAL: total, **{f"{EACH}{name}": value for name, value in each.items()}})
            for part, advantage in zip(state.together, self._advantages(step, state.together), strict=True):
                part.notes[ADVANTAGE] = advantage
        return state.part.notes

    def _advantages(self, step: Step, parts: Sequence[DrawnPart]) -> Sequence[Tensor]:
        """Returns the advantages of the samples of every part."""
        size, clip = self._size, self.advantage_clip
        if self.combine == "sum" and self.spread == "group":
            return [group_advantages(part.notes[TOTAL], size, clip) for part in parts]
        joined = {name: torch.cat([part.notes[name] for part in parts]) for name in parts[0].notes}
        if self.combine == "sum":
            found = batch_advantages(joined[TOTAL], size, clip, step.all_reduce)
        else:
            each = [joined[f"{EACH}{reward.name}"] for reward in self._judges.rewards]
            found = decoupled_advantages(each, self._judges.weights, size, clip, step.all_reduce)
        return found.split([len(part.rows) for part in parts])

"""Keeps the policy near another role on every view: the brake that a preference loss alone does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowhooks.hooks.anchor_regularizer import AnchorRegularizerSpec
from flowhooks.hooks.asking import guided_velocity, prepare_guidance
from flowhooks.hooks.frozen_role import check_digests, frozen_role
from flowhooks.hooks.scored import ScoredObjective
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View

if TYPE_CHECKING:
    from flowhooks.adapters.frozen import FrozenAdapter

_PREFIX = "adapter:"


def anchor(policy: Tensor, other: Tensor) -> Tensor:
    """``[B]`` mean squared distance of two predictions ``[B, ...]`` over all elements; never masked."""
    return (policy - other).square().flatten(1).mean(1)


class AnchorRegularizer(AnchorRegularizerSpec, Hook):
    """Adds ``weight * mean over views of MSE(policy, role)``; on a pair that is ``weight / 2 * (MSE_w + MSE_l)``. With
    ``least_weight`` m a sample that is good to r in [0, 1] weighs ``m + r (weight - m)``.

    Raises:
        AdapterError: on attaching, an adapter that cannot be read or does not fit.
        ModelError: on attaching, guidance where prompts cannot be encoded without their text.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._frozen: dict[str, FrozenAdapter] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if self.unprompted():
            prepare_guidance(session, "`guidance_scale` of the anchor")
        if self.adapter is None or not self.weight:
            yield
            return
        name = self.role.removeprefix(_PREFIX)
        with frozen_role(session, name, self.adapter) as frozen:
            self._frozen[name] = frozen
            try:
                yield
            finally:
                self._frozen.clear()

    def penalty(self, step: Step) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        if self.least_weight is None:
            return {self._name("loss"): self.weight * self._distance(step)}
        objective = step.session.assembly.owner("objective")
        assert isinstance(objective, ScoredObjective), "whoever gives 'goodness' is an objective on scored samples"
        weights = self.least_weight + objective.goodness(step) * (self.weight - self.least_weight)
        return {self._name("loss"): self._distance(step, weights)}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return {self._name("distance"): self._distance(step)} if self.weight else {}

    def state_dict(self) -> dict[str, Any]:
        digests = {name: adapter.digest for name, adapter in self._frozen.items()}
        return {"digests": digests} if digests else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_digests(self._frozen, state.get("digests", {}), "anchor")

    def _distance(self, step: Step, weights: Tensor | None = None) -> Tensor:
        """Returns the mean over views and samples, whose distances are multiplied by ``weights`` ``[B]``."""
        distances = []
        for name, view in step.views.items():
            away = anchor(step.predict(name), self._other(step, view))
            distances.append(step.mean(away if weights is None else weights * away, view.weight))
        return sum(distances[1:], start=distances[0]) / len(distances)

    def _other(self, step: Step, view: View) -> Tensor:
        if self.guidance_scale == 1:
            return step.predict(view.name, self.role)
        return guided_velocity(step, view, self.role, self.guidance_scale)

    def _name(self, what: str) -> str:
        return f"anchor_{self.role.replace(':', '_')}_{what}"

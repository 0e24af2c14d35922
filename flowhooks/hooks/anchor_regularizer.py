"""Keep the policy near another role on every view: the brake that a preference loss alone does not have."""

from __future__ import annotations

from torch import Tensor

from flowhooks.kernel.hook import Hook
from flowhooks.kernel.step import Step


def anchor(policy: Tensor, other: Tensor) -> Tensor:
    """``[B]`` mean squared distance of two predictions ``[B, ...]`` over all elements; never masked."""
    return (policy - other).square().flatten(1).mean(1)


class AnchorRegularizer(Hook):
    """Adds ``weight * mean over views of MSE(policy, role)``; on a pair that is ``weight / 2 * (MSE_w + MSE_l)``.

    Args:
        role: ``reference``, ``ema`` or ``adapter:<name>``.
        weight: >= 0; 0 costs nothing.
    """

    type = "anchor_regularizer"

    def __init__(self, *, role: str = "reference", weight: float = 0.0):
        if weight < 0:
            raise ValueError(f"`weight` must be at least 0, got {weight}")
        self.role, self.weight = role, weight

    def penalty(self, step: Step) -> dict[str, Tensor]:
        return {self._name("loss"): self.weight * self._distance(step)} if self.weight else {}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return {self._name("distance"): self._distance(step)} if self.weight else {}

    def _distance(self, step: Step) -> Tensor:
        distances = [
            step.mean(anchor(step.predict(name), step.predict(name, self.role)), view.weight)
            for name, view in step.views.items()
        ]
        return sum(distances[1:], start=distances[0]) / len(distances)

    def _name(self, what: str) -> str:
        return f"anchor_{self.role.replace(':', '_')}_{what}"

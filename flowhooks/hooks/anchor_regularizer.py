"""Keep the policy near another role on every view: the brake that a preference loss alone does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowhooks.hooks.frozen_role import check_digests, frozen_role
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step

if TYPE_CHECKING:
    from flowhooks.adapters.frozen import FrozenAdapter

_PREFIX = "adapter:"


def anchor(policy: Tensor, other: Tensor) -> Tensor:
    """``[B]`` mean squared distance of two predictions ``[B, ...]`` over all elements; never masked."""
    return (policy - other).square().flatten(1).mean(1)


class AnchorRegularizer(Hook):
    """Adds ``weight * mean over views of MSE(policy, role)``; on a pair that is ``weight / 2 * (MSE_w + MSE_l)``.

    Args:
        role: ``reference``, ``ema`` or ``adapter:<name>``.
        weight: >= 0; 0 costs nothing.
        adapter: file, folder or Hub id of a frozen adapter that plays the role, ``adapter:<name>``; None: another hook
            gives the role.

    Raises:
        ValueError: a weight below 0, or an adapter under a role of another name.
        AdapterError: on attaching, an adapter that cannot be read or does not fit.
    """

    type = "anchor_regularizer"

    def __init__(self, *, role: str = "reference", weight: float = 0.0, adapter: str | None = None):
        if weight < 0:
            raise ValueError(f"`weight` must be at least 0, got {weight}")
        if adapter is not None and not role.startswith(_PREFIX):
            raise ValueError(f"with `adapter` set, `role` must have the form {_PREFIX}<name>, got {role!r}")
        self.role, self.weight, self.adapter = role, weight, adapter
        self._frozen: dict[str, FrozenAdapter] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
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
        return {self._name("loss"): self.weight * self._distance(step)} if self.weight else {}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return {self._name("distance"): self._distance(step)} if self.weight else {}

    def state_dict(self) -> dict[str, Any]:
        digests = {name: adapter.digest for name, adapter in self._frozen.items()}
        return {"digests": digests} if digests else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_digests(self._frozen, state.get("digests", {}), "anchor")

    def _distance(self, step: Step) -> Tensor:
        distances = [
            step.mean(anchor(step.predict(name), step.predict(name, self.role)), view.weight)
            for name, view in step.views.items()
        ]
        return sum(distances[1:], start=distances[0]) / len(distances)

    def _name(self, what: str) -> str:
        return f"anchor_{self.role.replace(':', '_')}_{what}"

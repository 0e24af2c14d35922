"""Hold one step in progress: views, predictions made once, errors, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from flowhooks.autocast import without_autocast
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.random import Draws
from flowhooks.kernel.view import Batch, View

if TYPE_CHECKING:
    from flowhooks.kernel.session import Session


class Model(Protocol):
    """Defines what the engine and hooks need of a model; the probe implements it for any pipeline."""

    def predict(self, noisy: Tensor, sigma: Tensor, condition: Any, *args: Any, **times: Any) -> Tensor: ...
    def features(self, noisy: Tensor, sigma: Tensor, condition: Any, *, block: Any, tokens: int) -> Tensor: ...
    def pack_mask(self, mask: Tensor, like: Tensor) -> Tensor: ...
    def seen(self, sample: Tensor, condition: Any) -> Tensor | None: ...
    def shift(self, sample: Tensor) -> float: ...
    def frames(self, sample: Tensor) -> int: ...
    def tokens(self, sample: Tensor) -> Any: ...
    def at(self, height: int, width: int, frames: int | None = None) -> Model: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def sigma_range(self) -> tuple[float, float]: ...


@dataclass(kw_only=True, eq=False)
class Step:
    """Gives hooks access to a step.

    Args:
        session: the session of the step.
        model: predicts velocities in the scheduler's sample space, at the batch's size.
        given: the data; None in a run without any, until its source has sampled.
        draws: the step's random numbers.
        all_reduce: sums a tensor over processes.
        training: false when held-out data is measured; hooks then leave their state alone.
    """

    session: Session
    model: Model
    given: Batch | None
    draws: Draws
    all_reduce: Callable[[Tensor], Tensor]
    training: bool
    views: dict[str, View] = field(default_factory=dict)
    forwards: int = 0
    _predictions: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _known: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        """Return the data, or the samples of the source. Raises ValueError where there is neither."""
        if self.given is None:
            raise ValueError("this step got no batch, and no hook samples one; pass a `Batch` to the session")
        return self.given

    @contextmanager
    def playing(
        self, role: str, *, gradient: bool = False, autocast: bool = True, as_sampled: bool = False
    ) -> Iterator[Model]:
        """Yield the model playing ``role`` for one forward, which is counted. Forwards of a hook beside its declared
        `passes` count as its `queries`.

        Args:
            gradient: keep the graph, where the step has one. Under another role than the policy's, take the gradient
                inside: gradient checkpointing runs the forward again in backward.
            autocast: False for differences and chains of predictions, which its rounding would hide.
            as_sampled: leave the training adapter off, as in sampling. In every other forward it is on, if there is
                one.
        """
        self.forwards += 1
        full = nullcontext() if autocast else without_autocast(self.batch.clean)
        with (
            self.session.roles[role](),
            self.session.with_training_adapter(not as_sampled),
            torch.set_grad_enabled(gradient and torch.is_grad_enabled()),
            full,
        ):
            yield self.model

    def predict(self, view: str, role: str = POLICY) -> Tensor:
        """Return the velocity ``[B, ...]`` of ``role`` on ``view``. It is computed once; views of one role that fit go
        in one batch."""
        if (view, role) not in self._predictions:
            planned = [name for name, planned_role in self.session.assembly.plan.passes if planned_role == role]
            pending = [name for name in planned if (name, role) not in self._predictions and name in self.views]
            if view not in pending:
                raise KeyError(
                    f"no hook declared a pass of role {role!r} on view {view!r}; add it to the hook's `passes`"
                )
            (together,) = (group for group in self.groups(pending) if view in group)
            watched = self.session.assembly.within(lambda hook: hook.watching(self, together, role))
            with self.playing(role, gradient=role == POLICY) as model, watched:
                found = self.through(model, together, role)
            self._predictions |= {(name, role): self._seen(name, prediction) for name, prediction in found.items()}
        return self._predictions[view, role]

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Return these views, in the batches in which they go through the network."""
        found: list[list[str]] = []
        for name in names:
            fitting = (group for group in found if self.session.batch_views and self._fit(name, group[0]))
            if group := next(fitting, None):
                group.append(name)
            else:
                found.append([name])
        return found

    def through(self, model: Model, names: Sequence[str], role: str) -> dict[str, Tensor]:
        """Return the velocity ``[B, ...]`` of the model as it stands on each view of a group, in one forward."""
        views = [self.views[name] for name in names]
        return dict(zip(names, views[0].state.predict(model, role, views), strict=True))

    def target(self, view: str) -> Tensor:
        """Return ``[B, ...]`` that the prediction of ``view`` should match."""
        return self.once(
            ("target", view), lambda: self._seen(view, self.session.assembly.target(self, self.views[view]))
        )

    def error(self, view: str, role: str = POLICY) -> Tensor:
        """Return the squared error ``[B, ...]`` after every error hook."""

        def made() -> Tensor:
            error = (self.predict(view, role) - self.target(view)).square()
            return self.session.assembly.chain("error", error, self, self.views[view])

        return self.once(("error", view, role), made)

    def score(self, view: str, role: str = POLICY) -> Tensor:
        """Return the reduced error ``[B]`` of each sample; by default its mean over all elements."""

        def made() -> Tensor:
            error, owner = self.error(view, role), self.session.assembly.owner("reduce")
            return error.flatten(1).mean(1) if owner is None else owner.reduce(self, self.views[view], error)

        return self.once(("score", view, role), made)

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean of ``[B]`` over the samples of weight > 0 in the *global* batch.

        Gradients are averaged over processes, so the local share is scaled to make that average exact even when the
        processes hold different numbers of counted samples. If all weights are 0, the mean is 0, with zero gradient.
        """
        if weight is None:
            return values.mean()
        total = self.all_reduce(weight.sum())
        kept = torch.where(weight > 0, values, torch.zeros_like(values))
        return (kept * weight).sum() * self.draws.world_size / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _seen(self, view: str, velocity: Tensor) -> Tensor:
        """Return a velocity ``[B, ...]`` with 0 where the network does not see the sample, such as in a given first
        frame: there, predictions and targets are equal, and weigh nothing in any loss or margin."""
        seen = self.model.seen(velocity, self.views[view].condition)
        return velocity if seen is None else velocity * seen

    def _fit(self, name: str, other: str) -> bool:
        one, two = self.views[name], self.views[other]
        return type(one.time) is type(two.time) and one.state.fits(two.state)

    def once(self, key: tuple[str, ...], made: Callable[[], Tensor]) -> Tensor:
        """Return what ``made`` returns, which is called once in a step for a key, however many hooks ask for it."""
        if key not in self._known:
            self._known[key] = made()
        return self._known[key]

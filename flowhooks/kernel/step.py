"""One step in flight: views, predictions made once, errors, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.random import Draws
from flowhooks.kernel.view import Batch, View, at_least_fp32, concatenate

if TYPE_CHECKING:
    from flowhooks.kernel.assembly import Assembly


class Model(Protocol):
    """What the engine asks of a model; the probe gives it for any pipeline."""

    def predict(
        self, noisy: Tensor, sigma: Tensor, condition: Any, *, r_sigma: Tensor | None = None, token_sigma: Any = None
    ) -> Tensor: ...

    def features(self, noisy: Tensor, sigma: Tensor, condition: Any, *, block: Any, tokens: int) -> Tensor: ...

    def pack_mask(self, mask: Tensor, like: Tensor) -> Tensor: ...

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
    """What hooks see of a step.

    Args:
        assembly: the hooks.
        model: predicts velocities in the scheduler's sample space, at the batch's size.
        roles: role name -> context manager under which the model plays it. ``policy`` is the model as it stands.
        given: the data; None in a run without any, until its source has drawn.
        draws: the step's random numbers.
        training: false when held-out data is measured; hooks then leave their state alone.
        first: true on the very first step of a run.
        fresh: true on that step where the adapter starts as the identity.
        batch_views: run the views of one role in one forward.
        all_reduce: sums a tensor over processes.
    """

    assembly: Assembly
    model: Model
    roles: Mapping[str, Callable[[], AbstractContextManager]]
    given: Batch | None
    draws: Draws
    training: bool
    first: bool
    fresh: bool
    batch_views: bool
    all_reduce: Callable[[Tensor], Tensor]
    views: dict[str, View] = field(default_factory=dict)
    forwards: int = 0
    _predictions: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _errors: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _scores: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _targets: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        """The data, or what the source has drawn. Raises ValueError where there is neither."""
        if self.given is None:
            raise ValueError("this step was given no batch, and no hook draws one; pass a `Batch` to the session")
        return self.given

    def predict(self, view: str, role: str = POLICY) -> Tensor:
        """``[B, ...]`` velocity of ``role`` on ``view``. Computed once; views of one role that fit go in one batch."""
        if (view, role) not in self._predictions:
            planned = [name for name, planned_role in self.assembly.plan.passes if planned_role == role]
            pending = [name for name in planned if (name, role) not in self._predictions and name in self.views]
            if view not in pending:
                raise KeyError(
                    f"nobody declared a pass of role {role!r} on view {view!r}; add it to the hook's `passes`"
                )
            self._forward(self._group(view, pending), role)
        return self._predictions[view, role]

    @torch.no_grad()
    def predict_again(self, views: Sequence[str]) -> dict[str, Tensor]:
        """``[B, ...]`` velocities of the model as it stands, in the batches that :meth:`predict` makes and without its
        memory; each batch is one of a hook's `queries`."""
        found: dict[str, Tensor] = {}
        while pending := [name for name in views if name not in found]:
            group = self._group(pending[0], pending)
            found |= dict(zip(group, self._joint(group, POLICY), strict=True))
        return found

    @torch.no_grad()
    def query(
        self, role: str, noisy: Tensor, sigma: Tensor, condition: Any, *, r_sigma: Tensor | None = None
    ) -> Tensor:
        """``[n, ...]`` fp32 velocity of ``role`` at a state that is no view, without gradient; a hook declares how many
        such `queries` it makes.

        Autocast is off: differences and chains of such predictions would be drowned by its rounding.
        """
        with self.roles[role](), torch.autocast(noisy.device.type, enabled=False):
            return self.velocity(at_least_fp32(noisy), sigma, condition, r_sigma=r_sigma)

    @torch.no_grad()
    def velocity_at_visit(self, role: str, visit: Any) -> Tensor:
        """``[n, ...]`` fp32 velocity of ``role`` at a visited state, guided, without gradient; one of a hook's
        `queries`."""
        self.forwards += 1
        with self.roles[role]():
            return at_least_fp32(visit.velocity(role))

    @contextmanager
    def pullback(self, role: str, visit: Any) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """``[n, ...]`` fp32 velocity of ``role`` at a visited state, guided, without gradient, and the product of its
        transposed Jacobian by the state with ``[n, ...]``, which may be asked for once; one of a hook's `queries`.

        Only inside the block is the graph held.
        """
        self.forwards += 1
        released, leaf = visit.with_leaf_state()
        with self.roles[role]():
            with torch.enable_grad():
                graph = [released.velocity(role)]

            def product(cotangent: Tensor) -> Tensor:
                # Scaled to a mean square of 1, so that half precision does not underflow.
                shape = (-1, *[1] * (cotangent.dim() - 1))
                size = cotangent.flatten(1).square().mean(1).sqrt().reshape(shape)
                unit = cotangent / torch.where(size > 0, size, torch.ones_like(size))
                (found,) = torch.autograd.grad(graph[0], leaf, unit.to(graph[0].dtype))
                return at_least_fp32(found) * size

            try:
                yield at_least_fp32(graph[0].detach()), product
            finally:
                # The graph is freed even if the caller keeps the product: autograd does not free paths to weights that
                # were not walked.
                graph.clear()

    @torch.no_grad()
    def features(self, role: str, view: View, block: Any, tokens: int) -> Tensor:
        """``[B, N, D]``, the N picture tokens of ``role`` on ``view`` after ``block``, where the pass ends; one of a
        hook's `queries`."""
        self.forwards += 1
        with self.roles[role]():
            return self.model.features(view.noisy, view.level, view.condition, block=block, tokens=tokens)

    def velocity(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Any,
        *,
        r_sigma: Tensor | None = None,
        token_sigma: Any = None,
    ) -> Tensor:
        """``[n, ...]`` velocity of the model as it stands, with gradient; at a state that is no view it is one of a
        hook's `queries`.

        Under another role than the policy's, take the gradient before leaving the role: gradient checkpointing runs the
        forward again in backward.
        """
        times = {"r_sigma": r_sigma, "token_sigma": token_sigma}
        self.forwards += 1
        return self.model.predict(noisy, sigma, condition, **{n: t for n, t in times.items() if t is not None})

    def target(self, view: str) -> Tensor:
        """``[B, ...]`` what the prediction of ``view`` should match."""
        if view not in self._targets:
            self._targets[view] = self.assembly.target(self, self.views[view])
        return self._targets[view]

    def error(self, view: str, role: str = POLICY) -> Tensor:
        """``[B, ...]`` squared error after every error hook."""
        if (view, role) not in self._errors:
            error = (self.predict(view, role) - self.target(view)).square()
            self._errors[view, role] = self.assembly.error(self, self.views[view], error)
        return self._errors[view, role]

    def score(self, view: str, role: str = POLICY) -> Tensor:
        """``[B]`` the reduced error of each sample."""
        if (view, role) not in self._scores:
            self._scores[view, role] = self.assembly.reduce(self, self.views[view], self.error(view, role))
        return self._scores[view, role]

    def mean(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean of ``[B]`` over the samples of weight > 0 in the *global* batch.

        Gradients are averaged over processes, so the local share is scaled to make that average exact even when the
        processes hold different numbers of counted samples. All of weight 0: 0, with zero gradient.
        """
        if weight is None:
            return values.mean()
        total = self.all_reduce(weight.sum())
        kept = torch.where(weight > 0, values, torch.zeros_like(values))
        return (kept * weight).sum() * self.draws.world_size / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _fits(self, name: str, other: str) -> bool:
        a, b = self.views[name], self.views[other]
        if a.visit is not None or b.visit is not None:
            return name == other
        return (
            a.shape[1:] == b.shape[1:]
            and (a.r_sigma is None) == (b.r_sigma is None)
            and (a.token_sigma is None) == (b.token_sigma is None)
        )

    def _group(self, view: str, pending: Sequence[str]) -> list[str]:
        """Those of ``pending`` that go through the network together with ``view``."""
        return [name for name in pending if self._fits(name, view)] if self.batch_views else [view]

    def _forward(self, names: Sequence[str], role: str) -> None:
        gradient = torch.is_grad_enabled() and role == POLICY
        watched = self.assembly.watching(self, names, role)
        with self.roles[role](), torch.set_grad_enabled(gradient), watched:
            for name, prediction in zip(names, self._joint(names, role), strict=True):
                self._predictions[name, role] = prediction

    def _joint(self, names: Sequence[str], role: str) -> Sequence[Tensor]:
        """``[B, ...]`` of each view, in one forward of the model as it stands; a visit is guided as ``role`` is."""
        views = [self.views[name] for name in names]
        ends = [v.r_sigma for v in views if v.r_sigma is not None]
        for view in views:
            if view.r_sigma is not None:
                ordered = (view.r_sigma <= view.level) & (view.level > 0)
                torch._assert_async(ordered.all(), f"view {view.name!r}: an interval must end at or below its start")
        tokens: list[Any] = [v.token_sigma for v in views if v.token_sigma is not None]
        times = {
            "r_sigma": concatenate(ends) if ends else None,
            "token_sigma": tokens[0].join(tokens[1:]) if tokens else None,
        }
        if views[0].visit is not None:
            self.forwards += 1
            return [views[0].visit.velocity(role)]
        condition = views[0].condition.join([v.condition for v in views[1:]])
        joint = self.velocity(
            concatenate([v.noisy for v in views]), concatenate([v.level for v in views]), condition, **times
        )
        return joint.split([v.shape[0] for v in views])

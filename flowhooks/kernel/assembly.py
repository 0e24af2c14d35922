"""The hooks of a run in their slots, in order, with their state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flowhooks.errors import CheckpointError
from flowhooks.kernel.hook import Hook, default_objective, default_reduce, default_target
from flowhooks.kernel.plan import MAIN_VIEW, Plan
from flowhooks.kernel.trend import Trend
from flowhooks.kernel.view import Chunk, View

if TYPE_CHECKING:
    from flowhooks.kernel.session import Session
    from flowhooks.kernel.step import Step


class Assembly:
    """Hooks in plan order.

    Args:
        plan: from :func:`flowhooks.kernel.plan.plan`.
        hooks: one per entry of ``plan.order``.
        blocks: the JSON block of each, or None for a hook that was not made from one.
    """

    def __init__(self, plan: Plan, hooks: Sequence[Hook], blocks: Sequence[Mapping[str, Any] | None] | None = None):
        self.plan = plan
        self.hooks = tuple(hooks)
        self.keys = _unique([declaration.type for declaration in plan.order])
        self.blocks = dict(zip(self.keys, blocks or [None] * len(self.hooks), strict=True))
        self._slots: dict[str, list[Hook]] = {}
        for declaration, hook in zip(plan.order, hooks, strict=True):
            for slot in declaration.slots:
                self._slots.setdefault(slot.split(":")[0], []).append(hook)

    def attach(self, session: Session, stack: ExitStack) -> None:
        """Attach every hook; the stack detaches them in reverse."""
        for hook in self.hooks:
            stack.enter_context(hook.attached(session))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model without what hooks gave it."""
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.disabled())
            yield

    @contextmanager
    def watching(self, step: Step, views: Sequence[str], role: str) -> Iterator[None]:
        """Every hook may look on while ``role`` predicts ``views``."""
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.watching(step, views, role))
            yield

    @property
    def draws(self) -> bool:
        """Whether a hook draws what is trained on."""
        return "source" in self._slots

    def chunks(self, step: Step) -> list[Chunk]:
        """What a step goes through, one after the other: what was drawn, and then the data that is trained on beside
        it."""
        owner = self._one("source")
        if owner is not None:
            beside = self._one("data")
            return owner.source(step) + ([beside.data(step)] if beside is not None else [])  # type: ignore[attr-defined]
        view = View(name=MAIN_VIEW, clean=step.batch.clean, noise=None, sigma=None, condition=step.batch.condition)
        return [Chunk(batch=step.batch, views={MAIN_VIEW: view})]

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        for hook in self._slots.get("views", []):
            views = hook.views(step, views)  # type: ignore[attr-defined]
        return views

    def target(self, step: Step, view: View) -> Tensor:
        for hook in self._slots.get("target", []):
            target = hook.target(step, view)  # type: ignore[attr-defined]
            if target is not None:
                return target
        return default_target(step, view)

    def error(self, step: Step, view: View, error: Tensor) -> Tensor:
        for hook in self._slots.get("error", []):
            error = hook.error(step, view, error)  # type: ignore[attr-defined]
        return error

    def reduce(self, step: Step, view: View, error: Tensor) -> Tensor:
        owner = self._one("reduce")
        return owner.reduce(step, view, error) if owner else default_reduce(step, view, error)  # type: ignore[attr-defined]

    def objective(self, step: Step) -> Tensor:
        owner = self._one("objective")
        return owner.objective(step) if owner else default_objective(step)  # type: ignore[attr-defined]

    def penalties(self, step: Step) -> dict[str, Tensor]:
        return self._gather("penalty", step)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._gather("metrics", step)

    def warnings(self, trend: Trend) -> list[str]:
        return [sentence for hook in self.hooks for sentence in hook.warnings(trend.means(hook.patience))]

    @property
    def health(self) -> dict[str, str]:
        """Metric -> what people call it, for each hook that names one: ``implicit accuracy``."""
        named = [
            (hook.health, hook.health_label or hook.health.removeprefix(f"{hook.type}_"))
            for hook in self.hooks
            if hook.health
        ]
        return {metric: short.replace("_", " ") for metric, short in named}

    def modules(self) -> dict[str, nn.Module]:
        """Trainable modules of all hooks, as ``<hook>.<name>``."""
        return {f"{key}.{name}": m for key, hook in self._keyed() for name, m in hook.modules().items()}

    def exported(self) -> dict[str, nn.Module]:
        """Those of :meth:`modules` that the trained model needs, under the same names."""
        return {f"{key}.{name}": m for key, hook in self._keyed() for name, m in hook.exported().items()}

    def state_dict(self) -> dict[str, Any]:
        return {key: hook.state_dict() for key, hook in self._keyed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError when the state is that of other hooks."""
        if set(state) != set(self.keys):
            raise CheckpointError(
                f"the checkpoint was written by the hooks {sorted(state)}, this run has {sorted(self.keys)}; "
                "resume with the run file it was written by"
            )
        for key, hook in self._keyed():
            hook.load_state_dict(state[key])

    def _keyed(self) -> list[tuple[str, Hook]]:
        return list(zip(self.keys, self.hooks, strict=True))

    def _one(self, slot: str) -> Hook | None:
        owners = self._slots.get(slot, [])
        return owners[0] if owners else None

    def _gather(self, slot: str, step: Step) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for key, hook in self._keyed():
            if hook in self._slots.get(slot, []):
                for name, value in getattr(hook, slot)(step).items():
                    if name in named:
                        raise ValueError(f"two hooks give the {slot} {name!r}; {key!r} must name its own differently")
                    named[name] = value
        return named


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """``a, a#2``: unique and stable, since the plan's order is."""
    seen: dict[str, int] = {}
    keys = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        keys.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(keys)

"""Hold the hooks of a run in their slots, in order, with their state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flowhooks.errors import CheckpointError
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import Plan
from flowhooks.kernel.view import View

if TYPE_CHECKING:
    from flowhooks.kernel.step import Step


class Assembly:
    """Holds hooks in plan order.

    Args:
        plan: plan of the hooks.
        hooks: one per entry of ``plan.order``.
        blocks: the JSON block of each, or None for a hook that was not made from one.
    """

    def __init__(self, plan: Plan, hooks: Sequence[Hook], blocks: Sequence[Mapping[str, Any] | None] | None = None):
        self.plan = plan
        self.hooks = tuple(hooks)
        types = [declaration.type for declaration in plan.order]
        #: ``a``, ``a#2``: unique, and stable because the plan's order is stable.
        self.keys = tuple(f"{t}#{n}" if (n := types[: i + 1].count(t)) > 1 else t for i, t in enumerate(types))
        self.blocks = dict(zip(self.keys, blocks or [None] * len(self.hooks), strict=True))
        self._slots: dict[str, list[Any]] = defaultdict(list)
        for declaration, hook in zip(plan.order, hooks, strict=True):
            for slot in declaration.slots:
                self._slots[slot.split(":")[0]].append(hook)

    @contextmanager
    def within(self, enter: Callable[[Hook], AbstractContextManager[None]]) -> Iterator[None]:
        """Enter the context manager that ``enter`` returns for each hook, such as ``hook.attached(session)``; they exit
        in reverse order."""
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(enter(hook))
            yield

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context manager under which the model runs without what hooks added to it."""
        return self.within(lambda hook: hook.disabled())

    def owner(self, slot: str) -> Any:
        """Return the hook of a slot that one hook fills; None if none does, and the engine's default applies."""
        return next(iter(self._slots[slot]), None)

    def chain(self, slot: str, value: Any, *known: Any) -> Any:
        """Pass ``value`` through every hook of a slot; each gets ``known`` and the result of the one before."""
        for hook in self._slots[slot]:
            value = getattr(hook, slot)(*known, value)
        return value

    def target(self, step: Step, view: View) -> Tensor:
        """Return the target ``[B, ...]``; ``e - x0``, the straight flow, for a view whose target no hook sets."""
        for hook in self._slots["target"]:
            target = hook.target(step, view)
            if target is not None:
                return target
        return view.velocity

    def penalties(self, step: Step) -> dict[str, Tensor]:
        return self._gather("penalty", step)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._gather("metrics", step)

    def modules(self) -> dict[str, nn.Module]:
        """Return trainable modules of all hooks, as ``<hook>.<name>``."""
        return {f"{key}.{name}": m for key, hook in self._keyed() for name, m in hook.modules().items()}

    def exported(self) -> dict[str, nn.Module]:
        """Return those of :meth:`modules` that the trained model needs, under the same names."""
        return {f"{key}.{name}": m for key, hook in self._keyed() for name, m in hook.exported().items()}

    def state_dict(self) -> dict[str, Any]:
        return {key: hook.state_dict() for key, hook in self._keyed()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state. Raises CheckpointError when the state belongs to other hooks."""
        if set(state) != set(self.keys):
            raise CheckpointError(
                f"the checkpoint was written by the hooks {sorted(state)}, this run has {sorted(self.keys)}; "
                "resume with the run file it was written by"
            )
        for key, hook in self._keyed():
            hook.load_state_dict(state[key])

    def _keyed(self) -> list[tuple[str, Hook]]:
        return list(zip(self.keys, self.hooks, strict=True))

    def _gather(self, slot: str, step: Step) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for hook in self._slots[slot]:
            for name, value in getattr(hook, slot)(step).items():
                if name in named:
                    raise ValueError(f"two hooks give the {slot} {name!r}; `{hook.type}` must name its own differently")
                named[name] = value
        return named

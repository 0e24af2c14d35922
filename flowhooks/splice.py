"""Change how a scheduler behaves inside a block, without wrapping or forking it.

The class is spliced: the object stays the same, so ``deepcopy``, ``from_config`` and ``save_pretrained`` keep working,
latents stay bit-equal, and exit restores it exactly. A ``__getattr__`` proxy would make ``save_pretrained`` forget the
scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def splice(target: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Give one object other methods while the block runs.

    Args:
        target: a scheduler, or any object with a plain class.
        methods: functions that take ``self`` first; the original is ``super(type(self), self).<name>``.
    """
    base = type(target)
    namespace = {"__module__": base.__module__, "__qualname__": base.__qualname__, **methods}
    target.__class__ = _equal_to(base)(base.__name__, (base,), namespace)
    try:
        yield
    finally:
        target.__class__ = base


def _equal_to(base: type) -> type:
    """Return a metaclass whose classes equal ``base``, for pipelines that check ``type(self.scheduler) !=
    SomeScheduler``."""

    def equal(cls: type, other: Any) -> bool:
        return other is cls or other is base

    return type("Spliced", (type(base),), {"__eq__": equal, "__hash__": lambda cls: hash(base)})


@contextmanager
def restore_attributes(*objects: Any) -> Iterator[None]:
    """Restore each object's ``__dict__`` when the block ends: it undoes patches and attributes that a pipeline's call
    leaves on itself."""
    before = [(o, dict(vars(o))) for o in objects if o is not None]
    try:
        yield
    finally:
        for o, attributes in before:
            vars(o).clear()
            vars(o).update(attributes)

"""Change how a scheduler behaves inside a block, without wrapping or forking it.

The class is spliced: the object stays the same, so ``deepcopy``, ``from_config`` and ``save_pretrained`` keep working,
latents stay bit-equal, and exit restores it exactly. A ``__getattr__`` proxy would make ``save_pretrained`` forget the
scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: By this attribute of a text encoder, transformers knows that its layers have hooks that collect their outputs.
#: Without it, the next call would add them once more, and every layer's output would be collected twice.
_HOOKED = "_output_capturing_hooks_installed"


@contextmanager
def splice(*targets: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Give objects other methods while the block runs.

    Args:
        targets: schedulers, or any objects with a plain class; those of one class share one again.
        methods: functions that take ``self`` first; the original is ``super(type(self), self).<name>``.
    """
    bases = [type(target) for target in targets]
    classes = {base: _equal_to(base)(base.__name__, (base,), _namespace(base, methods)) for base in bases}
    try:
        for target, base in zip(targets, bases, strict=True):
            target.__class__ = classes[base]
        yield
    finally:
        for target, base in zip(targets, bases, strict=True):
            target.__class__ = base


def _namespace(base: type, methods: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    return {"__module__": base.__module__, "__qualname__": base.__qualname__, **methods}


def _equal_to(base: type) -> type:
    """Return a metaclass whose classes equal ``base``, for pipelines that check ``type(self.scheduler) !=
    SomeScheduler``."""

    def equal(cls: type, other: Any) -> bool:
        return other is cls or base == other

    return type("Spliced", (type(base),), {"__eq__": equal, "__hash__": lambda cls: hash(base)})


@contextmanager
def restore_attributes(*objects: Any) -> Iterator[None]:
    """Restore each object's ``__dict__`` when the block ends: it undoes patches and attributes that a pipeline's call
    leaves on itself, but for the attribute that says that forward hooks are there, since these stay."""
    before = [(o, dict(vars(o))) for o in objects if o is not None]
    try:
        yield
    finally:
        for o, attributes in before:
            hooked = {name: value for name, value in vars(o).items() if name == _HOOKED}
            vars(o).clear()
            vars(o).update(attributes | hooked)

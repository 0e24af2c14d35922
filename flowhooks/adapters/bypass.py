"""Running a layer without its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ABSENT = object()
# (module, name of an instance attribute, value)
Setting = tuple[nn.Module, str, Any]


@contextmanager
def overridden(settings: Iterable[Setting]) -> Iterator[None]:
    """Set instance attributes and put back what was found, also after an exception and when nested.

    Values go through ``__dict__``: neither submodules nor parameters are
    registered, no property
    runs, and ``requires_grad`` stays as it is.
    """
    settings = list(settings)
    found = [(module, name, module.__dict__.get(name, _ABSENT)) for module, name, _ in settings]
    try:
        for module, name, value in settings:
            module.__dict__[name] = value
        yield
    finally:
        for module, name, value in reversed(found):
            if value is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value


def shortcut(layer: nn.Module, expected: Callable[..., Any] | None, bare: Callable[..., Any]) -> list[Setting]:
    """The setting that sends ``layer`` straight to ``bare``, if its ``forward`` is still ``expected`` (None: the
    class's own).

    When somebody else has wrapped ``forward`` since (an offloading hook does), theirs must keep running and nothing
    is set.
    """
    return [(layer, "forward", bare)] if layer.__dict__.get("forward") == expected else []

"""The methods flowhooks ships, a module each: which hooks a name in JSON stands for. Free of torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module

from flowhooks.methods.spec import Context, Method

__all__ = ["METHODS", "Context", "Method"]


def _found() -> dict[str, type[Method]]:
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return {each.type: each for each in classes if issubclass(each, Method) and each.type}


#: Name in JSON -> method.
METHODS: Mapping[str, type[Method]] = _found()

"""Make the one file that loads a flow map where this package is not installed, from the modules of the room
``flow_map``: their code one after another, with one set of imports."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

from flowhooks.export.card_code import below
from flowhooks.flow_map.loader import EMBEDDER

#: What each module needs is in those before it.
MODULES = ("step_time", "scheduler", "second_time", "loader")
OURS = "flowhooks"


def loader_source() -> str:
    """Return the Python of the file, which imports nothing of this package."""
    texts = [files(f"{OURS}.flow_map").joinpath(f"{name}.py").read_text(encoding="utf-8") for name in MODULES]
    plain, named, bodies = set(), dict[str, set[str]](), []
    for text in texts:
        tree = ast.parse(text)
        for node in imports(tree):
            if isinstance(node, ast.Import):
                plain |= {ast.unparse(node)}
            elif node.module is not None and node.module.partition(".")[0] != OURS:
                named.setdefault(node.module, set()).update(alias.name for alias in node.names)
        last = max(node.end_lineno or 0 for node in imports(tree))
        bodies.append("".join(text.splitlines(keepends=True)[last:]).strip("\n"))
    future = named.pop("__future__")
    lines = sorted(f"from {module} import {', '.join(sorted(names))}" for module, names in named.items())
    head = [
        f'"""{ast.get_docstring(ast.parse(texts[-1]))}\n"""',
        "# SPDX-License-Identifier: Apache-2.0",
        f"from __future__ import {', '.join(sorted(future))}",
        "\n".join([*sorted(plain), *lines]),
    ]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def is_loadable(modules: Iterable[str], document: Mapping[str, Any]) -> bool:
    """Return whether that file can load what a run trained.

    Args:
        modules: names of the modules that its hooks trained.
        document: the resolved run.
    """
    adapter = document["adapter"]
    stock = adapter is None or (adapter["type"] == "lora" and below(document) is None)
    return stock and {f"{name}." for name in modules} == {EMBEDDER}


def imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports at the top of a module."""
    return (node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))

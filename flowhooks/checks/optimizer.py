"""Whether torch has the optimiser of a run, and whether it can take a step here. Free of torch: its source is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from flowhooks.config import Run
from flowhooks.documents.imports import OF_TORCH
from flowhooks.documents.suggest import hint
from flowhooks.errors import Problem

#: Optimisers of torch that no network is trained with here.
UNFIT: Mapping[str, str] = {
    "LBFGS": "asks for the loss again and again within one step, and a step here has one",
    "SparseAdam": "takes sparse gradients only, and those of a network are dense",
}
_EXPORTED = re.compile(r"^from torch\.optim\.\w+ import (\w+) as \1$", re.MULTILINE)


@cache
def torch_optimizers() -> frozenset[str] | None:
    """The optimisers that ``torch.optim`` names; None where its source does not tell."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "optim" / "__init__.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    names = frozenset(_EXPORTED.findall(text)) - {"Optimizer"}
    return names if "AdamW" in names else None


def optimizer_problems(run: Run) -> Iterator[Problem]:
    """Why an optimiser of torch cannot be used."""
    written = run.training["optimizer"]
    name, known = written.removeprefix(OF_TORCH), torch_optimizers()
    if name == written or known is None:
        return
    if name in UNFIT:
        message = f"{written!r} cannot be used: it {UNFIT[name]}; use 'adamw', or another one of torch.optim"
        yield Problem(message, str(run.source), "$.training.optimizer")
    elif name not in known:
        fit = sorted(known - UNFIT.keys())
        message = f"torch.optim has no optimiser {name!r}{hint(name, fit)}; it has {', '.join(fit)}"
        yield Problem(message, str(run.source), "$.training.optimizer")

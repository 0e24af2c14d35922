"""The optimisers that a run may name, and what can be said of them before anything is imported. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowhooks.config import Run
from flowhooks.documents.imports import OF_TORCH
from flowhooks.documents.suggest import hint
from flowhooks.errors import Problem

#: Optimisers of torch that cannot train a network here.
UNFIT: Mapping[str, str] = {
    "LBFGS": "computes the loss several times within one step, and a step here computes it once",
    "SparseAdam": "takes sparse gradients only, and those of a network are dense",
}
_EXPORTED = re.compile(r"^from torch\.optim\.\w+ import (\w+) as \1$", re.MULTILINE)
#: The rate that Prodigy multiplies its own estimate by.
_PRODIGY_RATE = 1.0


@dataclass(frozen=True, kw_only=True)
class Named:
    """An optimiser that a run names by a word.

    Args:
        path: where its class is, ``package.module:Class``.
        extra: of ``setup.cfg``, that installs its package; None where flowhooks needs the package anyway.
        options: keyword arguments that it gets unless the run says otherwise.
    """

    path: str
    extra: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


#: The word in `training.optimizer` -> what it stands for.
NAMED: Mapping[str, Named] = {
    "adamw": Named(path=f"{OF_TORCH}AdamW"),
    "adamw8bit": Named(path="bitsandbytes.optim:AdamW8bit", extra="bitsandbytes"),
    # By itself it makes its own rate from the step's number, and takes none that a schedule gives.
    "adafactor": Named(
        path="transformers.optimization:Adafactor",
        options={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "prodigy": Named(path="prodigyopt:Prodigy", extra="prodigy"),
    "lion": Named(path="lion_pytorch:Lion", extra="lion"),
    "schedule_free": Named(path="schedulefree:AdamWScheduleFree", extra="schedule-free"),
    # With updates as large as AdamW's, one rate is right for the matrices and for what AdamW trains beside them.
    "muon": Named(path=f"{OF_TORCH}Muon", options={"adjust_lr_fn": "match_rms_adamw"}),
}


def optimizer_path(name: str) -> str:
    """The import path of an optimiser that is named by a word or by its path."""
    return NAMED[name].path if name in NAMED else name


def not_installed(name: str) -> str | None:
    """Why the package of an optimiser cannot be imported, and what installs it; None where it is there."""
    module = optimizer_path(name).partition(":")[0].partition(".")[0]
    if find_spec(module) is not None:
        return None
    extra = NAMED[name].extra if name in NAMED else None
    remedy = "install it" if extra is None else f"run `pip install 'flowhooks[{extra}]'`"
    return f"the package {module!r} of the optimiser {name!r} is not installed; {remedy}, or use 'adamw'"


def optimizer_problems(run: Run) -> Iterator[Problem]:
    """Why the optimiser of a run cannot be used here."""
    written, source, where = run.training["optimizer"], str(run.source), "$.training.optimizer"
    if (missing := not_installed(written)) is not None:
        yield Problem(missing, source, where)
        return
    path = optimizer_path(written)
    name, known = path.removeprefix(OF_TORCH), torch_optimizers()
    if name == path or known is None:
        return
    if name in UNFIT:
        message = f"{written!r} cannot be used: it {UNFIT[name]}; use 'adamw', or another one of torch.optim"
        yield Problem(message, source, where)
    elif name not in known:
        fit = sorted(known - UNFIT.keys())
        message = f"torch.optim has no optimiser {name!r}{hint(name, fit)}; it has {', '.join(fit)}"
        yield Problem(message, source, where)


def optimizer_warnings(run: Run) -> Iterator[str]:
    """What is unlikely to be meant in the options around the optimiser of a run."""
    training = run.training
    name, rate = training["optimizer"], training["learning_rate"]
    if name == "prodigy" and rate != _PRODIGY_RATE:
        yield (
            f"`training.learning_rate` is {rate:g}: 'prodigy' finds its own rate and multiplies it by this number; "
            f"write {_PRODIGY_RATE:g} unless its rate proved too high or too low"
        )
    if name == "schedule_free" and training["use_ema"]:
        yield (
            "`training.use_ema` averages the weights that 'schedule_free' averages already, and the run writes the "
            "second average; write false"
        )


@cache
def torch_optimizers() -> frozenset[str] | None:
    """Return the optimisers that ``torch.optim`` exports; None where its source does not say."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "optim" / "__init__.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    names = frozenset(_EXPORTED.findall(text)) - {"Optimizer"}
    return names if "AdamW" in names else None

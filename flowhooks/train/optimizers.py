"""Make the optimiser of a run by its name or import path, and try it before weights load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flowhooks.adapters.fit import transformer_shapes
from flowhooks.checks.pipeline import NETWORKS, pipeline_folder
from flowhooks.config import Run
from flowhooks.documents.imports import imported, imports_optimizer, subclass_of
from flowhooks.errors import ConfigError, Problem


def make_optimizer(run: Run, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Make ``adamw``, or any optimiser ``package.module:Class``. Raises ConfigError with the JSON path of what is
    wrong."""
    path = run.training["optimizer"]
    made = torch.optim.AdamW if path == "adamw" else _imported(path, str(run.source))
    try:
        return made(list(parameters), lr=run.training["learning_rate"], **run.training["optimizer_args"])
    except (TypeError, ValueError, RuntimeError) as error:
        where = "$.training.optimizer_args"
        raise ConfigError(Problem(f"{path!r} cannot be built: {error}", str(run.source), where)) from error


def try_optimizer(run: Run) -> None:
    """Make the optimiser for small parameters with the same numbers of dimensions as those of the run. An optimiser of
    torch also takes a step with them, as it checks some options only there.

    Raises:
        ConfigError: as :func:`make_optimizer`, or when the step fails.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parameters = [nn.Parameter(torch.zeros((1,) * sides, device=device)) for sides in _sides(run)]
    optimizer = make_optimizer(run, parameters)
    if imports_optimizer(run.training["optimizer"]):
        # Some compute on one device only, which these parameters need not be on.
        return
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except Exception as error:  # an option of the wrong kind may raise anything
        path = run.training["optimizer"]
        message = f"{path!r} cannot take a step: {type(error).__name__}: {error}; correct its options or the rate"
        raise ConfigError(Problem(message, str(run.source), "$.training.optimizer_args")) from error


def _sides(run: Run) -> set[int]:
    """Return the numbers of dimensions of the run's parameters. An adapter has matrices, as far as is known before it
    exists; for a network, the headers of its weight files say."""
    folder = None if run.adapter is not None else pipeline_folder(run.model)
    if folder is None:
        return {2}
    shapes = transformer_shapes(folder, run.model["component"] or NETWORKS[0]).values()
    return {len(shape) for shape in shapes} or {2}


def _imported(path: str, source: str) -> Any:
    try:
        return imported(path, subclass_of(torch.optim.Optimizer), "subclass of torch.optim.Optimizer")
    except ImportError as error:
        message = (
            f"cannot import {path!r}: {error}; expected 'adamw', or 'package.module:Class' of an installed package"
        )
        raise ConfigError(Problem(message, source, "$.training.optimizer")) from error

"""Make the optimiser of a run by its name or import path, and try it before weights load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from flowhooks.adapters.fit import transformer_shapes
from flowhooks.adapters.names import USE_DORA
from flowhooks.checks.optimizers import NAMED, not_installed, optimizer_path
from flowhooks.checks.pipeline import pipeline_folder, trained_network
from flowhooks.config import Run
from flowhooks.documents.imports import imported, imports_optimizer, subclass_of
from flowhooks.errors import ConfigError, Problem
from flowhooks.sharding import local

#: Options by which a user chooses among torch's implementations of AdamW, or asks for what its fused one has not.
_IMPLEMENTATION = ("fused", "foreach", "differentiable")

#: Of these, what a choice is made of by default.
_CHOICE = ("foreach", "fused")


class MatricesApart(torch.optim.Optimizer):
    """Muon for the matrices among the parameters and AdamW for all others, stepped as one optimiser.

    Args:
        parameters: what is trained.
        lr: of both.
        adamw: keyword arguments of AdamW.
        undecayed: those of the parameters that no weight decay is for.
        options: keyword arguments of Muon.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        lr: float,
        adamw: Mapping[str, Any] | None = None,
        undecayed: Sequence[nn.Parameter] = (),
        **options: Any,
    ):
        matrices, others = ([p for p in parameters if (p.dim() == 2) is two] for two in (True, False))
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr, **options))
        if others:
            kept = {id(each) for each in undecayed}
            self.parts.append(torch.optim.AdamW(_groups(others, kept), lr=lr, **(adamw or {})))
        # The groups are the parts' own, so that a schedule that sets a rate here sets it there.
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        for part in self.parts:
            part.step()
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(dict(state))
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _groups(parameters: Sequence[nn.Parameter], undecayed: set[int]) -> Any:
    """Return the parameters in groups, those of these ids without weight decay; as they are where there are none."""
    kept = [each for each in parameters if id(each) in undecayed]
    others = [each for each in parameters if id(each) not in undecayed]
    return [{"params": others}] * bool(others) + [{"params": kept, "weight_decay": 0.0}] if kept else parameters


def make_optimizer(
    run: Run, parameters: Sequence[nn.Parameter], undecayed: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimiser that a run names by a word or as ``package.module:Class``.

    Args:
        parameters: what is trained.
        undecayed: those of them that no weight decay is for: magnitudes, which it would pull away from the base's.

    Raises:
        ConfigError: with the place of what is wrong: its package is not there, or it refuses an option.
    """
    name, parameters = run.training["optimizer"], list(parameters)
    made = MatricesApart if name == "muon" else _imported(name, str(run.source))
    options = {**(NAMED[name].options if name in NAMED else {}), **run.training["optimizer_args"]}
    if name == "adamw" and _on_cuda(parameters) and not any(each in options for each in _IMPLEMENTATION):
        # One kernel for all tensors. Elsewhere torch's own choice is the faster one.
        options["fused"] = True
    if name == "muon":
        options["undecayed"], groups = undecayed, parameters
    else:
        groups = _groups(parameters, {id(each) for each in undecayed})
    try:
        optimizer = made(groups, lr=run.training["learning_rate"], **options)
        _one_by_one(optimizer, parameters)
        return optimizer
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        where = "$.training.optimizer_args"
        reason = str(error) or "it refuses the value of an option"
        raise ConfigError(Problem(f"{name!r} cannot be built: {reason}", str(run.source), where)) from error


def as_here(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's saved state with the choice among implementations that is made here: another number of
    processes may have made another."""
    groups = saved.get("param_groups", ())
    if len(groups) != len(optimizer.param_groups):
        return dict(saved)
    here = ({name: own[name] for name in _CHOICE if name in own} for own in optimizer.param_groups)
    return {**saved, "param_groups": [{**group, **own} for group, own in zip(groups, here, strict=True)]}


def _one_by_one(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Let an optimiser of torch update weights one by one where some are sharded and others are not: torch's kernels
    for many at once take one kind."""
    if len({isinstance(each, DTensor) for each in parameters}) > 1:
        for group in optimizer.param_groups:
            group |= {name: False for name in _CHOICE if name in group}


def _on_cuda(parameters: Sequence[nn.Parameter]) -> bool:
    return all(each.is_cuda and each.is_floating_point() for each in parameters)


def has_two_points(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser trains at one point and offers another as its result, as schedule-free ones do: then it has
    the methods ``train`` and ``eval`` that move the weights between the two."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


@contextmanager
def at_result(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Puts what an optimiser offers as its result in place inside the block, and after it the very weights that are
    trained: moving there and back would round them, and a resumed run would not be the same run."""
    if not has_two_points(optimizer):
        yield
        return
    # FSDP gathers a weight from the memory it has, so of a sharded one the values are put back, not the memory.
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    kept = [local(parameter).detach().clone() for parameter in sharded]
    parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    trained = [parameter.data for parameter in parameters]
    # Autocast keeps casts by parameter, whatever data the parameter holds.
    torch.clear_autocast_cache()
    try:
        for parameter in parameters:
            parameter.data = parameter.data.clone()
        optimizer.eval()  # type: ignore[attr-defined]
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        torch.clear_autocast_cache()
        for parameter, data in zip(parameters, trained, strict=True):
            parameter.data = data
        with torch.no_grad():
            for parameter, rows in zip(sharded, kept, strict=True):
                local(parameter).copy_(rows)


def try_optimizer(run: Run) -> None:
    """Make the optimiser for small parameters with as many sides as those of the run, and let one that comes with
    flowhooks or torch take a step with them: some options are looked at only there.

    Raises:
        ConfigError: as :func:`make_optimizer`, or when the step fails.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parameters = [nn.Parameter(torch.zeros((1,) * sides, device=device)) for sides in _sides(run)]
    optimizer = make_optimizer(run, parameters, [each for each in parameters if each.dim() != 2 and _is_dora(run)])
    if imports_optimizer(run.training["optimizer"]):
        # Some compute on one device only, which these parameters need not be on.
        return
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        if has_two_points(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        optimizer.step()
    except Exception as error:  # an option of the wrong kind may raise anything
        path = run.training["optimizer"]
        message = f"{path!r} cannot take a step: {type(error).__name__}: {error}; correct its options or the rate"
        raise ConfigError(Problem(message, str(run.source), "$.training.optimizer_args")) from error


def _is_dora(run: Run) -> bool:
    """Return whether the adapter of a run has magnitudes."""
    return run.adapter is not None and bool(run.adapter[USE_DORA])


def _sides(run: Run) -> set[int]:
    """Return the numbers of dimensions of the run's parameters. An adapter has matrices, and a DoRA magnitudes, as far
    as is known before it exists; for a network, the headers of its weight files say."""
    folder = None if run.adapter is not None else pipeline_folder(run.model)
    if folder is None:
        return {1, 2} if _is_dora(run) else {2}
    shapes = transformer_shapes(folder, trained_network(run.model)).values()
    return {len(shape) for shape in shapes} or {2}


def _imported(name: str, source: str) -> Any:
    path = optimizer_path(name)
    try:
        return imported(path, subclass_of(torch.optim.Optimizer), "subclass of torch.optim.Optimizer")
    except ImportError as error:
        reason = not_installed(name) or (
            f"cannot import {path!r}: {error}; expected one of {', '.join(NAMED)}, or 'package.module:Class' of an "
            "installed package"
        )
        raise ConfigError(Problem(reason, source, "$.training.optimizer")) from error

"""Turn gradients into new weights: averaging over processes, clipping, optimiser, schedule, loss scaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from flowhooks.config import Run
from flowhooks.distributed import average_gradients
from flowhooks.errors import TrainingError
from flowhooks.sharding import local, total_norm
from flowhooks.train.guard import FiniteGuard
from flowhooks.train.optimizers import as_here, at_result, has_two_points, make_optimizer
from flowhooks.train.rows import is_of_shape, settled

#: What torch adds to the norm by which it divides.
_ROUNDING = 1e-6


class Optimization:
    """Holds the optimiser of a run and its schedule.

    Args:
        run: its ``training`` section selects optimiser and schedule.
        parameters: all parameters that are trained.
        scaler: torch's GradScaler under fp16 mixed precision, else None.
        undecayed: those of the parameters that no weight decay is for.

    Raises:
        ConfigError: the optimiser cannot be imported or built.
    """

    def __init__(
        self,
        run: Run,
        parameters: Sequence[nn.Parameter],
        scaler: Any = None,
        undecayed: Sequence[nn.Parameter] = (),
    ):
        training = run.training
        self.parameters = list(parameters)
        self.scaler = scaler
        #: Called with the rate of an update before it is made, while its gradients are there.
        self.before: Callable[[float], None] = lambda rate: None
        self.max_norm = training["max_grad_norm"]
        self.optimizer = make_optimizer(run, self.parameters, undecayed)
        if has_two_points(self.optimizer):
            self.optimizer.train()  # type: ignore[attr-defined]
        self.schedule = get_scheduler(
            training["lr_scheduler"],
            optimizer=self.optimizer,
            num_warmup_steps=training["lr_warmup_steps"],
            num_training_steps=training["max_train_steps"],
        )

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def at_result(self) -> AbstractContextManager[None]:
        """Puts the weights that the optimiser offers as its result in place inside the block. For most optimisers these
        are the trained ones."""
        return at_result(self.optimizer, self.parameters)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss. Raises TrainingError where it depends on nothing that is trained."""
        if not loss.requires_grad:
            raise TrainingError(
                "the loss depends on nothing that is trained, so there is no gradient. Likely causes: a hook that "
                "freezes or detaches what leads to the loss, or a gate that keeps the adapter off"
            )
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, guard: FiniteGuard) -> Tensor:
        """Update the weights once from the gradients so far, then drop the gradients.

        Returns:
            The gradient norm before clipping, 0-dim, on the device.
        """
        for parameter in self.parameters:
            # As on several processes, where a parameter that one of them did not use has a gradient too.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        average_gradients(self.parameters)
        self.before(self.learning_rate)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = total_norm(gradients)
        # Of sharded weights each process has its rows of the gradients.
        mine = [local(each) for each in gradients]
        bad = guard.losses_bad()
        if self.scaler is None:
            # A scaler finds its scale by infinite gradients, and skips such an update itself.
            bad = bad | ~torch.isfinite(norm)
        # As below, where a number is free to read: a norm within bounds leaves gradients as they are.
        if self.max_norm is not None and (norm.device.type != "cpu" or not norm + _ROUNDING <= self.max_norm):
            torch._foreach_mul_(mine, torch.clamp(self.max_norm / (norm + _ROUNDING), max=1.0))
        # After clipping, since zero times a NaN norm is NaN. Reading the flag is free on the CPU; elsewhere it would
        # wait for the device, so there the work is always done.
        if bad.device.type != "cpu" or bad:
            for gradient in mine:
                gradient.masked_fill_(bad, 0)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        guard.gradient(bad)
        return norm

    def _like(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return, in the places of a saved optimiser's tensors, the parameters that these belong to and are sharded
        like."""
        ordered = [each for group in self.optimizer.param_groups for each in group["params"]]
        return {
            "state": {
                key: {name: ordered[key] for name, value in found.items() if is_of_shape(value, ordered[key].shape)}
                for key, found in saved.get("state", {}).items()
            }
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if k != "lr_lambdas"},
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; tensors of the optimiser may be :class:`flowhooks.train.rows.Rows`
        that several processes wrote."""
        saved = as_here(state["optimizer"], self.optimizer)
        self.optimizer.load_state_dict(settled(saved, self._like(saved)))
        self.schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None] * len(self.schedule.base_lrs)})
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

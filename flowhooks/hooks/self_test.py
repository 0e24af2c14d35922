"""Check before the first update that the reference of a preference run is the model that it should be."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.names import USE_DORA
from flowhooks.errors import TrainingError
from flowhooks.hooks.preference_spec import LOSE, WIN
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.step import Step


class SelfTest:
    """Checks, on the first step, that the policy without its adapter is the reference.

    A new adapter changes nothing yet, so its margins must be exactly 0 and every loss that of the start. One that
    starts from a file is switched off, and the predictions must be the same to the bit. So is a DoRA: it divides by
    norms, which compiled code may sum up in another order than those it was made with.

    Args:
        name: the objective's name in sentences.
        adapter: the trained adapter, or None.
        start: the loss of a pair whose margin is 0; None where it is not one number.
    """

    def __init__(self, *, name: str, adapter: Any, start: float | None):
        self._name, self._adapter, self._start = name, adapter, start

    def check(self, step: Step, margin: Tensor, losses: Tensor) -> None:
        """Compare the margins and the losses ``[B]`` of the first step. Raises TrainingError naming what makes the
        reference another model."""
        fresh = self._adapter is not None and self._adapter.fresh and not self._adapter.config.get(USE_DORA)
        if fresh:
            loss = float(losses.mean())
            started = self._start is None or math.isclose(loss, self._start, rel_tol=1e-6)
            sound = not bool((margin != 0).any()) and started
        else:
            sound = self._is_reference(step, nullcontext())
        if sound:
            return
        culprits = [
            key
            for key, hook in zip(step.session.assembly.keys, step.session.assembly.hooks, strict=True)
            if self._is_reference(step, hook.disabled())
        ]
        if self._is_reference(step, nullcontext()):
            cause = "the reference is not the base model: the adapter changes predictions though it is new"
        elif culprits:
            named = " and ".join(f"`{key}`" for key in culprits)
            cause = f"the reference is not the base model: {named} changes the policy alone; take it out of this run"
        else:
            cause = (
                "the reference is not the base model: something else changes it between two passes (dropout in the "
                "base, another adapter, a random layer)"
            )
        wanted = "" if self._start is None else f" and the loss {self._start:.6g}"
        found = (
            f"the margin must be exactly 0{wanted}, found a margin of up to {float(margin.abs().max()):.3g} "
            f"and a loss of {float(losses.mean()):.6g}"
            if fresh
            else "the policy with its adapter off must predict what the reference predicts, and does not"
        )
        raise TrainingError(f"{self._name} self-test: before the first update {found}; {cause}")

    def _is_reference(self, step: Step, without: AbstractContextManager) -> bool:
        """Whether the policy, its adapter off and whatever ``without`` leaves out, predicts what the reference does."""
        with ExitStack() as off:
            if self._adapter is not None:
                off.enter_context(self._adapter.disabled())
            off.enter_context(without)
            found: dict[str, Tensor] = {}
            for together in step.groups((WIN, LOSE)):
                with step.playing(POLICY) as model:
                    found |= step.through(model, together, POLICY)
        return all(torch.equal(found[view], step.predict(view, "reference")) for view in (WIN, LOSE))

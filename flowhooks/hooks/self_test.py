"""Check before the first update that the reference of a preference run is the model that it should be."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from flowhooks.errors import TrainingError
from flowhooks.hooks.reference_model import ReferenceModel
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.step import Step


class SelfTest:
    """Checks, on the first step, that the reference is the model that the run names.

    Where the policy starts as the reference its margins must be exactly 0, and every loss that of the start. Where it
    does not, it is made the reference, by switching its adapter off, and the predictions must be the same to the bit.

    Args:
        name: the objective's name in sentences.
        reference: the model.
        role: that it plays.
        views: on which both predict.
        start: the loss of a sample at the start; None where it is not one number.
    """

    def __init__(self, *, name: str, reference: ReferenceModel, role: str, views: tuple[str, ...], start: float | None):
        self._name, self._reference, self._role = name, reference, role
        self._views, self._start = views, start

    def check(self, step: Step, margin: Tensor, losses: Tensor) -> None:
        """Compare the margins and the losses ``[B]`` of the first step. Raises TrainingError naming what makes the
        reference another model."""
        exact, same = self._reference.is_policy(), self._is_reference
        if exact:
            loss = float(losses.mean())
            started = self._start is None or math.isclose(loss, self._start, rel_tol=1e-6)
            sound = not bool((margin != 0).any()) and started
        else:
            sound = same(step, nullcontext())
        if sound:
            return
        culprits = [
            key
            for key, hook in zip(step.session.assembly.keys, step.session.assembly.hooks, strict=True)
            if same(step, hook.disabled())
        ]
        wrong = f"the reference is not {self._reference.words}"
        if same(step, nullcontext()):
            cause = f"{wrong}: the adapter changes predictions though it is new"
        elif culprits:
            named = " and ".join(f"`{key}`" for key in culprits)
            cause = f"{wrong}: {named} changes the policy alone; take it out of this run"
        else:
            cause = (
                f"{wrong}: something else changes it between two passes (dropout in the base, another adapter, a "
                "random layer)"
            )
        wanted = "" if self._start is None else f" and the loss {self._start:.6g}"
        found = (
            f"the margin must be exactly 0{wanted}, found a margin of up to {float(margin.abs().max()):.3g} "
            f"and a loss of {float(losses.mean()):.6g}"
            if exact
            else "the policy with its adapter off must predict what the reference predicts, and does not"
        )
        raise TrainingError(f"{self._name} self-test: before the first update {found}; {cause}")

    def _is_reference(self, step: Step, without: AbstractContextManager) -> bool:
        """Whether the policy, its adapter off and whatever ``without`` leaves out, predicts what the reference does."""
        found: dict[str, Tensor] = {}
        with self._reference.off(), without:
            for together in step.groups(self._views):
                with step.playing(POLICY) as model:
                    found |= step.through(model, together, POLICY)
        return all(torch.equal(found[view], step.predict(view, self._role)) for view in self._views)

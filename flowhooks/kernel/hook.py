"""The base of every hook. A hook fills the slots whose methods it defines; the engine never asks for anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from flowhooks.kernel.plan import SLOTS

if TYPE_CHECKING:
    from flowhooks.kernel.session import Session
    from flowhooks.kernel.step import Step


class Hook:
    """One composable piece of a training step.

    A subclass is built with its options as keyword arguments and defines methods named after the slots it fills::

        source(step) -> list[Chunk]                  one      what the step goes through, in place of its batch
        data(step) -> Chunk                          one      beside a source: the data, with a loss of its own
        views(step, views) -> views                  chain    add views, or replace them by refined ones
        target(step, view) -> Tensor | None          one      what the prediction of a view should match; None: not mine
        error(step, view, error) -> error            chain    the per-element error [B, ...]
        reduce(step, view, error) -> Tensor [B]      one      one number per sample
        objective(step) -> Tensor                    one      the loss, a scalar
        penalty(step) -> dict[str, Tensor]           sum      named extra losses, scalars
        metrics(step) -> dict[str, Tensor]           sum      detached scalars; called only on logged steps

    ``self.type`` is its name in JSON. State that must survive a resume goes through ``state_dict``; trainable modules
    through ``modules``; everything it attaches to the model is attached in ``attached``, which undoes it.
    """

    type: ClassVar[str] = ""
    #: The metric that tells best how a run of this hook fares, shown beside the loss; empty where the loss does.
    health: str = ""
    #: What people call that metric; empty: its name without the type of the hook.
    health_label: str = ""
    #: Key of the session's state at which an earlier release kept what is this hook's now.
    former: ClassVar[str] = ""
    #: Logged steps after which :meth:`warnings` is given a metric's mean: before that a mean is mostly chance.
    patience: ClassVar[int] = 10

    @classmethod
    def declaration(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """``slots``, ``needs``, ``wants``, ``gives``, ``excludes``, ``passes``, ``queries`` under these options.

        Shipped hooks are declared in the registry.
        """
        return {"slots": defined_slots(cls)}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Hold what the hook attaches to the model for the life of the session; undo all of it on leaving.

        What a hook learns of the pipeline it learns here, where text encoders are awake; a run parks them after it.
        """
        yield

    def started(self, session: Session) -> None:
        """Called once when all hooks are attached and all weights are those that training starts from."""

    def updated(self) -> None:
        """Called after each optimiser step."""

    @contextmanager
    def watching(self, step: Step, views: Sequence[str], role: str) -> Iterator[None]:
        """Around the forward of a declared pass, for a hook that looks into the network: ``views`` are in its batch, in
        this order."""
        yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model without what the hook gave it, for the role ``reference``."""
        yield

    def modules(self) -> dict[str, nn.Module]:
        """Trainable modules of the hook's own, by name."""
        return {}

    def exported(self) -> dict[str, nn.Module]:
        """Those of :meth:`modules` that the trained model needs; the others live in checkpoints only."""
        return self.modules()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts of them: what a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Sentences for the log, from running means of metrics over logged steps, of each that was logged ``patience``
        times. They never stop a run, and speak of what this hook's options can change."""
        return []


def defined_slots(cls: type) -> set[str]:
    """The slots whose methods a class defines."""
    return {slot for slot in SLOTS if callable(getattr(cls, slot, None))}

"""Define the base of every hook. A hook fills the slots whose methods it defines; the engine calls nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from flowhooks.kernel.plan import SLOTS

if TYPE_CHECKING:
    from flowhooks.kernel.session import Session
    from flowhooks.kernel.step import Step


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A sign that a run goes wrong.

    Args:
        reason: what is wrong, in a sentence.
        final: whether the run should end now; else it is only not to be gone back to.
    """

    reason: str
    final: bool


class Hook:
    """Implements one composable piece of a training step.

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
    #: The metric that best shows the progress of a run with this hook, shown beside the loss; empty if the loss does.
    health: str = ""
    #: Readable name of that metric; empty: its name without the type of the hook.
    health_label: str = ""
    #: Key of the session's state under which an earlier release kept the state of this hook.
    former: ClassVar[str] = ""
    #: Logged steps after which :meth:`warnings` gets a metric's mean: before that a mean is mostly noise.
    patience: ClassVar[int] = 10
    #: Whether :meth:`alarm` may end the run.
    watches: bool = False

    @classmethod
    def declaration(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``slots``, ``needs``, ``wants``, ``gives``, ``excludes``, ``passes``, ``queries`` under these options.

        Shipped hooks are declared in their specs.
        """
        return {"slots": defined_slots(cls)}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        """Attach to the model for the life of the session; undo all of it on exit.

        A hook learns here what it needs of the pipeline, while text encoders are on their device; a run parks them
        afterwards.
        """
        yield

    def started(self, session: Session) -> None:
        """Prepare for training. Called once when all hooks are attached and all weights are those that training starts
        from."""

    def updated(self) -> None:
        """Follow an optimiser step. Called after each."""

    @contextmanager
    def watching(self, step: Step, views: Sequence[str], role: str) -> Iterator[None]:
        """Enclose the forward of a declared pass, for a hook that reads activations: ``views`` are in its batch, in
        this order."""
        yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the model without what the hook added to it, for the role ``reference``."""
        yield

    def modules(self) -> dict[str, nn.Module]:
        """Return the hook's own trainable modules, by name."""
        return {}

    def exported(self) -> dict[str, nn.Module]:
        """Return those of :meth:`modules` that the trained model needs; the others are in checkpoints only."""
        return self.modules()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Return sentences for the log, from running means of metrics over logged steps, for each metric that was
        logged ``patience`` times. They never stop a run, and should name what this hook's options can change."""
        return []

    def alarm(self, metrics: Mapping[str, float]) -> Alarm | None:
        """Return what is wrong by the metrics of a logged step; None where nothing is. Called after each, where
        :attr:`watches` is true."""
        return None


def defined_slots(cls: type) -> set[str]:
    """Return the slots whose methods a class defines."""
    return {slot for slot in SLOTS if callable(getattr(cls, slot, None))}

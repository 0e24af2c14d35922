"""What travels through a step: the views that hooks make of a batch, its chunks, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flowhooks.batch import Batch
from flowhooks.kernel.plan import MAIN_VIEW


@dataclass(frozen=True, kw_only=True, eq=False)
class Sigma:
    """The time of a state: one sigma for a whole sample. Other kinds of time derive from it beside the hooks that make
    them.

    Args:
        level: ``[B]`` in [0, 1]; where a sample has several, that of text and of most of the sample.
        density: purpose -> ``[B]`` more sigmas of the density that ``level`` was drawn from, independent of it; None
            where it was not drawn from one.
    """

    level: Tensor
    density: Callable[[str], Tensor] | None = None

    @property
    def told(self) -> Mapping[str, Any]:
        """What the model's ``predict`` is told beside the level, by keyword."""
        return {}

    def spread(self, like: Tensor) -> Tensor:
        """The sigma of each number of ``like`` ``[B, ...]``, broadcastable to it, in its dtype."""
        return self.level.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

    def join(self, others: Sequence[Any]) -> Sigma:
        """The samples of this one, then those of others of its type."""
        return Sigma(level=concatenate([self.level, *(other.level for other in others)]))


class ViewState(Protocol):
    """What the samples are at a time, and how a model is asked about it."""

    @property
    def shape(self) -> torch.Size:
        """``[B, ...]``."""

    def noisy(self, time: Sigma) -> Tensor:
        """``[B, ...]`` x_s."""

    def fits(self, other: ViewState) -> bool:
        """Whether both can go through the network in one batch, at times of one type."""

    def predict(self, model: Any, role: str, views: Sequence[View]) -> Sequence[Tensor]:
        """``[B, ...]`` velocity on each of the views, whose states fit this one, in one forward of the model, which
        plays ``role``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """A state on the straight path from data to noise, ``x_s = (1 - s) x0 + s e``.

    Args:
        clean: ``[B, ...]`` x0.
        noise: ``[B, ...]`` e, shaped like ``clean``; None until a hook gives it, with a time.
    """

    clean: Tensor
    noise: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.clean.shape

    def noisy(self, time: Sigma) -> Tensor:
        assert self.noise is not None, "who gives a time gives noise with it"
        sigma = time.spread(self.clean)
        return (1 - sigma) * self.clean + sigma * self.noise

    def fits(self, other: ViewState) -> bool:
        return isinstance(other, Path) and self.shape[1:] == other.shape[1:]

    def predict(self, model: Any, role: str, views: Sequence[View]) -> Sequence[Tensor]:
        first, *others = views
        noisy = [view.noisy for view in views]
        time = first.timed.join([view.timed for view in others])
        condition = first.condition.join([view.condition for view in others])
        joint = model.predict(concatenate(noisy), time.level, condition, **time.told)
        return joint.split([len(each) for each in noisy])


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """The samples of the batch in one state at one time; sigma runs from 1 (noise) to 0 (data).

    Args:
        name: ``main``, ``rejected``, ...
        state: a :class:`Path`, or what a hook in the slot ``source`` has drawn.
        time: of the B samples; None until a hook gives it.
        condition: conditioning of the B samples.
        mask: broadcastable to the state, >= 0.
        weight: ``[B]``; 0 leaves a sample out of every mean.
    """

    name: str
    state: ViewState
    time: Sigma | None
    condition: Any
    mask: Tensor | None = None
    weight: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> View:
        """The main view of a batch, before any hook has given it time and noise."""
        return cls(name=MAIN_VIEW, state=Path(clean=batch.clean), time=None, condition=batch.condition)

    @property
    def timed(self) -> Sigma:
        """The time, which some hook must have given."""
        if self.time is None:
            raise ValueError(f"view {self.name!r} has no sigma yet; the hook that reads it must need 'sigma'")
        return self.time

    @property
    def level(self) -> Tensor:
        """``[B]`` sigma, which some hook must have given."""
        return self.timed.level

    @property
    def sigma(self) -> Tensor | None:
        """``[B]``, or None before a hook has given it."""
        return None if self.time is None else self.time.level

    @property
    def noisy(self) -> Tensor:
        """``[B, ...]`` x_s."""
        return self.state.noisy(self.timed)

    @property
    def shape(self) -> torch.Size:
        """``[B, ...]`` of the noisy state."""
        return self.state.shape

    @property
    def clean(self) -> Tensor | None:
        """``[B, ...]`` x0, or None for a state that was drawn."""
        return self.state.clean if isinstance(self.state, Path) else None

    @property
    def noise(self) -> Tensor | None:
        """``[B, ...]`` e, or None before a hook has given it, and for a state that was drawn."""
        return self.state.noise if isinstance(self.state, Path) else None

    @property
    def velocity(self) -> Tensor:
        """``[B, ...]`` e - x0, the default target."""
        if self.clean is None or self.noise is None:
            raise ValueError(f"view {self.name!r} has no clean latents and noise, so it has no straight-line velocity")
        return self.noise - self.clean


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """A part of a step that has a backward of its own: one visited state of a rollout, say.

    Args:
        batch: what it is about.
        views: by name, the main one among them.
        share: of the step's loss.
        loss: names and values of this chunk's own loss terms, which are added to the step's loss whole; None for the
            objective and the penalties of the run.
    """

    batch: Batch
    views: dict[str, View]
    share: float = 1.0
    loss: Callable[[Any], dict[str, Tensor]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StepResult:
    """What one step, or one chunk of it, gives back.

    Args:
        loss: scalar, with gradient; of a chunk, its share of the step's.
        metrics: name -> detached 0-dim tensor, this process's share; NaN means that nothing was measured.
        passes: forwards of the transformer that it made.
        share: of the step, 1 for a whole one.
        files: where its samples came from.
        added: whether the loss stands beside the shares of other chunks, as that of the data in a run that draws.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    passes: int
    share: float = 1.0
    files: tuple[str, ...] = ()
    added: bool = False


def concatenate(values: Sequence[Tensor]) -> Tensor:
    """Join tensors of equal sample shape along the batch axis; one tensor is passed through uncopied."""
    return values[0] if len(values) == 1 else torch.cat(list(values))


def at_least_fp32(values: Tensor) -> Tensor:
    """In fp32, or as they are where that is more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

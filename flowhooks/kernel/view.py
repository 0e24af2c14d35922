"""Define the data of a step: the views that hooks make of a batch, its chunks, and their results."""

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
    """Holds the time of a state: one sigma for a whole sample. Other kinds of time derive from it beside the hooks that
    make them.

    Args:
        level: ``[B]`` in [0, 1]; if a sample has several, that of text and of most of the sample.
        density: purpose -> ``[B]`` more sigmas of the density that ``level`` was drawn from, independent of it; None
            where it was not drawn from one.
    """

    level: Tensor
    density: Callable[[str], Tensor] | None = None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Return further keyword arguments of the model's ``predict``, beside the level."""
        return {}

    def spread(self, like: Tensor) -> Tensor:
        """Return the sigma of each number of ``like`` ``[B, ...]``, broadcastable to it, in its dtype."""
        return self.level.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

    def join(self, others: Sequence[Any]) -> Sigma:
        """Return the samples of this one, followed by those of others of its type."""
        return Sigma(level=concatenate([self.level, *(other.level for other in others)]))


class ViewState(Protocol):
    """Holds the state of samples at a time, and predicts on it."""

    @property
    def shape(self) -> torch.Size:
        """Return the shape ``[B, ...]``."""

    def noisy(self, time: Sigma) -> Tensor:
        """Return x_s ``[B, ...]``."""

    def fits(self, other: ViewState) -> bool:
        """Return whether both can go through the network in one batch, at times of one type."""

    def predict(self, model: Any, role: str, views: Sequence[View]) -> Sequence[Tensor]:
        """Return the velocity ``[B, ...]`` on each of the views, whose states fit this one, in one forward of the
        model, which plays ``role``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Path:
    """Holds a state on the straight path from data to noise, ``x_s = (1 - s) x0 + s e``.

    Args:
        clean: ``[B, ...]`` x0.
        noise: ``[B, ...]`` e, shaped like ``clean``; None until a hook sets it, with a time.
    """

    clean: Tensor
    noise: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.clean.shape

    def noisy(self, time: Sigma) -> Tensor:
        assert self.noise is not None, "a hook that sets a time sets noise with it"
        sigma = time.spread(self.clean)
        return (1 - sigma) * self.clean + sigma * self.noise

    def fits(self, other: ViewState) -> bool:
        return isinstance(other, Path) and self.shape[1:] == other.shape[1:]

    def predict(self, model: Any, role: str, views: Sequence[View]) -> Sequence[Tensor]:
        first, *others = views
        noisy = [view.noisy for view in views]
        time = first.timed.join([view.timed for view in others])
        condition = first.condition.join([view.condition for view in others])
        joint = model.predict(concatenate(noisy), time.level, condition, **time.arguments)
        return joint.split([len(each) for each in noisy])


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Holds the samples of the batch in one state at one time; sigma is 0 at data and 1 at noise.

    Args:
        name: ``main``, ``rejected``, ...
        state: a :class:`Path`, or a state of a hook in the slot ``source``.
        time: time of the B samples; None until a hook sets it.
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
        """Return the main view of a batch, before any hook has set time and noise."""
        return cls(name=MAIN_VIEW, state=Path(clean=batch.clean), time=None, condition=batch.condition)

    @property
    def timed(self) -> Sigma:
        """Return the time, which some hook must have set."""
        if self.time is None:
            raise ValueError(f"view {self.name!r} has no sigma yet; the hook that reads it must need 'sigma'")
        return self.time

    @property
    def level(self) -> Tensor:
        """Return sigma ``[B]``, which some hook must have set."""
        return self.timed.level

    @property
    def sigma(self) -> Tensor | None:
        """Return sigma ``[B]``, or None before a hook has set it."""
        return None if self.time is None else self.time.level

    @property
    def noisy(self) -> Tensor:
        """Return x_s ``[B, ...]``."""
        return self.state.noisy(self.timed)

    @property
    def shape(self) -> torch.Size:
        """Return the shape ``[B, ...]`` of the noisy state."""
        return self.state.shape

    @property
    def clean(self) -> Tensor | None:
        """Return x0 ``[B, ...]``, or None for a state of a rollout."""
        return self.state.clean if isinstance(self.state, Path) else None

    @property
    def noise(self) -> Tensor | None:
        """Return e ``[B, ...]``, or None before a hook has set it, and for a state of a rollout."""
        return self.state.noise if isinstance(self.state, Path) else None

    @property
    def velocity(self) -> Tensor:
        """Return e - x0 ``[B, ...]``, the default target."""
        if self.clean is None or self.noise is None:
            raise ValueError(f"view {self.name!r} has no clean latents and noise, so it has no straight-line velocity")
        return self.noise - self.clean


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Holds a part of a step that has its own backward, for example one visited state of a rollout.

    Args:
        batch: samples of the chunk.
        views: views by name, the main one among them.
        share: its share of the step's loss.
        loss: names and values of this chunk's own loss terms, which are added to the step's loss whole; None for the
            objective and the penalties of the run.
    """

    batch: Batch
    views: dict[str, View]
    share: float = 1.0
    loss: Callable[[Any], dict[str, Tensor]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StepResult:
    """Holds the result of one step, or of one chunk of it.

    Args:
        loss: scalar, with gradient; for a chunk, its share of the step's.
        metrics: name -> detached 0-dim tensor, this process's share; NaN means that nothing was measured.
        passes: forwards of the transformer that it made.
        share: its share of the step, 1 for a whole one.
        files: files of its samples.
        added: whether the loss is added to the shares of other chunks, as that of the data beside a rollout.
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
    """Return the values in fp32, or unchanged if they are more precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

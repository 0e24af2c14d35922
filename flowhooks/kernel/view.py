"""What travels through a step: the batch that came in, and the views the hooks make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Conditioning(Protocol):
    """What the model is conditioned on, for ``size`` samples. The engine only joins it; the probe knows what is
    inside."""

    @property
    def size(self) -> int: ...

    def join(self, others: Sequence[Any]) -> Any: ...

    def take(self, rows: Sequence[int]) -> Any: ...


class TokenLevels(Protocol):
    """A time for each token of a sample. The engine only joins it; the probe knows what is inside."""

    def join(self, others: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class NoCondition:
    """The condition of ``size`` samples of a model that takes none, or that is told by other ways."""

    size: int

    def join(self, others: Sequence[NoCondition]) -> NoCondition:
        return NoCondition(self.size + sum(other.size for other in others))

    def take(self, rows: Sequence[int]) -> NoCondition:
        return NoCondition(len(rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One micro-batch of training data.

    Args:
        clean: ``[B, ...]`` latents in the scheduler's sample space; of a rollout, what was drawn.
        condition: conditioning of the same B samples.
        rejected: ``[B, ...]`` latents of the rejected side, shaped like ``clean``.
        mask: ``[B, 1, h, w]`` in [0, 1] on the VAE's latent grid; 1 trains, 0 does not.
        files: where each sample came from, for error messages.
        prompts: what each sample shows, in words; of data and rollouts, and empty in a loop that gives none.
        records: what is known of each sample beside its prompt, by column of the prompts or by name under `columns` of
            the data set; empty where nothing is.
        size: height and width in pixels, and frames of clips, of what the samples were made of, the same for all; None
            where their shape tells it.
    """

    clean: Tensor
    condition: Any
    rejected: Tensor | None = None
    mask: Tensor | None = None
    files: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rejected is not None and self.rejected.shape != self.clean.shape:
            raise ValueError(
                f"`rejected` is {tuple(self.rejected.shape)}, `clean` is {tuple(self.clean.shape)}; they must match"
            )
        if self.condition.size != len(self.clean):
            raise ValueError(f"`condition` holds {self.condition.size} samples, `clean` holds {len(self.clean)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One noisy state of the batch, and what it was made of.

    ``x_s = (1 - s) x0 + s e`` and ``v = e - x0``; sigma runs from 1 (noise) to 0 (data).

    Args:
        name: ``main``, ``rejected``, ...
        clean: ``[B, ...]`` x0, or None when ``state`` came from a rollout.
        noise: ``[B, ...]`` e, shaped like ``clean``.
        sigma: ``[B]`` in [0, 1].
        condition: conditioning of the B samples.
        r_sigma: ``[B]``, the end of the interval for flow maps.
        interval_rows: with ``r_sigma``, the rows whose interval is not empty, known without asking the device.
        density: purpose -> ``[B]`` more sigmas of the density that ``sigma`` was drawn from, independent of it; None
            where it was not drawn from one.
        token_sigma: a sigma for each token, as the model takes it; ``sigma`` is then that of text and of most tokens.
        element_sigma: with ``token_sigma``, ``[B, ...]``, the same for each number of the sample.
        mask: broadcastable to ``clean``, >= 0.
        weight: ``[B]``; 0 leaves a sample out of every mean.
        state: ``[B, ...]`` the noisy state itself, when it is not made of clean and noise.
        visit: the same state in the pipeline's own loop: predictions are then guided as the pipeline guides them.
    """

    name: str
    clean: Tensor | None
    noise: Tensor | None
    sigma: Tensor | None
    condition: Any
    r_sigma: Tensor | None = None
    interval_rows: tuple[int, ...] = ()
    density: Callable[[str], Tensor] | None = None
    token_sigma: TokenLevels | None = None
    element_sigma: Tensor | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None
    state: Tensor | None = None
    visit: Any = None

    @property
    def noisy(self) -> Tensor:
        """``[B, ...]`` x_s."""
        if self.state is not None:
            return self.state
        clean, noise = self._ends()
        if self.element_sigma is not None:
            sigma = self.element_sigma.to(clean.dtype)
        else:
            sigma = self.level.to(clean.dtype).reshape(-1, *[1] * (clean.dim() - 1))
        return (1 - sigma) * clean + sigma * noise

    @property
    def shape(self) -> torch.Size:
        """``[B, ...]`` of the noisy state."""
        return (self.state if self.state is not None else self._ends()[0]).shape

    @property
    def level(self) -> Tensor:
        """``[B]`` sigma, which some hook must have given."""
        if self.sigma is None:
            raise ValueError(f"view {self.name!r} has no sigma yet; the hook that reads it must need 'sigma'")
        return self.sigma

    @property
    def velocity(self) -> Tensor:
        """``[B, ...]`` e - x0, the default target."""
        clean, noise = self._ends()
        return noise - clean

    def _ends(self) -> tuple[Tensor, Tensor]:
        if self.clean is None or self.noise is None:
            raise ValueError(f"view {self.name!r} has no clean latents and noise, so it has no straight-line velocity")
        return self.clean, self.noise


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

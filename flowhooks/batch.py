"""One micro-batch: what data, a rollout, or somebody's own loop gives to a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Conditioning(Protocol):
    """What the model is conditioned on, for ``size`` samples. A step only joins it; the probe knows what is
    inside."""

    @property
    def size(self) -> int: ...

    def join(self, others: Sequence[Any]) -> Any: ...

    def take(self, rows: Sequence[int]) -> Any: ...


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
        size: height and width in pixels, and frames of videos, of what the samples were made of, the same for all; None
            where their shape tells it.
    """

    clean: Tensor
    condition: Conditioning
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

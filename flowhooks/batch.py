"""Define one micro-batch: the input of a step, from data, a rollout, or the user's own loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Conditioning(Protocol):
    """Holds the conditioning of the model for ``size`` samples. A step only joins it; the probe defines its content."""

    @property
    def size(self) -> int: ...

    def join(self, others: Sequence[Any]) -> Any: ...

    def take(self, rows: Sequence[int]) -> Any: ...


@dataclass(frozen=True)
class NoCondition:
    """Stands for the condition of ``size`` samples of a model that takes none, or gets it in another way."""

    size: int

    def join(self, others: Sequence[NoCondition]) -> NoCondition:
        return NoCondition(self.size + sum(other.size for other in others))

    def take(self, rows: Sequence[int]) -> NoCondition:
        return NoCondition(len(rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Holds one micro-batch of training data.

    Args:
        clean: ``[B, ...]`` latents in the scheduler's sample space; for a rollout, its samples.
        condition: conditioning of the same B samples.
        rejected: ``[B, ...]`` latents of the rejected side, shaped like ``clean``.
        mask: ``[B, 1, h, w]`` in [0, 1] on the VAE's latent grid; 1 trains, 0 does not.
        files: file of each sample, for error messages.
        prompts: prompt of each sample, from data and rollouts; empty in a loop that gives none.
        records: further values of each sample, by column of the prompts or by name under `columns` of
            the data set; empty if there are none.
        references: pipeline argument -> image, or a list of several, of each sample; empty if no sample has any.
            Conditions hold them already; samplers give them to the pipeline.
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
    references: tuple[Mapping[str, Any], ...] = ()
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rejected is not None and self.rejected.shape != self.clean.shape:
            raise ValueError(
                f"`rejected` is {tuple(self.rejected.shape)}, `clean` is {tuple(self.clean.shape)}; they must match"
            )
        for name in ("files", "prompts", "records", "references"):
            count = len(getattr(self, name))
            if count not in (0, len(self.clean)):
                raise ValueError(f"`{name}` holds {count} entries, `clean` holds {len(self.clean)} samples")
        if self.condition.size != len(self.clean):
            raise ValueError(f"`condition` holds {self.condition.size} samples, `clean` holds {len(self.clean)}")

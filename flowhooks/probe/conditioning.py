"""What the transformer is told besides sample and time, recorded from the pipeline's own prompt handling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.recorder import Recording, recording_calls, run


@dataclass(frozen=True, eq=False)
class Condition:
    """Transformer arguments that follow the prompt, for ``size`` samples.

    Args:
        arguments: name -> tensor whose first axis is the batch.
    """

    arguments: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        return len(next(iter(self.arguments.values())))

    def join(self, others: Sequence[Condition]) -> Condition:
        """This one followed by the others, along the batch axis.

        Raises:
            ModelError: prompts whose embeddings differ in shape, which this pipeline gives no way to pad exactly.
        """
        if not others:
            return self
        joined = {}
        for name, first in self.arguments.items():
            values = [first, *(other.arguments[name] for other in others)]
            if len({v.shape[1:] for v in values}) > 1:
                shapes = sorted({tuple(v.shape[1:]) for v in values})
                raise ModelError(
                    f"prompts give {name!r} of different shapes {shapes}; they cannot go through in one batch"
                )
            joined[name] = torch.cat(values)
        return Condition(joined)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Moved; only floating-point arguments change dtype."""
        return Condition(
            {
                name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
                for name, value in self.arguments.items()
            }
        )

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return Condition({name: value[rows] for name, value in self.arguments.items()})


def recorded_arguments(pipe: Any, transformer: Any, prompts: Sequence[str], call: Mapping[str, Any]) -> dict[str, Any]:
    """The first transformer call's arguments for these prompts. Text encoders run; transformer and VAE do not."""
    seen = Recording()
    with recording_calls(transformer, seen, stop=True):
        run(pipe, **{**call, "prompt": list(prompts), "output_type": "latent"})
    if not seen.calls:
        raise ModelError(f"{type(pipe).__name__} returned without calling its transformer")
    return seen.calls[0]


def per_prompt_arguments(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tensor arguments whose batch axis grows from one prompt to two."""
    return tuple(
        name
        for name, value in one.items()
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == 1 and len(two[name]) == 2
    )

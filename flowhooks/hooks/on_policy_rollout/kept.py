"""Keeps the rollouts of a micro-batch while several updates train on them, and in checkpoints between these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.batch import Batch
from flowhooks.distributed import Processes
from flowhooks.sampling.states import STORED, Rollout
from flowhooks.transfer import picked, sent, whole_numbers

NOTES = "notes"


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnPart:
    """Holds rows of a micro-batch that were sampled in one call.

    Args:
        rows: which rows of the micro-batch on this process they are.
        rollout: their states.
        batch: the samples, as they came out in the end.
        notes: name -> ``[rows]``; what a hook has found out about the samples, which is kept and saved with them.
    """

    rows: Sequence[int]
    rollout: Rollout
    batch: Batch
    notes: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything ``[rows, ...]`` that it holds, by name."""
        stored = {f"{kind}.{i}": each for kind, of in self.rollout.stored.items() for i, each in of.items()}
        return {**stored, **{f"{NOTES}.{name}": value for name, value in self.notes.items()}}

    def holding(self, tensors: Mapping[str, Tensor]) -> DrawnPart:
        """Return a copy with the :meth:`tensors` of another."""
        stored: dict[str, dict[int, Tensor]] = {kind: {} for kind in STORED}
        notes: dict[str, Tensor] = {}
        for name, value in tensors.items():
            kind, _, key = name.partition(".")
            if kind == NOTES:
                notes[key] = value
            else:
                stored[kind][int(key)] = value
        rollout = self.rollout.with_tensors(stored)
        batch = replace(self.batch, clean=sent(rollout.final, self.batch.clean.device))
        return replace(self, rollout=rollout, batch=batch, notes=notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Holds the rollouts of a micro-batch.

    Args:
        turn: number of the micro-batch among those that were drawn, which tells its prompts.
        micro_step: micro-step at which it was drawn, which tells its seeds.
        order: indices of the steps that may be visited, in the order of visits.
        parts: they hold all rows of this process.
    """

    turn: int
    micro_step: int
    order: Sequence[int]
    parts: Sequence[DrawnPart]

    def visited(self, update: int, count: int) -> list[int]:
        """Return, sorted, the indices of the ``count`` steps that an update, counted from 0, visits."""
        return sorted(self.order[(update * count + i) % len(self.order)] for i in range(count))

    def state(self, processes: Processes, device: torch.device) -> dict[str, Any]:
        """Return what a checkpoint needs: the samples of all processes, which call this together."""
        size = sum(len(part.rows) for part in self.parts)
        found: dict[str, Any] = {"turn": self.turn, "micro_step": self.micro_step, "order": list(self.order)}
        held = [part.tensors() for part in self.parts]
        for name, like in held[0].items():
            room = torch.zeros(processes.world_size * size, *like.shape[1:], dtype=like.dtype, device=device)
            for part, tensors in zip(self.parts, held, strict=True):
                rows = whole_numbers([processes.rank * size + i for i in part.rows], device)
                room.index_copy_(0, rows, sent(tensors[name], device))
            found[name] = processes.all_reduce(room).cpu()
        return found


def restored(
    state: Mapping[str, Any],
    again: Callable[[int, Sequence[int]], Sequence[DrawnPart]],
    local: Callable[[Tensor], Tensor],
    device: torch.device | str,
) -> Drawn:
    """Return what :meth:`Drawn.state` came from.

    Args:
        again: draws parts anew at a micro-step, for the forms of the network's outputs on the way.
        local: returns the rows of this process.
    """
    micro_step, order = int(state["micro_step"]), [int(i) for i in state["order"]]
    tensors = {name: local(value) for name, value in state.items() if isinstance(value, Tensor)}
    parts = [
        part.holding({name: sent(picked(value, part.rows), device) for name, value in tensors.items()})
        for part in again(micro_step, order)
    ]
    return Drawn(turn=int(state["turn"]), micro_step=micro_step, order=order, parts=parts)


def rows_of(state: Mapping[str, Any]) -> int:
    """Return how many samples a state of :meth:`Drawn.state` holds."""
    return next(len(value) for value in state.values() if isinstance(value, Tensor))

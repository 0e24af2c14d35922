"""What one of several processes needs where FSDP2 shards the network over them: its rows, and what is gathered while it
computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from flowhooks.config import Run
from flowhooks.config.run import offload_share
from flowhooks.memory.plan import META, NotCounted, Planned
from flowhooks.memory.report import CONTEXT, GAPS, on_card, shown
from flowhooks.memory.step import HOOKS, OPTIMIZER, TRAINED, UPDATE, WEIGHTS, Needs
from flowhooks.pretrained import DTYPES
from flowhooks.probe.recomputing import repeated_blocks


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Bytes of the weights that FSDP2 has whole at once.

    Args:
        beside: of all that is in no block: whole from the network's first layer to its last.
        block: of the largest block.
    """

    beside: int
    block: int

    @classmethod
    def of(cls, network: nn.Module) -> Gathered:
        """Return those of a network that is not sharded."""
        blocks = [sum(p.nbytes for p in block.parameters()) for block in repeated_blocks(network)]
        return cls(beside=sum(p.nbytes for p in network.parameters()) - sum(blocks), block=max(blocks, default=0))

    @property
    def most(self) -> int:
        """Return the most that is there at once: as the first block is gathered, it and what is beside the blocks, each
        also as it came from the other processes."""
        return 2 * (self.beside + self.block)


def held_by_one(sharded: int, processes: int, gathered: Gathered) -> int:
    """Return the most that a process holds in a forward or backward pass, without activations.

    Args:
        sharded: bytes of all that is sharded: weights, and of a network that is trained its gradients, the optimiser's
            state and copies.
    """
    return -(-sharded // processes) + gathered.most


def needs_of_one(planned: Planned, needs: Needs, processes: int) -> int:
    """Return the most bytes of tensors that one process needs, of so many over which the network is sharded.

    Args:
        needs: of the run on one card, with the samples that each process has.

    Raises:
        NotCounted: the run is not trained under FSDP2.
    """
    run = planned.run
    _refuse(run)
    gathered = Gathered.of(planned.network(META, DTYPES[run.model["dtype"]]))
    trained = run.adapter is None
    # Modules of hooks are whole on every process; beside a whole network they are small.
    own = needs.trained + needs.gradients + needs.optimizer + needs.hooks
    sharded = needs.weights + own * trained
    parts = needs.at_peak
    computed = needs.peak - sum(parts.get(part, 0) for part in (WEIGHTS, TRAINED, OPTIMIZER, HOOKS))
    if not trained:
        return held_by_one(sharded, processes, gathered) + computed + own - needs.gradients
    # In the update, what is computed beside gradients are rows, of which there is room where blocks were gathered.
    passes = 0 if needs.phase == UPDATE else computed - needs.gradients
    return held_by_one(sharded, processes, gathered) + max(needs.activations, passes)


def sharded_lines(planned: Planned, needs: Needs, processes: int) -> Iterator[str]:
    """Yield a line that says what each card needs. Raises as :func:`needs_of_one`."""
    most = on_card(needs_of_one(planned, needs, processes))
    yield (
        f"{f'on each of {processes} cards (FSDP2)':<34} {shown(most):>10}, with {shown(CONTEXT)} for its context and "
        f"{GAPS:.0%} for its allocator"
    )


def _refuse(run: Run) -> None:
    held = {
        "model.quantization": run.model["quantization"] is not None,
        "model.offload": bool(offload_share(run.model)),
    }
    for place, there in held.items():
        if there:
            raise NotCounted(f"FSDP2 does not go with `{place}`")

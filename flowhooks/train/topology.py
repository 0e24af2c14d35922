"""Compare how a checkpoint's run and this one spread an update's batch: over samples of a micro-batch, micro-batches
and processes. Free of torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowhooks.errors import UnusableCheckpoint

_BATCH, _ACCUMULATION, _PROCESSES = "train_batch_size", "gradient_accumulation_steps", "processes"


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Says how the samples of an update are spread.

    Args:
        batch_size: samples of a micro-batch on one process.
        accumulation: micro-batches of an update.
        processes: of the run.
    """

    batch_size: int
    accumulation: int
    processes: int

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Topology | None:
        """Return that of an identity; None for one that does not say."""
        training = identity.get("training")
        if not isinstance(training, Mapping):
            return None
        told = training.get(_BATCH), training.get(_ACCUMULATION), identity.get(_PROCESSES)
        if not all(type(each) is int and each > 0 for each in told):
            return None
        return cls(batch_size=told[0], accumulation=told[1], processes=told[2])  # type: ignore[arg-type]

    @property
    def samples(self) -> int:
        """Return how many samples an update has in total: the global batch."""
        return self.batch_size * self.accumulation * self.processes

    def __str__(self) -> str:
        return (
            f"`training.{_BATCH}` {self.batch_size} x `training.{_ACCUMULATION}` {self.accumulation} x "
            f"{self.processes} process{'' if self.processes == 1 else 'es'}"
        )


def without_topology(
    found: Mapping[str, Any], own: Mapping[str, Any], place: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return two identities without what may differ as long as the global batch stays.

    Raises:
        UnusableCheckpoint: an update of this run has another number of samples than one of the checkpoint's.
    """
    before, now = Topology.of(found), Topology.of(own)
    if before is None or now is None:
        return found, own
    if before.samples != now.samples:
        raise UnusableCheckpoint(
            f"{place} was written with a global batch of {before.samples} ({before}), and this run has {now.samples} "
            f"({now}). The three may change, and their product must stay: set `training.{_BATCH}`, "
            f"`training.{_ACCUMULATION}` or the processes of `accelerate launch` so that it is {before.samples}, or "
            "start again in another `output_dir`, with `adapter.init_from` to continue from these weights"
        )
    left = []
    for identity in (found, own):
        kept: dict[str, Any] = copy.deepcopy(dict(identity))
        del kept[_PROCESSES], kept["training"][_BATCH], kept["training"][_ACCUMULATION]
        left.append(kept)
    return left[0], left[1]


def likely_processes(found: Mapping[str, Any], batch_size: int, accumulation: int) -> int:
    """Return how many processes a run will have: those that `accelerate launch` started, else, before it did, those
    with which a resumed run has the checkpoint's global batch, where there is such a number.

    Args:
        found: identity of the checkpoint.
    """
    if (launched := os.environ.get("WORLD_SIZE", "")).isdigit():
        return int(launched)
    before = Topology.of(found)
    if before is None:
        return int(found.get(_PROCESSES, 1))
    processes, rest = divmod(before.samples, batch_size * accumulation)
    return before.processes if rest else processes


def moved_micro_step(micro_step: int, found: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Return the micro-step at which a resumed run stands: as many updates were made, of this run's micro-steps.

    Args:
        micro_step: of the checkpoint.
    """
    before, now = Topology.of(found), Topology.of(own)
    if before is None or now is None or before.accumulation == now.accumulation:
        return micro_step
    return micro_step * now.accumulation // before.accumulation


def differences(found: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not go on exactly where the global batch is spread in another way than in the checkpoint."""
    before, now = Topology.of(found), Topology.of(own)
    if before is None or now is None:
        return
    if before.processes != now.processes:
        yield (
            f"was written by {before.processes} and goes on with {now.processes} processes: dropout, the one thing "
            "that each process draws on its own, starts anew; all else goes on"
        )
    if before.accumulation != now.accumulation:
        yield (
            f"had `training.{_ACCUMULATION}` {before.accumulation}, and this run has {now.accumulation}: an update "
            "has as many samples, and noise, noise levels and what a hook measures or schedules by micro-batches are "
            "drawn and counted anew from here on; with several sizes of images or shares of data sets, samples come "
            "in another order"
        )

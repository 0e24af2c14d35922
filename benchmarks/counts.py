"""Counts of every method's step that depend on no machine, against the committed ones.

Forwards, rows that go through the network, blocks, backward passes and decodes are those of the network; waits are
counted on a device that is computed on the CPU (:mod:`benchmarks.far_device`); bytes are the most that an update has
alive at once, and allocations the tensors that it makes. Of compiled blocks the graphs are counted, the recompilations
in a later step, and the graph breaks.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import floor
from benchmarks.methods import SMALL, Size, batch_of, documents, probed
from benchmarks.updates import updating
from flowhooks.kernel import Batch
from flowhooks.memory.live import Live
from flowhooks.probe import FlowModel
from flowhooks.quiet import quiet_libraries
from flowhooks.train.validation import on_device

SIZE = Size(network=SMALL, edge=16, batch=2)
#: Bytes may grow by this share: what torch itself keeps differs between its releases.
SLACK = {"bytes": 0.01, "allocations": 0.01}
#: Pipeline and method of :mod:`benchmarks.compile` whose blocks are compiled; a graph takes a second or two.
COMPILED = (("sd3", "flow_dpo"),)


class Allocations(Live):
    """Counts the storages that operators make, too."""

    made = 0

    def _count(self, storage: Any, part: str) -> list[Any]:
        self.made += 1
        return super()._count(storage, part)


def counted() -> dict[str, dict[str, int]]:
    """Method -> count -> number, of an update that is not the first."""
    # Before the first backward pass, for which torch makes its threads for all devices that it will ever know.
    import benchmarks.far_device  # noqa: F401

    found: dict[str, dict[str, int]] = {}
    model = probed(SIZE)
    batch = batch_of(model, SIZE)
    with documents(SIZE, model) as runs:
        for name, document in runs.items():
            with updating(model, document, lambda _: batch) as (_, update):
                update()
                with floor.watched(model.transformer, model.pipe.vae.decoder) as calls:
                    update()
                with Allocations() as live:
                    update()
            found[name] = {**calls.counts, "bytes": live.peak, "allocations": live.made}
        for name, waits in _waits(model, batch, runs).items():
            found[name]["waits"] = waits
    return {**found, **_compiled()}


def _compiled() -> dict[str, dict[str, int]]:
    from benchmarks.compile import METHODS as RUNS
    from benchmarks.compile import graphs_of
    from tests.families import learnt

    return {f"{method}, blocks of {name} compiled": graphs_of(learnt(name), RUNS[method]) for name, method in COMPILED}


def _waits(model: FlowModel, batch: Batch, runs: Mapping[str, Any]) -> dict[str, int]:
    from benchmarks.far_device import NAME, watched

    found = {}
    model.pipe.to(NAME)
    for name, document in runs.items():
        with updating(model, document, lambda _: on_device(batch, model.device)) as (_, update):
            update()
            with watched() as traffic:
                update()
        found[name] = sum(traffic.waits.values())
    return found


def worse(committed: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each count that is worse than the committed one, or was not committed."""
    lines = []
    for name, counts in now.items():
        for what, count in counts.items():
            before = committed.get(name, {}).get(what)
            if before is None:
                lines.append(f"{name}: {what} {count:,}, and none is committed")
            elif count > before * (1 + SLACK.get(what, 0)):
                lines.append(f"{name}: {what} {count:,}, committed {before:,}")
    return lines + [f"{name}: committed, and not measured" for name in committed if name not in now]


def check(arguments: argparse.Namespace) -> int:
    """Exit code: 0 where nothing is worse."""
    warnings.simplefilter("ignore")
    quiet_libraries()
    torch.set_num_threads(1)
    now = counted()
    if arguments.write:
        document = {"command": "python -m benchmarks check --write", "torch": torch.__version__, "counts": now}
        arguments.counts.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"written: {arguments.counts}")
        return 0
    committed = json.loads(arguments.counts.read_text(encoding="utf-8"))["counts"]
    lines = worse(committed, now)
    for line in lines:
        print(f"worse: {line}")
    better = len(worse(now, committed))
    print(f"{sum(map(len, now.values()))} counts, {len(lines)} worse, {better} better")
    if lines:
        print("where that is intended, run `python -m benchmarks check --write` and say why in the commit")
    return int(bool(lines))

"""What a training loop waits for data: batches from the cache against a plain ``DataLoader`` over the same tensors.

``python -m benchmarks.data_wait`` prints JSON. Images, rejected twins, masks and captions of a tiny pipeline are
cached; then epochs are read in the loop's own process, where all reading is waiting, by three loaders that take turns:
ours with entries kept in memory, ours with every entry read from its shard, and torch's over a list of the same
tensors. Between any two batches is a Flow-DPO step of a network of 2 M weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

import flowhooks
from benchmarks.measure import interleaved, machine, ratio
from benchmarks.step import RUN, probed
from flowhooks.config import load_datasets
from flowhooks.data import CachedDataset, Schedule, audit, build_cache, data_loader, streams
from flowhooks.data.store import Entries
from flowhooks.quiet import quiet_libraries

GOAL = 0.05
SETS = [
    {"id": "win", "instance_data_dir": "win", "conditioning_data": ["lose", "mask"]},
    {"id": "lose", "dataset_type": "conditioning", "conditioning_type": "reference_strict"},
    {"id": "mask", "dataset_type": "conditioning", "conditioning_type": "mask"},
]


def cached(root: Path, records: int, model: Any) -> CachedDataset:
    """The cache of images of noise with twins, masks and captions of their own."""
    draw = np.random.default_rng(0)
    for block in SETS:
        (root / str(block["id"])).mkdir()
        for i in range(records):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(block["id"]) / f"{i:05}.png")
    for i in range(records):
        (root / "win" / f"{i:05}.txt").write_text(f"image number {i}", encoding="utf-8")
    (root / "data.json").write_text(json.dumps([{"instance_data_dir": block["id"], **block} for block in SETS]))
    return build_cache(audit(load_datasets("data.json", root)), model, root / "cache", progress=False)


def plain(dataset: CachedDataset, batch_size: int) -> DataLoader:
    """torch's own loader over tensors that are in memory: nothing is looked up, checked or described."""
    samples = [dataset[i] for i in range(len(dataset))]
    tensors = [
        {"clean": s["clean"], "rejected": s["rejected"], "mask": s["mask"], **s["condition"].flatten()} for s in samples
    ]
    return DataLoader(tensors, batch_size=batch_size, shuffle=True, drop_last=True)  # type: ignore[arg-type]


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def contenders(dataset: CachedDataset, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Each gives the next batch."""
    places, records = dataset.entries.places, dataset.records
    on_disk = CachedDataset.__new__(CachedDataset)
    on_disk.__dict__.update(dataset.__dict__, entries=Entries(places, limit=0))
    loaders = {
        name: iter(data_loader(each, Schedule(streams(records), batch_size=batch_size, seed=0)))
        for name, each in (("memory", dataset), ("shards", on_disk))
    }
    return {
        name: lambda it=it: next(it) for name, it in {**loaders, "plain": endless(plain(dataset, batch_size))}.items()
    }


def trainer(model: Any) -> tuple[Callable[[Any], None], Any]:
    """A step on a batch, and what takes it off the model again."""
    context = flowhooks.attach(model, RUN)
    session = context.__enter__()
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-4)

    def step(batch: Any) -> None:
        session.step(batch, log=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        session.updated()

    return step, context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    with TemporaryDirectory() as folder:
        model = probed("cpu")
        dataset = cached(Path(folder), arguments.records, model)
        waits = contenders(dataset, arguments.batch_size)
        step, context = trainer(model)
        batches = cycle([waits["memory"]() for _ in range(4)])
        seconds = interleaved(
            {**waits, "step": lambda: step(next(batches))},
            rounds=arguments.epochs * arguments.records // arguments.batch_size,
            # Of this process: nothing else does its reading, and other programs do not count.
            clock=time.process_time,
        )
        context.__exit__(None, None, None)
    shares = {name: ratio(seconds[name], seconds["step"]) for name in waits}
    print(
        json.dumps(
            {
                "what": "waiting for a batch against computing its step; all read in the loop's own process",
                "goal": GOAL,
                "share_of_a_step": shares,
                "against_plain": {name: ratio(seconds[name], seconds["plain"]) for name in ("memory", "shards")},
                "median_seconds": {name: round(statistics.median(s), 6) for name, s in seconds.items()},
                "records": arguments.records,
                "batch_size": arguments.batch_size,
                "epochs": arguments.epochs,
                "machine": machine(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

"""Build a cache in children that are killed at random moments, and once more in two children at a time; a program of
its own because only a process without threads can be forked safely. Started by test_killed_build.py."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from flowhooks.config import load_datasets
from flowhooks.data import audit, build_cache
from flowhooks.pipeline import load_pipeline
from flowhooks.probe import probe

KILLS = 10


def started(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def shards_in(cache: Path) -> int:
    return len(list(cache.glob("*/*.safetensors")))


def main(root: Path, model_folder: str, seed: int) -> None:
    torch.set_num_threads(1)
    found = audit(load_datasets("data.json", root))
    section = {"pretrained_model_name_or_path": model_folder, "revision": None, "variant": None, "dtype": "fp32"}
    model = probe(load_pipeline(section), arguments={"max_sequence_length": 8})

    def build(cache: Path) -> None:
        build_cache(found, model, cache, progress=False)

    whole, torn, shared = (root / name for name in ("whole", "torn", "shared"))
    begun = time.perf_counter()
    codes = [ended(started(lambda: build(whole)))]
    seconds = time.perf_counter() - begun

    draw, stages = random.Random(seed), []
    while len(stages) < KILLS:
        enough = shards_in(torn) + draw.choice((0, 1))
        child = started(lambda: build(torn))
        while shards_in(torn) < enough:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, seconds / shards_in(whole)))
        os.kill(child, signal.SIGKILL)
        stages.append((ended(child) == -signal.SIGKILL, shards_in(torn), len(list(torn.glob("partial/*")))))
    codes.append(ended(started(lambda: build(torn))))

    codes += [ended(child) for child in [started(lambda: build(shared)), started(lambda: build(shared))]]
    print(json.dumps({"codes": codes, "stages": stages}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

"""Seed, save and restore every global random generator of this process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_anew(seed: int, step: int, rank: int) -> None:
    """Seed a process that goes on at a step without the state that another number of processes left there: with numbers
    of its own, which are not those that the run began with."""
    digest = hashlib.blake2b(f"{seed}/resumed/{step}/{rank}".encode(), digest_size=8).digest()
    seed_all(int.from_bytes(digest, "little") >> 1)


def capture(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, and that of ``device``."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    key = numpy_state["state"]["key"]
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key.tolist()}},
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
    }


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what :func:`capture` returned."""
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"])


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Restore the generators on exit, so that random numbers drawn inside the block do not change training after it."""
    before = capture(device)
    try:
        yield
    finally:
        restore(before, device)

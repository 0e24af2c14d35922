"""What a golden result is: losses, metrics and a fingerprint of the weights, and when two of them are the same."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
#: Where two machines differ: sums in another order, carried through two steps of Adam, which divides small gradients
#: by small numbers. With `ATEN_CPU_CAPABILITY=default` and `avx2` instead of AVX-512 the largest difference was 0.5 %,
#: and 1.2e-5 in losses near zero.
TOLERANCE = {"rel_tol": 2e-2, "abs_tol": 1e-4}


def machine() -> dict[str, str]:
    """What decides the order of sums in a float32 calculation on the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread: sums of several threads are split differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fingerprint(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The weights in four numbers: a hash to the bit, and sums for machines that calculate a little differently."""
    digest = hashlib.sha256()
    total, square = 0.0, 0.0
    with one_thread():
        for name in sorted(weights):
            value = weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
            total += float(value.double().abs().sum())
            square += float(value.double().square().sum())
    return {"sha256": digest.hexdigest(), "tensors": len(weights), "absolute": total, "norm": math.sqrt(square)}


def differences(expected: Any, found: Any, exact: bool, place: str = "$") -> list[str]:
    """Where two results differ; numbers by :data:`TOLERANCE` and hashes not at all unless `exact`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = sorted(expected.keys() | found.keys())
        missing = [
            f"{place}.{n}: only {'written' if n in expected else 'found'}"
            for n in names
            if n not in expected or n not in found
        ]
        both = [n for n in names if n in expected and n in found and (exact or n != "sha256")]
        return missing + [each for n in both for each in differences(expected[n], found[n], exact, f"{place}.{n}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [each for i, (a, b) in pairs for each in differences(a, b, exact, f"{place}[{i}]")]
    if isinstance(expected, float) and isinstance(found, float) and not exact:
        same = math.isclose(expected, found, **TOLERANCE)
    else:
        same = expected == found
    return [] if same else [f"{place}: written {expected!r}, found {found!r}"]


def read(name: str) -> dict[str, Any]:
    """A file of results, written by `python -m tests.golden --write`."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, results: Mapping[str, Any]) -> None:
    """Write a file of results, with the machine that made them and the command."""
    document = {"command": "python -m tests.golden --write", "machine": machine(), "results": results}
    text = json.dumps(document, indent=1, sort_keys=True)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")

"""What teachers cost in memory: a Flow-OPD step with one, against the same with more, on the embedded digits' network.

``python -m benchmarks.teachers`` prints JSON: bytes of one teacher's file, bytes that each teacher holds, and the peak
of a step. Teachers are random LoRAs; memory does not know.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import flowhooks
from benchmarks.measure import machine
from benchmarks.step import held_bytes
from benchmarks.token_times import peak_bytes
from flowhooks.digits.model import ensure_model
from flowhooks.digits.scans import PIXELS, caption
from flowhooks.pipeline import load_pipeline
from flowhooks.probe import probe

ADAPTER = {"type": "lora", "rank": 16, "alpha": 16}
PROMPTS = [{"prompt": caption(digit), "task": "0"} for digit in range(10)]


def model_of(folder: Path) -> Any:
    section = {"pretrained_model_name_or_path": str(folder), "revision": None, "variant": None, "dtype": "fp32"}
    return probe(load_pipeline(section), height=PIXELS, width=PIXELS)


@contextmanager
def stepping(model: Any, teachers: int, folder: Path, batch_size: int) -> Iterator[Any]:
    """A session whose prompts are all routed to the first teacher; the others are held and not asked."""
    method = {
        "prompts": PROMPTS,
        "teachers": {str(i): str(folder / str(i)) for i in range(teachers)},
        "num_inference_steps": 4,
        "visits": 2,
    }
    run = {"adapter": ADAPTER, "method": {"flow_opd": method}, "training": {"train_batch_size": batch_size}}
    with flowhooks.attach(model, run) as session:
        yield session


def step(session: Any) -> None:
    for result in session.steps(None, log=False):
        result.loss.backward()


def teachers(counts: list[int], batch_size: int) -> dict[str, Any]:
    model = model_of(ensure_model())
    weights = sum(p.numel() * p.element_size() for p in model.transformer.parameters())
    found = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(max(counts)):
            with flowhooks.attach(model, {"adapter": ADAPTER, "hooks": []}) as session:
                with torch.no_grad():
                    for p in session.parameters().values():
                        p.add_(0.01 * torch.randn_like(p))
                session.adapter.save(folder / str(i), {})
        (file,) = (folder / "0").glob("*.safetensors")
        size = file.stat().st_size
        for count in counts:
            before = held_bytes()
            with stepping(model, count, folder, batch_size) as session:
                step(session)
                held = held_bytes() - before
                found[count] = {
                    "held": held,
                    "peak": peak_bytes(lambda session=session: step(session)) + held + weights,
                }
    first, last = min(counts), max(counts)
    more = last - first
    return {
        "what": f"bytes of a Flow-OPD step of {batch_size} images with {last} teachers against {first}: the network, "
        "what is held beside it, and the most that a step takes on top",
        "peak_ratio": round(found[last]["peak"] / found[first]["peak"], 4),
        "held_by_each_further_teacher": (found[last]["held"] - found[first]["held"]) // more,
        "file_of_a_teacher": size,
        "network": weights,
        "by_teachers": found,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs=2, default=[1, 4])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(teachers(arguments.counts, arguments.batch_size), indent=2))


if __name__ == "__main__":
    main()

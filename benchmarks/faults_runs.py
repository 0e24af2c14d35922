"""Runs on the digits that faults are tried on, each a program in a process of its own, and whether two ended alike."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults_layer import put
from flowhooks.methods import METHODS
from flowhooks.train.checkpoint import read

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: Method -> its run in ``examples``; one that has none there takes the place of Flow-DPO in that run.
CASES = {"flow_grpo": "flow_grpo/digits_bold.json"}
#: Options of a method in the place of Flow-DPO.
OPTIONS: Mapping[str, dict[str, Any]] = {"kto": {"label": None}}
IMPORTED = (
    "flowhooks.cli",
    "flowhooks.train.loop",
    "benchmarks.faults_runs",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
)
#: Seconds in which a run with a fault must end, from its start.
BOUND = 60.0
STEPS = 6
#: States that a checkpoint holds; of ``progress`` only what no clock tells.
_STATES = ("parameters", "optimization", "session")


def methods() -> tuple[str, ...]:
    """All methods of the registry, those last that need results of others."""
    return tuple(sorted(METHODS, key=lambda name: name == "flow_opd"))


def prepare(folder: Path) -> None:
    """Write the scans and the pipeline of the digits: its autoencoder is trained for a moment, its network not."""
    from flowhooks.digits.model import build
    from flowhooks.digits.pipeline import read_pixels
    from flowhooks.digits.scans import write_data

    write_data(folder / "scans", limit=8)
    torch.set_num_threads(1)
    build(folder / "base", read_pixels(folder / "scans" / "preferred"), steps=2, progress=False)
    # The first process waits for the imports of the one that it is forked off; and the cache is there.
    run(folder / "first", document("flow_dpo", folder), limit=600)
    run(folder / "first", document("sft", folder), limit=600)


def document(name: str, folder: Path, **training: Any) -> dict[str, Any]:
    """A short run of a method, with a checkpoint after every step."""
    file = EXAMPLES / CASES.get(name, f"{name}/digits.json")
    own = file.is_file()
    found = json.loads((file if own else EXAMPLES / "flow_dpo/digits.json").read_text(encoding="utf-8"))
    found.pop("$schema")
    if not own:
        found["method"] = {name: OPTIONS.get(name, {})}
        del found["hooks"]
    found["model"]["pretrained_model_name_or_path"] = str(folder / "base")
    short = {"max_train_steps": STEPS, "train_batch_size": 2, "checkpointing_steps": 1, "log_every_steps": 1}
    found["training"] = {**found["training"], **short, "lr_warmup_steps": 0, "checkpoints_total_limit": 2, **training}
    found |= {"validation": {}, "logging": {"trackers": []}, "cache_dir": str(folder / "cache")}
    if name == "sft":
        # That example trains the whole network, as Self-Flow's does here too.
        found["training"]["trainable"], found["adapter"] = "adapter", {"type": "lora", "rank": 4, "alpha": 4}
        found["validation"] = {"prompts": ["a handwritten two"], "every_steps": 3, "num_inference_steps": 2}
        found["validation"] |= {"height": 32, "width": 32, "guidance_scale": 1.0}
    if found.get("data"):
        found["data"] = _data(folder / "scans", pairs=not own or name == "flow_dpo")
    options = found.get("method", {}).get(name, {})
    if "prompts" in options and name != "flow_opd":
        options["prompts"] = ["a handwritten one", "a handwritten two"]
    if name == "flow_opd":
        for teacher, method in (("legible", "adjoint_matching"), ("bold", "flow_grpo")):
            options["teachers"][teacher] = str(folder / "whole" / method / "out")
    return dict(found)


def _data(scans: Path, *, pairs: bool) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{"id": "preferred", "instance_data_dir": str(scans / "preferred")}]
    kinds = {"rejected": "reference_strict", "mask": "mask"} if pairs else {}
    for side, kind in kinds.items():
        about = {"dataset_type": "conditioning", "source_dataset_id": "preferred", "conditioning_type": kind}
        blocks.append({"id": side, "instance_data_dir": str(scans / side), **about})
    return blocks


@dataclass(frozen=True, kw_only=True)
class End:
    """How one process of a run ended.

    Args:
        code: its exit code, minus the signal that ended it; None: it hung, and was killed.
        told: what it printed.
        seconds: from its start.
    """

    code: int | None
    told: str
    seconds: float


class Started:
    """A run that goes on in processes of its own.

    Args:
        place: a folder; the run's output folder in it is ``out``.
        given: the run.
        fault: see :func:`benchmarks.faults_layer.put`.
        processes: their number.
        resume: go on from the latest checkpoint, where there is one.
    """

    def __init__(
        self,
        place: Path,
        given: Mapping[str, Any],
        *,
        fault: dict[str, Any] | None = None,
        processes: int = 1,
        resume: bool = False,
    ):
        place.mkdir(parents=True, exist_ok=True)
        self.place, self.began = place, time.monotonic()
        file = place / "run.json"
        file.write_text(json.dumps({**given, "output_dir": str(place / "out")}), encoding="utf-8")
        arguments = ["train", str(file), "--no-progress", *(["--resume", "latest"] if resume else [])]
        self._files = [place / f"told-{rank}" for rank in range(processes)]
        environments = _environments(processes)
        self.processes = [
            server().Process(target=_program, args=(arguments, str(told), fault, str(place), environment))
            for told, environment in zip(self._files, environments, strict=True)
        ]
        for process in self.processes:
            process.start()

    def send(self, number: signal.Signals, rank: int = 0) -> bool:
        """Send a signal. Returns whether the process was still there."""
        process = self.processes[rank]
        if process.exitcode is not None or process.pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        return True

    def wait(self, limit: float = BOUND) -> list[End]:
        """Wait for the end of all processes, at most until this long after the start."""
        ends = []
        for process, file in zip(self.processes, self._files, strict=True):
            process.join(max(0.1, self.began + limit - time.monotonic()))
            code, seconds = process.exitcode, time.monotonic() - self.began
            if code is None:
                process.kill()
                process.join()
            ends.append(
                End(code=code, told=file.read_text(errors="replace") if file.is_file() else "", seconds=seconds)
            )
        return ends


def run(place: Path, given: Mapping[str, Any], limit: float = BOUND, **how: Any) -> End:
    """Run on one process to the end."""
    return Started(place, given, **how).wait(limit)[0]


def server() -> ForkServerContext:
    """Processes are forked off one that has imported everything: imports take longer than these runs."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(IMPORTED))
    return found


def _environments(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{}]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [{**shared, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _program(
    arguments: list[str], told: str, fault: dict[str, Any] | None, place: str, environment: dict[str, str]
) -> None:
    from flowhooks.cli import main

    with open(told, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.update(environment)
    # As in a program of its own; what a fork server starts would fork its workers there too.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    put(fault, Path(place))
    sys.exit(main(arguments))


def differences(one: Path, other: Path, steps: int = STEPS, processes: int = 1) -> list[str]:
    """What differs, to the bit, between the results of two runs of so many steps in these folders."""
    folders = [each / "out" / f"checkpoint-{steps}" for each in (one, other)]
    missing = [f"{folder.name} is missing" for folder in folders if not folder.is_dir()]
    if missing:
        return missing
    stems = (*_STATES, *(f"process_{rank}" for rank in range(processes)))
    found = [stem for stem in stems if not _equal(read(folders[0], stem), read(folders[1], stem))]
    lines = [_logged(each / "out" / "metrics.jsonl") for each in (one, other)]
    return [*found, *([] if lines[0] == lines[1] else ["metrics.jsonl"])]


def _logged(file: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in line.items() if not name.endswith("seconds_per_step")} for line in lines]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b or (a != a and b != b))

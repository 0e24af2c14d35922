"""Updates of networks of released sizes at random weights: seconds, GiB, images a second, model FLOP utilisation.

``python -m benchmarks gpu`` takes at most so many minutes, each row its own share of them, and writes its JSON after
every row. `--tiny` goes the same way with small networks on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import memory_plan
from benchmarks.measure import machine
from benchmarks.rows import Row, attempt, write
from benchmarks.updates import updating
from flowhooks.config import resolve_run
from flowhooks.config.run import Run
from flowhooks.memory.plan import Planned, full_network
from flowhooks.pretrained import DTYPES
from flowhooks.probe import FlowModel, probe
from flowhooks.probe.recomputing import gradient_checkpointing
from flowhooks.probe.values import moved
from flowhooks.quiet import quiet_libraries
from tests import families

NETWORKS: Mapping[str, Any] = json.loads((Path(__file__).parent / "networks.json").read_text(encoding="utf-8"))
#: Name of a GPU -> its dense bf16 operations a second, by its maker's data sheet.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
INK = [{"type": "flowhooks.digits.rewards:Ink"}]
METHODS: Mapping[str, Mapping[str, Any]] = {
    "sft": {},
    "flow_dpo": {"norm_type": "mean"},
    "adjoint_matching": {
        "prompts": ["one"],
        "num_inference_steps": 10,
        "truncate": {"last_k": 3},
        "early_visits": 1,
        "rewards": INK,
    },
}
#: The document that the method comes from reports 32 s for this update.
ADJOINT_GOAL = 32.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row.

    Args:
        network: its name in ``networks.json``.
        method: trained.
        edge: pixels of the images.
        model, training: more of these sections of the run.
        seconds: that it may take, its preparation included.
        goal: model FLOP utilisation to reach, or seconds for Adjoint Matching.
    """

    network: str
    method: str
    edge: int = 1024
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 45
    goal: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        more = ", ".join(f"{key} {value}" for key, value in {**self.model, **self.training}.items())
        return {"network": self.network, "method": self.method, "pixels": self.edge, "with": more or "bf16"}


COMPILED = {"compile": "blocks"}
#: What matters most comes first, as the time may run out.
CASES = (
    Case(network="sd35-medium", method="sft", goal=0.35),
    Case(network="sd35-medium", method="flow_dpo", goal=0.35),
    Case(network="flux1", method="sft", goal=0.35),
    Case(network="flux1", method="flow_dpo", goal=0.35),
    Case(network="flux2-klein-4b", method="adjoint_matching", goal=ADJOINT_GOAL),
    Case(network="flux1", method="sft", training=COMPILED, goal=0.5, seconds=90),
    Case(network="flux1", method="flow_dpo", training=COMPILED, goal=0.5, seconds=90),
    Case(network="flux1", method="flow_dpo", model={"quantization": "int8", "gradient_checkpointing": True}),
    Case(network="flux1", method="flow_dpo", model={"quantization": "nf4", "gradient_checkpointing": True}),
    Case(network="flux1", method="flow_dpo", model={"offload": "blocks", "gradient_checkpointing": True}),
    Case(network="qwen-image", method="sft", model={"gradient_checkpointing": True}),
    Case(network="wan-1.3b", method="sft"),
    Case(network="flux2-klein-4b", method="flow_dpo"),
    Case(network="flux1", method="flow_dpo", edge=512),
    Case(
        network="qwen-image", method="flow_dpo", edge=512, model={"quantization": "nf4", "gradient_checkpointing": True}
    ),
)


def run_of(case: Case, folder: Path, arguments: Mapping[str, Any]) -> Run:
    document = {
        "model": {
            "dtype": "bf16",
            "pipeline_arguments": dict(arguments),
            **case.model,
            "pretrained_model_name_or_path": str(folder),
        },
        "adapter": {"type": "lora", "rank": 16},
        "method": {case.method: dict(METHODS[case.method])},
        "training": {"train_batch_size": 1, "lr_warmup_steps": 0, **case.training},
    }
    return resolve_run(document, folder / "run.json", allow_imports=True)


def plan_of(case: Case, folder: Path, *, tiny: bool) -> tuple[Planned, Run]:
    """The run, learnt on a small pipeline, and what builds its network at full size."""
    told = dict(NETWORKS[case.network])
    kind, tokens, scale = (told.pop(name) for name in ("pipeline", "tokens", "scale"))
    arguments = {k: v for k, v in families.PIPELINES[kind].arguments.items() if k not in ("height", "width")}
    if "num_frames" in arguments:
        arguments["num_frames"] = 1
    if set(told) > {"transformer"} and not tiny:
        arguments["max_sequence_length"] = tokens
    edge = families.PIPELINES[kind].arguments.get("height", 16) if tiny else case.edge // scale
    memory_plan.tiny = families.tiny  # type: ignore[assignment]
    memory_plan.write_folder(kind, {} if tiny else told, folder)
    run = run_of(case, folder, arguments)
    pipe = families.tiny(kind)
    if set(told) > {"transformer"} and not tiny:
        return memory_plan.planned(
            run_of(replace(case, method="sft", model={}, training={}), folder, arguments), edge
        ), run
    # The small pipeline itself, whose text encoders and autoencoder are small: only the network counts here.
    model = probe(pipe, arguments=arguments, height=edge, width=edge)
    model.anatomy  # noqa: B018
    size = (edge, edge, model.length)
    plan = Planned(
        run=run,
        model=model,
        network=full_network(folder / model.component, type(model.transformer).__name__),
        condition=model.encode_prompts(["two one"]),
        size=size,
        provides=frozenset({"image", "rejected"}),
        vae=None,
        prompt=None,
        parts={},
    )
    return plan, run


@contextmanager
def at_full_size(plan: Planned, run: Run, device: torch.device) -> Iterator[FlowModel]:
    """The model with its network at full size on a device, quantised, recomputing and offloaded as the run says."""
    component, small = plan.model.component, plan.model.transformer
    dtype = DTYPES[run.model["dtype"]]
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        # Built in its precision at once: in fp32 it would need twice the memory for a moment.
        torch.set_default_dtype(dtype)
        stack.callback(torch.set_default_dtype, before)
        network = plan.network(device, dtype)
        torch.set_default_dtype(before)
        network = quantised(network, run, device)
        plan.model.at(*plan.size)
        for name, part in plan.model.pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != component:
                part.to(device, dtype)
        plan.model.pipe.register_modules(**{component: network})
        stack.callback(lambda: plan.model.pipe.register_modules(**{component: small}))
        model = plan.model.at(*plan.size)
        model.contract = replace(model.contract, constants=moved(model.contract.constants, device, None))
        # A copy of a model holds on to the weight that it found first.
        vars(model).pop("_typical_weight", None)
        offloaded(model, run, device, stack)
        stack.enter_context(gradient_checkpointing(network, run.model["gradient_checkpointing"]))
        yield model


def quantised(network: Any, run: Run, device: torch.device) -> Any:
    if not run.model.get("quantization"):
        return network
    from flowhooks.checks.quantization import quantized
    from flowhooks.quantization.convert import quantize
    from flowhooks.quantization.settings import configuration

    (settings,) = quantized({**run.model, "component": "transformer"}).values()
    return quantize(network, configuration(settings, "diffusers", DTYPES[run.model["dtype"]]), device).to(device)


def offloaded(model: FlowModel, run: Run, device: torch.device, stack: ExitStack) -> None:
    if run.model.get("offload", "none") == "none":
        return
    from flowhooks.config.run import offload_share
    from flowhooks.probe.offloading import BlockOffload

    network = model.transformer.to("cpu")
    every = int(run.model["gradient_checkpointing"])
    offload = BlockOffload(network, device, share=offload_share(run.model), every=every)
    stack.enter_context(offload.open())
    for parameter in network.parameters():
        if parameter not in set(offload.weights):
            parameter.data = parameter.data.to(device)
    for module in network.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def measured(case: Case, device: torch.device, flops: dict[Any, float], *, tiny: bool) -> dict[str, Any]:
    """What a row tells.

    Args:
        flops: of one update, by network, method and size; what a row counts is put there, for the compiled one.
    """
    deadline = time.perf_counter() + case.seconds
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        plan, run = plan_of(case, Path(place) / "pipeline", tiny=tiny)
        predicted = _predicted(plan, run)
        model = stack.enter_context(at_full_size(plan, run, device))
        batch = None if case.method == "adjoint_matching" else plan.batch(model, run, device)
        _, update = stack.enter_context(updating(model, run.document, lambda _: batch))
        update()
        key = case.network, case.method, case.edge
        # The counter cannot follow a gradient that is taken inside a step.
        if not case.training and not case.model and case.method != "adjoint_matching":
            with FlopCounterMode(display=False) as counter:
                update()
            flops[key] = counter.get_total_flops()
        _synchronise(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds: list[float] = []
        while len(seconds) < 2 or (len(seconds) < 10 and time.perf_counter() < deadline):
            start = time.perf_counter()
            update()
            _synchronise(device)
            seconds.append(time.perf_counter() - start)
        best = sorted(seconds)[len(seconds) // 2]
        allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    peak = next((value for name, value in PEAKS.items() if device.type == "cuda" and name in _name(device)), None)
    # What is computed twice does not count, and what a compiled graph computes was counted in the row without it.
    counted = flops.get(key)
    return {
        "seconds": best,
        "images a second": 1 / best,
        "GiB": "" if allocated is None else allocated / 2**30,
        "plan, GiB": "" if predicted is None else predicted / 2**30,
        "plan off": "" if allocated is None or predicted is None else f"{100 * (predicted / allocated - 1):+.1f} %",
        "TFLOP": "" if counted is None else counted / 1e12,
        "MFU": "" if peak is None or counted is None else f"{100 * counted / best / peak:.0f} %",
        "goal": "" if case.goal is None else f"{case.goal:.0f} s" if case.goal > 1 else f"{100 * case.goal:.0f} %",
    }


def _predicted(plan: Planned, run: Run) -> int | None:
    """Bytes that the plan says; None for a run that it does not count."""
    try:
        return plan.needs(run).peak
    except Exception:
        return None


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def measure(arguments: argparse.Namespace) -> int:
    """Measure the rows that the time is enough for, and write each when it is there."""
    warnings.simplefilter("ignore")
    quiet_libraries()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("there is no GPU here; `--tiny` tries the command on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if arguments.tiny or not torch.cuda.is_available() else "cuda")
    end = time.perf_counter() + 60 * arguments.minutes
    rows: list[Row] = []
    flops: dict[Any, float] = {}
    about = {"command": "python -m benchmarks gpu", "machine": machine()}
    for case in CASES:
        if arguments.only is not None and arguments.only not in " ".join(map(str, case.settings.values())):
            continue
        case = replace(case, seconds=0.0) if arguments.tiny else case
        if time.perf_counter() + case.seconds > end:
            rows.append(Row(table="gpu", settings=case.settings, failure="not run: out of time"))
        else:
            rows.append(
                attempt("gpu", case.settings, lambda case=case: measured(case, device, flops, tiny=arguments.tiny))
            )
        print(rows[-1], file=sys.stderr, flush=True)
        write(rows, arguments.output / "gpu.json", about)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0

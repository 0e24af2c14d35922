"""What a step costs, as ratios: to its counted floor, to the loop of public scripts, to other sizes of the same run."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import floor
from benchmarks.__main__ import RESULTS
from benchmarks.by_hand import HAND
from benchmarks.measure import interleaved, machine, ratio
from benchmarks.methods import GOALS, LARGE, OPTIONS, RANK, SMALL, TARGETS, Size, batch_of, documents, probed
from benchmarks.rows import Row, attempt, read, table, write
from benchmarks.updates import updating
from flowhooks.kernel import Batch
from flowhooks.memory.live import Live
from flowhooks.probe import FlowModel
from flowhooks.quiet import quiet_libraries

OVER_FLOOR, BY_HAND, SIZES, MEMORY, COMPILED = "floor", "by_hand", "sizes", "memory", "compiled"
PAGE = RESULTS.with_suffix(".md")
#: Operators that multiply matrices, forward and backward.
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::mkldnn_linear")
ATTENTION = "attention"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How rows are measured.

    Args:
        network: layers and heads.
        edge: pixels of the images; a token is 4 x 4 of them.
        rounds: steps of each contender.
    """

    network: Mapping[str, int]
    edge: int
    rounds: int

    def size(self, batch: int = 1, edge: int | None = None, layers: int | None = None) -> Size:
        network = {**self.network, **({} if layers is None else {"layers": layers})}
        return Size(network=network, edge=edge or self.edge, batch=batch)


@contextmanager
def trained(
    method: str, size: Size, changes: Mapping[str, Any] | None = None, options: Any = None
) -> Iterator[tuple[FlowModel, Batch, Callable[[], int]]]:
    """A method on a model of its own, its batch and an update: always the same one, of those that make most forwards.

    What a step draws may decide how many forwards it makes.

    Args:
        changes: section of the run -> what is different in it; None for none.
        options: of the method, in place of its own.
    """
    model = probed(size)
    batch = batch_of(model, size)
    with documents(size, model) as runs:
        document = dict(runs[method])
        for section, changed in (changes or {}).items():
            document[section] = None if changed is None else {**document.get(section, {}), **changed}
        if options is not None:
            document["method"] = {method: {**document["method"][method], **options(document["method"][method])}}
        with updating(model, document, lambda _: batch, first=False) as (session, update):
            made = {}
            for _ in range(3):
                micro_step = session.micro_step
                made[micro_step] = update()
            chosen = max(made, key=lambda each: (made[each], each))

            def again() -> int:
                session.micro_step = chosen
                return update()

            yield model, batch, again


def bare(size: Size, calls: floor.Calls, rank: int | None = RANK) -> floor.Floor:
    """The floor of these calls, on a network of its own, trained whole where there is no rank."""
    model = probed(size)
    whole = list(model.transformer.requires_grad_(True).parameters()) if rank is None else []
    weights = whole if rank is None else floor.adapt(model.transformer, rank, TARGETS)
    return floor.Floor(model.transformer, calls, torch.optim.AdamW(weights, lr=1e-4), model.pipe.vae.decoder)


def compared(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    return interleaved(contenders, rounds=rounds, warmup=1, clock=time.process_time)


def over_floor(bench: Bench, method: str, size: Size, **more: Any) -> dict[str, Any]:
    """A step over its counted floor."""
    with trained(method, size, **more) as (model, _, update):
        with floor.watched(model.transformer, model.pipe.vae.decoder) as calls:
            update()
        adapter = (more.get("changes") or {}).get("adapter", {})
        least = bare(size, calls, None if adapter is None else adapter.get("rank", RANK))
        seconds = compared({"step": update, "floor": least.step}, bench.rounds)
        shares = spent(update)
    found, goal = ratio(seconds["step"], seconds["floor"]), GOALS[method]
    counts = calls.counts
    return {
        "over its floor": found["median"],
        "quartiles": f"{found['q1']:.3f} to {found['q3']:.3f}",
        "at most": goal,
        "forwards": counts["forwards"],
        "backwards": counts["backwards"],
        "decodes": counts["decodes"],
        "seconds": round(statistics.median(seconds["step"]), 3),
        "bound by": shares,
    }


def spent(update: Callable[[], Any]) -> str:
    """What an update spends its time on, in words."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        update()
    times: dict[str, float] = {}
    for event in recorded.key_averages():
        name = event.key
        kind = "matrix products" if name in PRODUCTS else "attention" if ATTENTION in name else "the rest"
        times[kind] = times.get(kind, 0.0) + event.self_cpu_time_total
    whole = sum(times.values()) or 1.0
    return ", ".join(f"{kind} {100 * times.get(kind, 0) / whole:.0f} %" for kind in ("matrix products", "attention"))


def machinery(update: Callable[[], Any], rounds: int = 5) -> float:
    """The share of an update that Python spends in the code of this package itself, and not in what that calls.

    A profiler makes Python slower, so this is an upper bound. Its clock goes on while another process has the
    processor, so of each function the quickest of several updates counts.
    """
    import cProfile
    import pstats

    clock = min(_timed(update) for _ in range(rounds))
    own: dict[Any, float] = {}
    for _ in range(rounds):
        profiler = cProfile.Profile()
        profiler.runcall(update)
        for function, entry in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
            if "/flowhooks/" in function[0]:
                own[function] = min(entry[2], own.get(function, entry[2]))
    return sum(own.values()) / clock


def _timed(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def by_hand(bench: Bench, method: str, size: Size) -> dict[str, Any]:
    """A step against the loop that public scripts have: for pairs, a forward of its own for each side and role."""
    with trained(method, size) as (_, batch, update):
        loop = HAND[method](size, batch)
        seconds = compared({"step": update, "script": loop}, bench.rounds)
    found = ratio(seconds["step"], seconds["script"])
    return {
        "over the script": found["median"],
        "quartiles": f"{found['q1']:.3f} to {found['q3']:.3f}",
        "forwards of the script": 4 if method == "flow_dpo" else 1,
    }


def over_sft(bench: Bench, method: str, size: Size) -> dict[str, Any]:
    """The most bytes of an update over those of plain LoRA training."""
    most = {}
    for name in ("sft", method):
        with trained(name, size) as (model, _, update):
            live = Live()
            live.own("network", [*model.transformer.parameters(), *model.transformer.buffers()])
            static = live.now
            live.start()
            with live:
                update()
            most[name] = live.peak, live.peak - static
    (plain, moving), (whole, own) = most["sft"], most[method]
    return {
        "over plain LoRA": whole / plain,
        "beside the network": own / moving,
        "MiB": round(whole / 2**20, 1),
    }


def share_of_hooks(bench: Bench, method: str, size: Size) -> dict[str, Any]:
    with trained(method, size) as (_, _, update):
        return {"Python of this package, share of a step": f"{100 * machinery(update):.2f} %"}


def compiled(bench: Bench, method: str, size: Size) -> dict[str, Any]:
    """A step with compiled blocks over the same step without."""
    with (
        trained(method, size) as (_, _, eager),
        trained(method, size, {"training": {"compile": "blocks"}}) as (_, _, update),
    ):
        seconds = compared({"compiled": update, "eager": eager}, bench.rounds)
    found = ratio(seconds["compiled"], seconds["eager"])
    return {"compiled over eager": found["median"], "quartiles": f"{found['q1']:.3f} to {found['q3']:.3f}"}


def _teachers(count: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Options of Flow-OPD with so many teachers, each for a prompt of its own."""

    def options(own: Mapping[str, Any]) -> dict[str, Any]:
        (folder,) = own["teachers"].values()
        names = ["one", "two", "three"][:count]
        prompts = [{"prompt": name, "task": name} for name in names]
        return {"teachers": dict.fromkeys(names, folder), "prompts": prompts}

    return options


def planned(bench: Bench) -> Iterator[tuple[str, dict[str, Any], Callable[[], Mapping[str, Any]]]]:
    """Table, settings and measurement of every row."""
    size = bench.size()
    for method in OPTIONS:
        yield OVER_FLOOR, {"method": method}, lambda method=method: over_floor(bench, method, size)
    for method in HAND:
        yield BY_HAND, {"method": method}, lambda method=method: by_hand(bench, method, size)
    variants: list[tuple[str, str, Size, dict[str, Any]]] = [
        *(("flow_dpo", f"batch {n}", bench.size(n), {}) for n in (1, 2, 4)),
        *(("self_flow", f"batch {n}", bench.size(n), {}) for n in (2, 4)),
        *(("flow_dpo", f"{edge} pixels", bench.size(edge=edge), {}) for edge in (bench.edge // 2, 2 * bench.edge)),
        *(("flow_dpo", f"rank {n}", size, {"changes": {"adapter": {"rank": n, "alpha": n}}}) for n in (4, 64)),
        *(("flow_dpo", f"{layers} blocks", bench.size(layers=layers), {}) for layers in (4, 8)),
        *(
            ("flow_opd", f"batch 2, teachers: {n}", bench.size(2, bench.edge // 2), {"options": _teachers(n)})
            for n in (1, 2)
        ),
        (
            "self_flow",
            "the whole network trained",
            size,
            {"changes": {"adapter": None, "training": {"trainable": "transformer"}}},
        ),
    ]
    for method, what, its, more in variants:
        yield (
            SIZES,
            {"method": method, "with": what},
            lambda method=method, its=its, more=more: over_floor(bench, method, its, **more),
        )
    for method in OPTIONS:
        yield MEMORY, {"method": method}, lambda method=method: over_sft(bench, method, size)
    for method in OPTIONS:
        yield "python", {"method": method, "with": "batch 1"}, lambda method=method: share_of_hooks(bench, method, size)
    for what, its in (("batch 4", bench.size(4)), (f"{2 * bench.edge} pixels", bench.size(edge=2 * bench.edge))):
        yield (
            "python",
            {"method": "self_flow", "with": what},
            lambda its=its: share_of_hooks(bench, "self_flow", its),
        )
    for method in ("sft", "flow_dpo"):
        yield COMPILED, {"method": method}, lambda method=method: compiled(bench, method, size)


def measure(arguments: argparse.Namespace) -> int:
    """Measure the rows, and write the page and its JSON."""
    warnings.simplefilter("ignore")
    quiet_libraries()
    torch.set_num_threads(1)
    bench = (
        Bench(network=SMALL, edge=16, rounds=2)
        if arguments.tiny
        else Bench(network=LARGE, edge=64, rounds=arguments.rounds)
    )
    before = read(arguments.output)[1] if arguments.output.is_file() else []

    def asked(name: str, settings: Mapping[str, Any]) -> bool:
        return arguments.only in (None, name) and arguments.method in (None, settings["method"])

    rows: list[Row] = []
    for name, settings, measured in planned(bench):
        if asked(name, settings):
            rows.append(attempt(name, settings, measured))
            print(rows[-1], file=sys.stderr, flush=True)
    order = [(name, settings) for name, settings, _ in planned(bench)]
    tables = [name for name, _ in order]
    # A row that is no longer planned goes; tables of other commands stay.
    planned_still = [row for row in before if (row.table, row.settings) in order or row.table not in tables]
    kept = [row for row in planned_still if row.table not in tables or not asked(row.table, row.settings)]
    places = {json.dumps(each): i for i, each in enumerate(order)}
    every = sorted([*kept, *rows], key=lambda row: places.get(json.dumps((row.table, row.settings)), len(order)))
    weights = sum(p.numel() for p in probed(bench.size()).transformer.parameters())
    about = {
        "command": "python -m benchmarks performance",
        "machine": machine(),
        "network": {**bench.network, "weights": weights},
        "edge": bench.edge,
        "rounds": bench.rounds,
    }
    write(every, arguments.output, about)
    page = arguments.output.with_suffix(".md")
    page.write_text(text_of(every, about), encoding="utf-8")
    print(f"written: {page}, {arguments.output}")
    return 0


def text_of(rows: list[Row], about: Mapping[str, Any]) -> str:
    """The page."""
    tables = {name: table([row for row in rows if row.table == name]) for name in dict.fromkeys(r.table for r in rows)}
    network, told = about["network"], about["machine"]
    parts = [_INTRODUCTION.format(weights=network["weights"] / 1e6, edge=about["edge"], rounds=about["rounds"], **told)]
    for name, (title, text) in _TEXTS.items():
        parts.append(f"## {title}\n\n{text}\n\n{tables.get(name, 'Not run.')}")
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """# Performance

`python -m benchmarks performance` measures this page and [its JSON](performance.json). Numbers are ratios: the two
sides of each take turns in one process, on one thread, by the time that the process computes, so that whatever else a
machine does touches both. A row that fails says how.

Measured on {processor}, torch {torch}, one thread, with a Stable Diffusion 3 network of {weights:.0f} million weights
in fp32, images of {edge} pixels (a token is 4 x 4), LoRA of rank 16 on the attention, batch 1, {rounds} steps a side.
`python -m benchmarks check` compares what depends on no machine (forwards, backward passes, decodes, waits for the
device, bytes, allocations, and the graphs, recompilations and graph breaks of compiled blocks) with what is committed
in `benchmarks/counts.json`; the tests run it."""

_TEXTS = {
    OVER_FLOOR: (
        "A step over its floor",
        "The floor of a step are its own forwards, backward passes and decodes, and AdamW, on the bare network with a "
        "LoRA of PEFT's: no pipeline, no targets, no losses, no random numbers. Forwards that end early end early "
        "there too. `bound by` is the share of the step's operators.",
    ),
    BY_HAND: (
        "A step over the loop of public scripts",
        "Scripts for pairs run policy and reference on either side, four forwards one after the other, where a step "
        "here has two of twice the rows. With few tokens that saves time; on a GPU that a single image fills, it does "
        "not.",
    ),
    SIZES: (
        "Other sizes",
        "The same ratio to the floor. A whole network that is trained keeps an average of all its weights, which the "
        "floor does not.",
    ),
    MEMORY: (
        "Memory over plain LoRA training",
        "The most bytes that are alive at once in an update, over those of `sft`: with the network's weights, and "
        "beside them. Gradient checkpointing and sums by card are in [memory](memory.md).",
    ),
    "python": (
        "The machinery",
        "Time that Python spends in the code of this package itself, as a profiler counts it, which makes Python "
        "slower: the true share is smaller. Of each function the quickest of five updates counts, since the profiler's "
        "clock goes on while another process has the processor. Self-Flow's times per token are Python around each "
        "operation on the embedding of the time, as many for one image as for a large batch: the share falls as a "
        "step grows.",
    ),
    COMPILED: ("Compiled blocks", "A step with `training.compile` set to `blocks` over the same step without it."),
    "gpu": (
        "On a GPU",
        "`python -m benchmarks gpu` measures networks of the sizes of SD3.5-medium, FLUX.2-klein-4B, FLUX.1, "
        "Qwen-Image and Wan 1.3B at random weights, in at most 8 minutes: seconds, GiB, images a second and model FLOP "
        "utilisation, in bf16, int8 and nf4, eager and compiled.",
    ),
}

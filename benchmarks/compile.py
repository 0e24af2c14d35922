"""What torch.compile makes of the blocks of networks: ``python -m benchmarks.compile [--families sd3 flux] [--methods
sft]`` prints a table of graphs, graph breaks, graphs of later steps, and whether results are eager's to the bit.

Networks are tiny pipelines of the real classes, and the backend runs the graphs with torch's own kernels, so nothing
here is about time.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import flowhooks
from flowhooks.errors import FlowhooksError
from flowhooks.kernel.view import Batch
from flowhooks.probe import FlowModel
from flowhooks.probe.recomputing import gradient_checkpointing

FAMILIES = ("sd3", "flux", "flux2", "qwen-image", "z-image", "lumina2", "wan")
#: Method -> its sections of a run.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "flow_dpo": {"hooks": [{"type": "flow_dpo"}, {"type": "anchor_regularizer", "role": "reference", "weight": 0.1}]},
    "anyflow": {
        "hooks": [
            {"type": "target_replacer", "target_mode": "flow_map", "velocity": "reference"},
            {"type": "interval_times", "r_timestep_sampler": "mixture"},
        ]
    },
    "layersync": {"hooks": [{"type": "feature_alignment", "block_index": 0, "teacher_block_index": 1}]},
    "self_flow": {
        "hooks": [
            {
                "type": "feature_alignment",
                "source": "self_flow",
                "block_index": 0,
                "teacher_block_index": 1,
                "projector_depth": 2,
                "projector_width": 16,
            }
        ],
        "training": {"use_ema": True},
    },
    "flow_dpo, checkpointing": {"hooks": [{"type": "flow_dpo"}], "checkpointing": True},
}
COMPILED = {"compile": "blocks", "compile_backend": "aot_eager"}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was seen in two steps of one size.

    Args:
        graphs: graphs that the first step compiled.
        later: graphs that the second one compiled.
        breaks: places where a block was broken into several graphs.
        equal: whether losses and gradients are eager's to the bit, where both sum gradients in one order.
    """

    graphs: int
    later: int
    breaks: int
    equal: bool


@contextmanager
def summed_by_block(network: nn.Module, blocks: Mapping[str, int]) -> Iterator[None]:
    """Let each block sum the gradients of what it takes before they are added to those of other blocks, as it does when
    it is compiled: the sums are of the same numbers, and in another order their last bit differs.

    Args:
        blocks: name of each list of blocks -> number of blocks.
    """

    def apart(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        return tree_map(_view, (args, kwargs))

    with ExitStack() as stack:
        for name in (f"{part}.{i}" for part, count in blocks.items() for i in range(count)):
            block = network.get_submodule(name)
            stack.callback(block.register_forward_pre_hook(apart, with_kwargs=True).remove)
        yield


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return all(each is None or not each.any() for each in (one, other))
    return torch.equal(one, other)


def _view(value: Any) -> Any:
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


def count(model: FlowModel, run: Mapping[str, Any]) -> Counted:
    """Run two steps of a run eagerly, and the same two with compiled blocks.

    Args:
        run: contents of a run file; under ``checkpointing`` what blocks recompute.

    Raises:
        FlowhooksError: the run cannot be attached to the model, or its blocks cannot be compiled.
    """
    run = dict(run)
    recomputed = run.pop("checkpointing", False)
    batches = [_batch(model, seed) for seed in range(2)]
    with gradient_checkpointing(model.transformer, recomputed):
        with summed_by_block(model.transformer, model.anatomy.blocks):
            expected, _, _ = _steps(model, run, batches)
        found, graphs, breaks = _steps(model, compiled(run), batches)
    equal = all(
        # What has no part in the loss gets no gradient from torch, and one of zero from a compiled block.
        all(_same(mine.get(name), theirs.get(name)) for name in {*mine, *theirs})
        for mine, theirs in zip(expected, found, strict=True)
    )
    return Counted(graphs=graphs[0], later=graphs[1] - graphs[0], breaks=breaks, equal=equal)


def graphs_of(model: FlowModel, run: Mapping[str, Any]) -> dict[str, int]:
    """Run two steps of a run with compiled blocks, and compare nothing.

    Returns:
        Graphs of the first step, recompilations in the second, and graph breaks.
    """
    torch._dynamo.reset()
    _, graphs, breaks = _steps(model, compiled(run), [_batch(model, seed) for seed in range(2)])
    return {"graphs": graphs[0], "recompilations": graphs[1] - graphs[0], "graph breaks": breaks}


def compiled(run: Mapping[str, Any]) -> dict[str, Any]:
    """The run with compiled blocks."""
    return {**run, "training": {**run.get("training", {}), **COMPILED}}


def _steps(
    model: FlowModel, run: Mapping[str, Any], batches: Sequence[Batch]
) -> tuple[list[dict[str, Tensor]], list[int], int]:
    """Return loss and gradients of each step, the graphs compiled until then, and the graph breaks of all."""
    torch.manual_seed(0)
    run = {"adapter": {"type": "lora", "rank": 2, "alpha": 2}, **run}
    results, graphs = [], []
    with flowhooks.attach(model, run) as session:
        parameters = session.parameters()
        with torch.no_grad():
            # Away from the start, where half of an adapter has no gradient.
            for i, parameter in enumerate(parameters.values()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        session.adapter.fresh = False
        for batch in batches:
            loss = session.step(batch).loss
            loss.backward()
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            results.append({"loss": loss.detach(), **gradients})
            for parameter in parameters.values():
                parameter.grad = None
            graphs.append(session.compilation.graphs if session.compilation else 0)
        breaks = sum(session.compilation.breaks.values()) if session.compilation else 0
    return results, graphs, breaks


def _batch(model: FlowModel, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clean, rejected = (torch.randn(2, *model.sample_shape, generator=generator) for _ in range(2))
    return Batch(clean=clean, rejected=rejected, condition=model.encode_prompts(["one", "a photo of two"]))


def main() -> None:
    from flowhooks.printing import say
    from tests.families import learnt

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    say("| pipeline | run | graphs | of the second step | graph breaks | equal |")
    say("|---|---|---|---|---|---|")
    for name in arguments.families:
        for method in arguments.methods:
            torch._dynamo.reset()
            try:
                seen = count(learnt(name), METHODS[method])
                cells = f"{seen.graphs} | {seen.later} | {seen.breaks} | {'yes' if seen.equal else 'no'}"
            except FlowhooksError as error:
                cells = f"{str(error).splitlines()[0]} | | |"
            say(f"| {name} | {method} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

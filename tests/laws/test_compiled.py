"""The laws with compiled blocks: on every kind of role, pass and adapter, with the fewest recipes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

import flowhooks
from benchmarks.compile import summed_by_block
from flowhooks.adapters import load_adapter
from flowhooks.probe.recomputing import gradient_checkpointing
from tests.laws.cases import Loop, batch_for, run_document, shared_model, tiny_model
from tests.laws.test_laws import NoSync, assert_same, first_picture, picture, trace

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("quiet_compiler")]


#: Recipe, adapter, and how blocks recompute. The first has times per token, captured features and the averaged weights;
#: the second pairs, masks, the base, another library's adapter, and recomputation on the host. Every graph costs a
#: second; other sizes, which torch compiles again for, are in tests/probe/test_compiling.py.
ROWS = [
    ("self_flow_ema", "lora", None),
    ("masked_flow_dpo", "lycoris_locon", {"wanted": 2, "offload": True}),
]


@contextmanager
def looping(recipe: str, adapter: str, *, compiled: bool) -> Iterator[Loop]:
    """A loop whose adapter is away from its start."""
    document = run_document(recipe, adapter)
    if compiled:
        document["training"] |= {"compile": "blocks", "compile_backend": "aot_eager"}
    torch.manual_seed(0)
    with flowhooks.attach(shared_model(), document) as session:
        with torch.no_grad():
            for i, p in enumerate(session.parameters().values()):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        session.adapter.fresh = False
        yield Loop(session, shared_model())


def step_of(loop: Loop, batch) -> tuple[Tensor, dict[str, Tensor]]:
    loop.session.micro_step = 0
    loss = loop.session.step(batch).loss
    loss.backward()
    found = {name: p.grad for name, p in loop.session.parameters().items() if p.grad is not None}
    loop.optimizer.zero_grad()
    return loss.detach(), found


@pytest.mark.parametrize(("recipe", "adapter", "recomputing"), ROWS)
def test_the_laws_hold_with_compiled_blocks(recipe, adapter, recomputing, tmp_path):
    pipe = shared_model().pipe
    # A pipeline keeps attributes of its last call.
    picture(pipe)
    before, settings = trace(pipe), torch._dynamo.config.get_config_copy()
    again = gradient_checkpointing(pipe.transformer, **recomputing) if recomputing else nullcontext()
    batches = [batch_for(0), batch_for(1)]
    with again:
        with (
            looping(recipe, adapter, compiled=False) as loop,
            summed_by_block(loop.model.transformer, loop.model.anatomy.blocks),
        ):
            expected = [step_of(loop, batch) for batch in batches]
        with looping(recipe, adapter, compiled=True) as loop:
            compilation, graphs = loop.session.compilation, []
            for batch, (loss, gradients) in zip(batches, expected, strict=True):
                found, theirs = step_of(loop, batch)
                assert torch.equal(found, loss) and theirs.keys() == gradients.keys()
                assert all(torch.equal(theirs[name], gradients[name]) for name in gradients)
                graphs.append(compilation.graphs)
            assert 0 < graphs[0] == graphs[1]
            # What was saved and loaded goes on as if nothing had been.
            loop.advance(1)
            saved = copy.deepcopy(loop.state())
            ends = []
            for _ in range(2):
                loop.load(copy.deepcopy(saved))
                loop.advance(1)
                ends.append(loop.state()["weights"])
            assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
            assert compilation.graphs == graphs[1] and not compilation.breaks
            # A second adapter's images would be compiled like the first's.
            drawn = picture(pipe) if recomputing else None
            assert compilation.graphs - graphs[1] == (2 if recomputing else 0)
            # Last, as torch compiles nothing new once it has met this mode.
            with NoSync():
                loop.session.step(batch_for(1), log=False).loss.backward()
            loop.session.adapter.save(tmp_path, {})
    assert_same(before, trace(pipe))
    assert torch._dynamo.config.get_config_copy() == settings
    assert torch.equal(first_picture(), picture(pipe))
    fresh = tiny_model()
    load_adapter(fresh.transformer, tmp_path)
    assert drawn is None or torch.equal(drawn, picture(fresh.pipe))

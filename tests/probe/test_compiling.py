"""Compiled blocks on small networks: what is compiled when, what is left behind, what is said."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from flowhooks.errors import FlowhooksWarning, ModelError
from flowhooks.probe.compiling import compiled_blocks
from flowhooks.probe.runs import output_of

pytestmark = pytest.mark.usefixtures("quiet_compiler")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.layer(tokens).tanh()


class Network(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


@contextmanager
def compiling(network, *, backend="aot_eager", roles=1):
    with compiled_blocks(network, {"blocks": len(network.blocks)}, backend=backend, roles=lambda: roles) as compilation:
        yield compilation


def tokens(batch: int = 2, length: int = 5) -> Tensor:
    return torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(batch * length), requires_grad=True)


def test_blocks_of_a_class_share_graphs_and_sizes_that_vary_share_one():
    network, graphs = Network(), []
    expected = [network(tokens(*size)) for size in ((2, 5), (2, 5), (3, 5), (4, 5), (3, 6), (5, 7))]
    with compiling(network) as compilation:
        for size, each in zip(((2, 5), (2, 5), (3, 5), (4, 5), (3, 6), (5, 7)), expected, strict=True):
            assert torch.equal(network(tokens(*size)), each)
            graphs.append(compilation.graphs)
        assert graphs == [1, 1, 2, 2, 3, 3] and not compilation.breaks


def test_nothing_is_left_behind():
    network = Network(2)
    own = network.blocks[0].forward
    vars(network.blocks[0])["forward"] = own
    before = [dict(vars(block)) for block in network.blocks], torch._dynamo.config.get_config_copy()
    with compiling(network):
        network(tokens())
        network.train(False)
        assert torch._dynamo.config.get_config_copy() != before[1]
    assert [dict(vars(block)) for block in network.blocks] == [{**each, "training": False} for each in before[0]]
    assert torch._dynamo.config.get_config_copy() == before[1]
    assert not network._forward_pre_hooks
    assert not torch._dynamo.eval_frame._debug_get_cache_entry_list(Block.forward.__code__)


def test_what_somebody_else_compiled_stays_compiled():
    network, other = Network(2), Block()
    other.compile(backend="aot_eager")
    other(tokens())
    with compiling(network) as compilation:
        network(tokens())
    graphs = compilation.graphs
    network(tokens(4))
    assert compilation.graphs == graphs
    with torch.compiler.set_stance("fail_on_recompile"):
        other(tokens())


def test_hooks_on_a_block_run_outside_and_those_on_its_layers_are_looked_at():
    network, seen = Network(2), []
    given = tokens().detach()
    with torch.no_grad(), compiling(network, roles=2) as compilation:
        plain = network(given)
        with network.blocks[0].register_forward_hook(lambda block, args, output: seen.append(float(output.sum()))):
            assert torch.equal(network(given), plain) and compilation.graphs == 1
        first = output_of(network.blocks[0], lambda: network(given))
        assert float(first.sum()) == seen[0]
        with network.blocks[1].layer.register_forward_hook(lambda layer, args, output: 2 * output):
            changed = network(given)
        assert torch.equal(network(given), plain) and not torch.equal(changed, plain)


def test_compiling_again_and_again_is_said_with_its_cause():
    network = Network(1)
    with compiling(network) as compilation:
        with pytest.warns(FlowhooksWarning, match="again and again.*this no longer holds: .*times.*'none'") as told:
            for times in range(2, 7):
                # A number that a graph holds, like one that somebody's layer counts up.
                network.blocks[0].times = str(times)
                network.blocks[0].layer.forward = lambda x, block=network.blocks[0]: x * float(block.times)
                network(tokens())
        assert len(told) == 1 and compilation.graphs > 3


def test_a_network_without_blocks_is_refused():
    refused = pytest.raises(ModelError, match="Linear has no repeated blocks.*`training.compile` to 'none'")
    with refused, compiled_blocks(nn.Linear(1, 1), {}, backend="aot_eager", roles=lambda: 1):
        pass


def test_a_compiler_that_is_missing_is_named_with_the_remedy():
    from torch._inductor import config

    network = Network(1)
    refused = pytest.raises(ModelError, match="could not compile Block with the backend 'inductor'.*`training.compile`")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), compiling(network, backend="inductor"), refused:
        network(tokens())

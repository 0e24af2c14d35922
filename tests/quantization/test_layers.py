"""Which layers are quantised is told by the structure of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowhooks.quantization.layers import inside_blocks, quantizable
from tests.families import tiny

#: Tiny pipeline -> where the blocks of its network are. Those of some have other lists beside: of projections, each for
#: a layer of the text encoder, and of what maps the time.
BLOCKS = {
    "sd3": {"transformer_blocks"},
    "flux": {"transformer_blocks", "single_transformer_blocks"},
    "chroma": {"transformer_blocks", "single_transformer_blocks"},
    "wan": {"blocks"},
    "flux2-klein": {"transformer_blocks", "single_transformer_blocks"},
    "bria-fibo": {"transformer_blocks", "single_transformer_blocks"},
    "mochi": {"transformer_blocks"},
    "krea2": {"transformer_blocks", "text_fusion"},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_in_blocks_is_chosen_and_what_is_outside_stays(name):
    network = tiny(name).transformer
    chosen = quantizable(network)
    assert {n.split(".")[0] for n in chosen} == BLOCKS[name]
    inside = [n for n, m in network.named_modules() if type(m) is nn.Linear and n.split(".")[0] in BLOCKS[name]]
    kept = network._keep_in_fp32_modules or ()
    left = [n for n in inside if n not in chosen and not any(part in kept for part in n.split("."))]
    assert left in ([], ["text_fusion.projector"])


def test_what_has_weights_of_its_own_kind_stays():
    block = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), **{f"l{i}": nn.Linear(8, 8) for i in range(3)}})
    network = nn.ModuleDict({"blocks": nn.ModuleList([block]), "out": nn.Linear(8, 8)})
    # Its last projection is computed with from outside of it.
    assert quantizable(network) == ("blocks.0.l0", "blocks.0.l1", "blocks.0.l2")
    assert "blocks.0.attention.out_proj" in dict(inside_blocks(network))


def test_it_is_known_without_weights():
    network = tiny("flux").transformer
    with torch.device("meta"):
        hollow = type(network).from_config(network.config)
    assert quantizable(hollow) == quantizable(network)

"""What the benchmark of token times compares with, and how it counts memory."""

from __future__ import annotations

import torch

from benchmarks.token_times import Setting, every_token_embedded, peak_bytes, wide_flux
from flowhooks.probe import probe


@torch.no_grad()
def test_every_token_embedded_predicts_what_levels_do():
    """Two ways that share no code."""
    model = probe(wide_flux(128, 1, 1), height=16, width=16, arguments={"max_sequence_length": 8})
    setting = Setting(model, side=4)
    plain, levels, each = (predict() for predict in setting.ways.values())
    torch.testing.assert_close(each, levels, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, levels, atol=1e-3)
    assert torch.equal(setting.plain(), plain), "nothing is left behind"


def test_every_modulation_of_the_picture_is_of_each_token():
    model = probe(wide_flux(128, 1, 1), height=16, width=16, arguments={"max_sequence_length": 8})
    setting = Setting(model, side=4)
    network, shapes = model.transformer, {}
    for name, module in network.named_modules():
        if name.endswith("norm1.linear") or name.endswith("norm.linear") or name.endswith("norm_out.linear"):
            module.register_forward_hook(lambda m, args, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
    with every_token_embedded(network, setting.told, setting.text):
        setting.plain()
    assert shapes == {
        "transformer_blocks.0.norm1.linear": (1, 16, 6 * 128),
        "single_transformer_blocks.0.norm.linear": (1, 24, 3 * 128),
        "norm_out.linear": (1, 16, 2 * 128),
    }


def test_the_peak_is_of_what_is_held_at_once():
    kept = []

    def work():
        kept.append(torch.ones(1000))
        torch.ones(3000)
        torch.ones(2000)

    assert peak_bytes(work) == 4 * 4000
    assert peak_bytes(lambda: kept.clear()) == 0

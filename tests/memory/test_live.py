"""Counting bytes that are alive, and attention of meta tensors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flowhooks.autocast import autocast_dtype, without_autocast
from flowhooks.kernel.random import Draws
from flowhooks.memory.attention import fused_on_meta
from flowhooks.memory.live import STEP, Live
from flowhooks.memory.shadows import Shadows


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_freed_is_no_longer_counted_and_the_peak_is_kept(device):
    kept = torch.empty(256, device=device)
    live = Live(torch.device(device))
    assert live.own("weights", [kept, kept[:10]]) == 1024
    live.start()
    with live:
        live.phase = "first"
        a = kept + 1
        b = a * 2
        live.phase = "second"
        view = b.view(16, 16)
        del a, b
        assert live.now == 2048
        del view
    assert (live.now, live.peak, live.peak_phase) == (1024, 3072, "first")
    assert live.peak_held == {"weights": 1024, STEP: 2048}
    assert live.own("other", [kept]) == 1024 and live.held["weights"] == 0


@pytest.mark.parametrize("shape", [(2, 4, 64, 8), (4, 64, 8)])
def test_attention_holds_no_scores_on_meta(shape):
    found = {}
    for device in ("cpu", "meta"):
        q, k, v = (torch.zeros(shape, device=device, requires_grad=True) for _ in range(3))
        live = Live(torch.device(device))
        with fused_on_meta(), live:
            out = F.scaled_dot_product_attention(q, k, v)
            held = live.now
            out.sum().backward()
        assert out.shape == shape and all(each.grad.shape == shape for each in (q, k, v))
        found[device] = held
    scores = torch.zeros(*shape[:-1], shape[-2]).nbytes
    assert found["meta"] < scores
    if len(shape) == 4:
        assert found["meta"] == found["cpu"]


def test_attention_of_real_tensors_is_the_same_and_is_put_back():
    before = F.scaled_dot_product_attention
    q = torch.randn(1, 2, 8, 4)
    with fused_on_meta():
        inside = F.scaled_dot_product_attention(q, q, q)
    assert torch.equal(inside, before(q, q, q)) and F.scaled_dot_product_attention is before


def test_whole_numbers_that_come_to_meta_can_be_read_there():
    with Shadows():
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).to("meta")
        lengths = mask.sum(1)
        assert lengths.tolist() == [2, 3] and int(lengths.max()) == 3
        assert [int(each) for each in lengths] == [2, 3] and not bool((mask > 0).all())
        mask[0, 2] = 1
        assert mask.cpu().sum() == 6
        with pytest.raises(RuntimeError):
            torch.ones(2).to("meta").sum().item()


def test_noise_without_numbers_has_the_shape():
    drawn = Draws(seed=0, micro_step=0).normal_like(torch.empty(2, 3, device="meta"), "noise")
    assert drawn.is_meta and drawn.shape == (2, 3)


def test_tensors_without_numbers_follow_the_autocast_of_the_cpu():
    real, shape = torch.zeros(2), torch.zeros(2, device="meta")
    assert autocast_dtype(real) is None and autocast_dtype(shape) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_dtype(real) == autocast_dtype(shape) == torch.bfloat16
        for each in (real, shape):
            with without_autocast(each):
                assert autocast_dtype(real) is None and autocast_dtype(shape) is None

"""A flow map is put onto a stock pipeline for good, and taken off without a trace."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from tests.families import learnt
from tests.flow_map.saved import flow_map, sampled


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan"])
def test_it_generates_what_our_own_loop_does_and_leaves_no_trace(name):
    folder, expected = flow_map(name)
    pipe = learnt(name).pipe
    before, scheduler = sampled(pipe, name), pipe.scheduler
    loaded = flowhooks.load_flow_map(pipe, folder)
    assert torch.equal(sampled(pipe, name), expected) and not torch.equal(before, expected)
    loaded.close()
    assert pipe.scheduler is scheduler and torch.equal(sampled(pipe, name), before)

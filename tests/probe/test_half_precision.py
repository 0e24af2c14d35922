"""Networks of which Diffusers keeps a part in fp32."""

from __future__ import annotations

import torch
from diffusers import WanPipeline

from flowhooks.probe import probe
from tests.families import PIPELINES, tiny


def test_a_network_loaded_in_half_precision_is_called_in_it(tmp_path):
    """Loading keeps what `.to(torch.bfloat16)` casts: the first of Wan's parameters, for one."""
    tiny("wan").save_pretrained(tmp_path)
    pipe = WanPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert next(pipe.transformer.parameters()).dtype == torch.float32
    model = probe(pipe, arguments=PIPELINES["wan"].arguments)
    assert model.dtype == torch.bfloat16
    velocity = model.predict(torch.randn(1, *model.sample_shape), torch.tensor([0.5]), model.encode_prompts(["one"]))
    assert velocity.dtype == torch.float32 and velocity.isfinite().all()

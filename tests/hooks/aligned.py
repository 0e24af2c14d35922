"""Alignment on tiny pipelines of four kinds: blocks of a run, sessions, and what blocks return."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import torch

import flowhooks

PIPELINES = ["sd3", "flux", "qwen-image", "wan"]
LAYERSYNC = {"type": "feature_alignment", "block_index": 0, "teacher_block_index": 1}
PROJECTED = {"projector_depth": 2, "projector_width": 16}


def write_dinov2(folder: Path) -> Path:
    """A tiny one: a class token and patches of 14 pixels, 4 x 4 of them by its config, 3 x 3 by its processor's."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(5)
    config = Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    told = {
        "crop_size": {"height": 42, "width": 42},
        "size": {"shortest_edge": 50},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def document(block: dict, **more) -> dict:
    return {"adapter": {"rank": 2}, "hooks": [block], **more}


@contextmanager
def trained(model, block: dict, **more):
    """A session whose every weight has a value that shows."""
    torch.manual_seed(0)
    with flowhooks.attach(model, document(block, **more)) as session:
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        yield session


def aligned(session, batch) -> torch.Tensor:
    """``alignment_loss`` of a step, with its graph."""
    found, gather = {}, session.assembly.penalties
    session.assembly.penalties = lambda step: found.update(gather(step)) or found
    session.step(batch)
    return found["alignment_loss"]


@contextmanager
def outputs_of(model, *names: str):
    """What blocks return, call after call."""
    seen: dict[str, list] = {name: [] for name in names}
    handles = [
        model.transformer.get_submodule(name).register_forward_hook(lambda m, a, out, n=name: seen[n].append(out))
        for name in names
    ]
    yield seen
    for handle in handles:
        handle.remove()

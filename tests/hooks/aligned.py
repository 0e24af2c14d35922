"""Alignment on tiny pipelines of four kinds: blocks of a run, sessions, and what blocks return."""

from __future__ import annotations

from contextlib import contextmanager

import torch

import flowhooks

PIPELINES = ["sd3", "flux", "qwen-image", "wan"]
LAYERSYNC = {"type": "feature_alignment", "block_index": 0, "teacher_block_index": 1}
PROJECTED = {"projector_depth": 2, "projector_width": 16}


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

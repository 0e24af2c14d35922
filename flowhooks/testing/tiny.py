"""Tiny pipelines of the real Diffusers and transformers classes, random weights, seeded; small enough for any test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline on offer.

    Args:
        path: ``module:function`` under :mod:`flowhooks.testing.families` that builds it.
        arguments: what to call it with so that a test is quick: size, text length, number of frames.
    """

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


PIPELINES: Mapping[str, Tiny] = {
    "sd3": Tiny("sd3:sd3", {"height": 16, "width": 16, "max_sequence_length": 8}),
}


def tiny(name: str, *, seed: int = 0) -> Any:
    """A tiny pipeline by name, one of :data:`PIPELINES`; one seed gives one set of weights, and global random state is
    kept.

    Parameters that start at zero (the last layer of most transformers) are made random, so that a wrong prediction
    shows.

    Raises:
        KeyError: no such pipeline.
    """
    if name not in PIPELINES:
        raise KeyError(f"no tiny pipeline {name!r}; there are {sorted(PIPELINES)}")
    module, function = PIPELINES[name].path.split(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = getattr(import_module(f"flowhooks.testing.families.{module}"), function)()
        for part in ("transformer", "transformer_2"):
            _fill_zeros(getattr(pipe, part, None))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fill_zeros(transformer: torch.nn.Module | None) -> None:
    for parameter in transformer.parameters() if transformer is not None else ():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)

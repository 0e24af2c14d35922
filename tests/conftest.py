"""Shared fixtures: tiny pipelines, toy sessions on the analytic flow, and a home of the tests' own."""

from __future__ import annotations

import pytest
import torch

from tests.fake_hub import server, token  # noqa: F401 (fixtures of tests of several folders)
from tests.families import tiny


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's caches."""
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny_sd3():
    """A fresh StableDiffusion3Pipeline: 16-pixel pictures, latents [4, 8, 8]."""
    return tiny("sd3")


@pytest.fixture
def short_prompts():
    """Pipeline arguments that keep the tiny pipeline's text at 16 tokens."""
    return {"max_sequence_length": 8}

"""Shared fixtures: tiny pipelines, toy sessions on the analytic flow, and a home of the tests' own."""

from __future__ import annotations

import gc
import logging
import os
import time
from types import SimpleNamespace

# Libraries read it when they are imported: without it a test of what is not there waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.fake_hub import server, token  # noqa: E402, F401 (fixtures of tests of several folders)
from tests.families import tiny  # noqa: E402


def pytest_collection_finish():
    """What is imported by now stays: nobody looks through it for garbage again, which took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's caches."""
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
def online(monkeypatch):
    """The Hub may be asked, and cannot be reached; its client does not wait between its attempts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patient = {**vars(time), "sleep": lambda _: None}
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(**patient))


@pytest.fixture(autouse=True)
def _seeded():
    # torch.manual_seed also notes for every kind of device where it was called from, which takes a millisecond.
    torch.default_generator.manual_seed(0)


@pytest.fixture
def quiet_compiler():
    """pytest listens to all that is logged, and torch writes its graphs out for it."""
    logger = logging.getLogger("torch.__trace")
    logger.propagate = False
    yield
    logger.propagate = True


@pytest.fixture
def tiny_sd3():
    """A fresh StableDiffusion3Pipeline: 16-pixel pictures, latents [4, 8, 8]."""
    return tiny("sd3")


@pytest.fixture
def short_prompts():
    """Pipeline arguments that keep the tiny pipeline's text at 16 tokens."""
    return {"max_sequence_length": 8}

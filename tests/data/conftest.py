from __future__ import annotations

import pytest

from flowhooks.probe import FlowModel
from tests.families import learnt


@pytest.fixture(scope="session")
def model() -> FlowModel:
    """The tiny SD3 pipeline, probed. Latents of 16-pixel pictures are `[4, 8, 8]`."""
    return learnt("sd3", arguments={"max_sequence_length": 8})

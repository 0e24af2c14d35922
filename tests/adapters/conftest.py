"""A saved adapter, and the transformer that it is on."""

from __future__ import annotations

import pytest

from flowhooks.adapters import build_adapter, load_adapter
from tests.adapters.helpers import section, train_randomly, transformer

#: Linear layers of several shapes, and a convolution.
LAYERS = ["to_q", "ff.net.0.proj", "norm_out.linear", "pos_embed.proj"]


@pytest.fixture
def teacher(tmp_path):
    """Writes one, and says what the transformer computes with it."""

    def write(kind, seed=2, place="teacher", **changes):
        adapter = build_adapter(transformer(), section(kind, **{"target_modules": LAYERS, **changes}))
        train_randomly(adapter, seed)
        folder = tmp_path / place
        adapter.save(folder, {})
        alone = transformer()
        load_adapter(alone, folder)
        return folder, alone

    return write

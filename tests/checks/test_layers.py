"""Headers of weights say that an entry names layers only where it does."""

from __future__ import annotations

import pytest

from flowhooks.adapters.fit import transformer_shapes
from flowhooks.adapters.targets import find_targets
from flowhooks.checks.layers import _sure
from flowhooks.errors import AdapterError
from tests.families import tiny


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "z-image"])
def test_what_headers_settle_is_so(tmp_path, name):
    transformer = tiny(name).transformer
    transformer.save_pretrained(tmp_path / "transformer")
    shapes = transformer_shapes(tmp_path)
    names = [name for name, _ in transformer.named_modules() if name]
    entries = {*names, *(name.rpartition(".")[2] for name in names), "nowhere"}
    settled = 0
    for entry in sorted(entries):
        try:
            find_targets(transformer, [entry])
            right = True
        except AdapterError:
            right = False
        sure = _sure(shapes, [entry])
        settled += sure
        assert right or not sure, entry
    assert settled > len(entries) / 5
    assert _sure(shapes, None) and not _sure({}, None) and not _sure(shapes, [])

from __future__ import annotations

import math

import pytest
import torch

from flowhooks.errors import CheckpointError
from flowhooks.train.codec import read_state, write_state


def test_a_state_comes_back_as_it_was(tmp_path):
    shared = torch.arange(4.0)
    state = {
        "tensors": {
            "double": torch.tensor(1 / 3, dtype=torch.float64),
            "half": torch.randn(3).bfloat16(),
            "bytes": torch.arange(5, dtype=torch.uint8),
            "empty": torch.zeros(0, 2),
            "slice": shared[1:3],
            "same": shared,
        },
        "state": {0: {"step": torch.tensor(2.0)}, 7: {"flag": True}},
        "betas": (0.9, 0.1 + 0.2),
        "$odd": [None, "text", -(2**60), math.inf],
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "nothing": {},
    }
    write_state(tmp_path / "x.safetensors", state)
    back = read_state(tmp_path / "x.safetensors")

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, dict):
            return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        if isinstance(a, (list, tuple)):
            return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and a == b

    assert same(state, back)


def test_what_has_no_plain_form_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"state\.hooks\[1\]\.f is a function"):
        write_state(tmp_path / "x.safetensors", {"hooks": [1, {"f": lambda: 0}]})
    assert not list(tmp_path.iterdir())


def test_a_file_cut_in_half_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "x.safetensors"
    write_state(file, {"a": torch.ones(100)})
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="x.safetensors: cannot be read"):
        read_state(file)

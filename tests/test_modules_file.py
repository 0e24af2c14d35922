"""The file of what hooks trained: what it cannot hold, and what is no such file."""

from __future__ import annotations

import json

import pytest
import torch

import flowhooks
from flowhooks.adapters.files import write_tensors
from flowhooks.errors import ConfigError, ModelError
from flowhooks.hooks import TimeConditioningEnabler
from flowhooks.modules_file import MANIFEST, MODULES, load_modules, read_manifest, save_modules
from flowhooks.testing.matrix import learnt

SECOND = {"type": "time_conditioning"}


@pytest.fixture(scope="module")
def model():
    return learnt("sd3")


def test_a_hook_given_as_an_object_cannot_be_written(model, tmp_path):
    """The file says how to build a hook again, and an object does not."""
    refused = pytest.raises(ModelError, match="'time_conditioning' was attached as an object")
    with flowhooks.attach(model, [TimeConditioningEnabler()]) as session, refused:
        save_modules(tmp_path, session.assembly, model, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("manifest", ["{", "[1]", "3"])
def test_what_is_no_modules_file(manifest, tmp_path):
    write_tensors(tmp_path / MODULES, {"a": torch.zeros(1)}, {MANIFEST: manifest})
    with pytest.raises(ModelError, match="is no modules file of flowhooks"):
        read_manifest(tmp_path / MODULES)


def test_a_later_format_and_a_damaged_file(model, tmp_path):
    write_tensors(tmp_path / MODULES, {"a": torch.zeros(1)}, {MANIFEST: json.dumps({"format": 2})})
    with pytest.raises(ModelError, match="is of format 2, this release reads 1"):
        read_manifest(tmp_path / MODULES)
    (tmp_path / MODULES).write_bytes(b"nothing")
    with flowhooks.attach(model, [SECOND]) as session:
        before = {name: value.clone() for name, value in session.parameters().items()}
        with pytest.raises(ModelError, match=MODULES):
            load_modules(tmp_path / MODULES, session.assembly)
        assert all(torch.equal(value, before[name]) for name, value in session.parameters().items())


def test_a_finished_run_brings_its_own_adapter(model, tmp_path):
    with flowhooks.attach(model, [SECOND]) as session:
        save_modules(tmp_path, session.assembly, model, {})
    with (
        pytest.raises(ConfigError, match="leave `adapter` out"),
        flowhooks.attach(model, tmp_path, adapter={"rank": 2}),
    ):
        pass
    with flowhooks.attach(model, tmp_path) as session:
        assert session.adapter is None

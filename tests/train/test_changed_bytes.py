"""A changed byte of a checkpoint is told by whatever reads its adapter, not by `--resume` alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import flowhooks
from flowhooks.adapters import load_adapter
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.merge_files import merge_files
from flowhooks.errors import AdapterError, ConfigError, FlowhooksError, ModelError
from flowhooks.export.dialects import export_lora
from flowhooks.export.upload import stage
from flowhooks.manifest import damage, verify
from flowhooks.restore import restore_pipeline
from flowhooks.testing import tiny
from flowhooks.train.checkpoint import CheckpointError

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def pipe():
    return tiny("sd3")


@pytest.fixture
def checkpoint(finished, tmp_path):
    return shutil.copytree(finished / "checkpoint-1", tmp_path / "out" / "checkpoint-1")


@pytest.fixture
def damaged(checkpoint):
    """One byte of the last tensor is another; size and header are as they were, and every number is finite."""
    content = bytearray((checkpoint / LORA).read_bytes())
    content[-4] ^= 0x01
    (checkpoint / LORA).write_bytes(content)
    return checkpoint


def attached(pipe, place):
    with flowhooks.attach(pipe, place):
        raise AssertionError("attached")


READERS = {
    "check": lambda pipe, place, out: check_file(place, None),
    "sample": lambda pipe, place, out: restore_pipeline(str(place), None, "fp32").trained().__enter__(),
    "init_from and teachers": lambda pipe, place, out: load_adapter(pipe.transformer, place),
    "attach": lambda pipe, place, out: attached(pipe, place),
    "export": lambda pipe, place, out: export_lora(place, "comfyui", out / "x.safetensors"),
    "merge": lambda pipe, place, out: merge_files([place, place], out / "merged", method="cat"),
    "push": lambda pipe, place, out: stage(place, [LORA], out),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_tells(reader, pipe, damaged, tmp_path):
    with pytest.raises(FlowhooksError, match=f"{LORA} is damaged .*another sha256.*use another checkpoint"):
        READERS[reader](pipe, damaged, tmp_path)


def test_the_file_itself_is_told_too_and_resuming_says_the_same(pipe, damaged):
    with pytest.raises(AdapterError, match="another sha256"):
        load_adapter(pipe.transformer, damaged / LORA)
    with pytest.raises(CheckpointError, match=f"{LORA} is damaged .*another sha256"):
        verify(damaged)


def test_a_damaged_manifest_is_told(pipe, checkpoint):
    (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(AdapterError, match="manifest.json is missing or damaged"):
        load_adapter(pipe.transformer, checkpoint)


def test_a_manifest_of_another_program_says_nothing_of_an_adapter(checkpoint, tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    shutil.copy(checkpoint / LORA, folder)
    for text in ("{", '{"name": "app", "files": {}}'):
        (folder / "manifest.json").write_text(text)
        assert damage(folder / LORA) is None


def test_the_folder_of_a_run_that_trained_an_adapter_alone_is_attached(pipe, finished, checkpoint):
    for place in (finished, str(checkpoint)):
        with flowhooks.attach(pipe, place) as session:
            assert session.assembly.exported() == {}
            stored = {name: tensor.clone() for name, tensor in session.adapter.state_dict().items()}
            assert any(tensor.any() for name, tensor in stored.items() if "lora_B" in name)
            assert session.model.arguments == {"max_sequence_length": 8}
        assert not hasattr(pipe.transformer, "peft_config")
        loaded = load_adapter(pipe.transformer, finished)
        assert all(torch.equal(stored[name], tensor) for name, tensor in loaded.state_dict().items())
        loaded.detach()


def test_without_weights_and_with_a_file_of_weights_attaching_is_an_error(pipe, finished, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ModelError, match="flowhooks_modules.safetensors: missing, and there is no adapter"):
        attached(pipe, tmp_path)
    with pytest.raises(ConfigError, match="is a file of weights, not a run; give the folder"):
        attached(pipe, finished / LORA)

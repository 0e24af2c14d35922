"""Files whose numbers are no plain floats: refused by every reader, since read as floats they are other weights."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flowhooks
from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.frozen import FrozenAdapter
from flowhooks.adapters.load import load_values
from flowhooks.adapters.merge_files import merge_files
from flowhooks.errors import AdapterError, ModelError
from flowhooks.export.dialects import export_lora
from flowhooks.manifest import MODULES
from flowhooks.modules_file import load_modules, save_modules
from tests.adapters.helpers import section, train_randomly, transformer
from tests.families import learnt

TYPES = {"I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "I64": torch.int64, "F8_E4M3": torch.float8_e4m3fn}


@pytest.fixture(scope="module", params=["lora", "lycoris-locon"])
def saved(request, tmp_path_factory):
    adapter = build_adapter(transformer(), section(request.param))
    train_randomly(adapter)
    return request.param, adapter.save(tmp_path_factory.mktemp("lora"), {})


def converted(source, target, dtype, keys=lambda key: True):
    with safe_open(source, "pt") as handle:
        metadata = handle.metadata()
    tensors = {key: tensor.to(dtype) if keys(key) else tensor for key, tensor in load_file(source).items()}
    save_file(tensors, target / source.name, metadata)
    return target / source.name


@pytest.mark.parametrize("name", TYPES)
def test_every_reader_refuses_them(saved, name, tmp_path):
    kind, source = saved
    file = converted(source, tmp_path, TYPES[name])
    readers = {
        "check, init_from, teachers and sample, before weights load": lambda: check_file(file, None),
        "sample": lambda: load_adapter(transformer(), file),
        "init_from": lambda: load_values(build_adapter(transformer(), section(kind)), read_adapter(file)),
        "teachers": lambda: FrozenAdapter(transformer(), file),
        "merge": lambda: merge_files([file], tmp_path / "merged", method="cat"),
        "export": lambda: export_lora(file, "diffusers", tmp_path / "exported"),
    }
    for reader in readers.values():
        with pytest.raises(AdapterError, match=f"{re.escape(str(file))}: .* is stored as {name}; expected F64, F32"):
            reader()
    assert not (tmp_path / "merged").exists() and not (tmp_path / "exported").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_width_are_read(saved, dtype, tmp_path):
    _, source = saved
    file = converted(source, tmp_path, dtype)
    check_file(file, None)
    load_adapter(transformer(), file).detach()


def test_a_whole_number_as_alpha_is_one(tmp_path):
    adapter = build_adapter(transformer(), section("lycoris-locon"))
    train_randomly(adapter)
    source = adapter.save(tmp_path / "lora", {})
    assert any(key.endswith(".alpha") for key in load_file(source))
    file = converted(source, tmp_path, torch.int64, lambda key: key.endswith(".alpha"))
    check_file(file, None)
    assert load_adapter(transformer(), file).config["alpha"] == 8


def test_modules_of_hooks_too(tmp_path):
    model = learnt("sd3")
    with flowhooks.attach(model, [{"type": "time_conditioning"}]) as session:
        save_modules(tmp_path, session.assembly, model, {})
        file = tmp_path / MODULES
        (tmp_path / "other").mkdir()
        with pytest.raises(ModelError, match=f"{json.dumps(MODULES)[1:-1]}: .* is stored as I8"):
            load_modules(converted(file, tmp_path / "other", torch.int8), session.assembly)

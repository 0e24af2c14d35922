"""Every file that does not fit is refused with the reason, and the model stays as it was."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import adapter_file, build_adapter, load_adapter
from flowhooks.adapters.names import CONFIG_KEY, LORA_FILE, LYCORIS_FILE, PEFT_CONFIG_FILE
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, appearance, predict, section, train_randomly, transformer

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def saved(kind, tmp_path):
    adapter = build_adapter(transformer(), section(kind))
    train_randomly(adapter)
    return adapter.save(tmp_path / "lora", {})


def rewrite(file, change):
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata)


def refused(path, message):
    model = transformer()
    before, bare = appearance(model), predict(model)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(model, path)
    assert appearance(model) == before
    assert torch.equal(predict(model), bare)
    return str(caught.value)


def test_a_missing_tensor(saved):
    removed = list(load_file(saved))[3]
    rewrite(saved, lambda tensors: tensors.pop(removed))
    refused(saved, "missing|cannot build")


def test_a_missing_layer(saved, kind):
    layer = "transformer_blocks.0.attn.to_q"
    name = layer.replace(".", "_") if kind.startswith("lycoris") else layer

    def remove(tensors):
        gone = [key for key in tensors if f"{name}." in key]
        assert gone
        for key in gone:
            del tensors[key]

    rewrite(saved, remove)
    assert layer in refused(saved, "no weights for")


def test_an_extra_tensor(saved):
    first = next(iter(load_file(saved)))
    rewrite(saved, lambda tensors: tensors.update({first.rsplit(".", 1)[0] + ".surplus": torch.zeros(1)}))
    assert "surplus" in refused(saved, "no place|no layer")


def test_a_wrong_shape(saved):
    def widen(tensors):
        key = next(key for key in tensors if tensors[key].ndim == 2)
        tensors[key] = torch.zeros(tensors[key].shape[0] + 1, tensors[key].shape[1])

    rewrite(saved, widen)
    refused(saved, "wrong shapes|cannot build")


def test_another_model(saved):
    rewrite(
        saved,
        lambda tensors: [tensors.update({key.replace("blocks", "layers"): tensors.pop(key)}) for key in list(tensors)],
    )
    assert "transformer" in refused(saved, "made for another model")


def test_nan(saved):
    def spoil(tensors):
        key = next(key for key in tensors if tensors[key].ndim == 2)
        tensors[key][0, 0] = float("nan")

    rewrite(saved, spoil)
    refused(saved, "NaN")


@pytest.mark.parametrize("size", [0, 5, 200, -7])
def test_a_truncated_file(saved, size):
    content = saved.read_bytes()
    saved.write_bytes(content[:size])
    assert str(saved) in refused(saved, "damaged or was cut short")
    assert saved.read_bytes() == content[:size]


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_pickles_are_refused_unopened(saved, suffix):
    pickled = saved.with_suffix(suffix)
    saved.rename(pickled)
    refused(pickled, "refused")
    refused(pickled.parent, "holds none of")


def test_other_paths(saved, tmp_path):
    refused(tmp_path / "nowhere", "no such file")
    refused(tmp_path, "holds none of")
    note = tmp_path / "note.txt"
    note.write_text("hello")
    refused(note, "expected a .safetensors")
    for name in (LORA_FILE, LYCORIS_FILE):
        (saved.parent / name).write_bytes(saved.read_bytes())
    refused(saved.parent, "Give the path of the one")


def test_unknown_keys(saved):
    rewrite(saved, lambda tensors: [tensors.update({f"x{key}": tensors.pop(key)}) for key in list(tensors)])
    refused(saved, "no known format")


def test_a_text_encoder_beside_it(saved):
    rewrite(saved, lambda tensors: tensors.update({"text_encoder.q_proj.lora_A.weight": torch.zeros(1, 1)}))
    refused(saved, "Only adapters of the transformer")


def test_a_full_disk(saved, kind, monkeypatch):
    content = saved.read_bytes()
    adapter = load_adapter(transformer(), saved)
    train_randomly(adapter, seed=8)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(adapter_file, "save_file", full)
    with pytest.raises(AdapterError, match="No space left"):
        adapter.save(saved.parent, {})
    assert saved.read_bytes() == content
    assert not [entry for entry in saved.parent.iterdir() if entry.name.startswith(".")]


def test_load_state_dict_is_strict(saved):
    adapter = load_adapter(transformer(), saved)
    state = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    first = next(key for key in state if state[key].ndim == 2)
    with pytest.raises(AdapterError, match=f"missing keys: `{first}`"):
        adapter.load_state_dict({key: tensor for key, tensor in state.items() if key != first})
    with pytest.raises(AdapterError, match="no place for: `other`"):
        adapter.load_state_dict({**state, "other": state[first]})
    with pytest.raises(AdapterError, match="wrong shapes"):
        adapter.load_state_dict({**state, first: torch.zeros(1, 7)})
    assert all(torch.equal(adapter.state_dict()[key], state[key]) for key in state)


def test_a_damaged_configuration(saved, kind):
    if kind in ("loha", "lokr"):
        document = saved.with_name(PEFT_CONFIG_FILE)
        content = json.loads(document.read_text())
        document.write_text("{")
        refused(saved, "not valid JSON")
        document.write_text(json.dumps({**content, "peft_type": "VERA"}))
        refused(saved, "VERA")
        document.unlink()
        refused(saved, "missing; PEFT needs it")
        return
    with safe_open(saved, "pt") as handle:
        metadata = handle.metadata()
    key = "lora_adapter_metadata" if kind == "lora" else CONFIG_KEY
    for text, message in (("{", "not valid JSON"), ("[]", "expected a JSON object")):
        save_file(load_file(saved), saved, {**metadata, key: text})
        refused(saved, message)

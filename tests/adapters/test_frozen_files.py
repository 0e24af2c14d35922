"""What files a frozen adapter takes: what it tells of them, what it refuses, and where it looks for them."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import FrozenAdapter, build_adapter
from flowhooks.adapters.names import LORA_FILE, PEFT_CONFIG_FILE
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, appearance, predict, section, transformer

per_kind = pytest.mark.parametrize("kind", KINDS)


@per_kind
def test_what_is_told_of_it(kind, teacher):
    folder, _ = teacher(kind)
    frozen = FrozenAdapter(transformer(), folder)
    told = frozen.describe()
    content = frozen.file.read_bytes()
    if frozen.file.with_name(PEFT_CONFIG_FILE).is_file():
        content += frozen.file.with_name(PEFT_CONFIG_FILE).read_bytes()
    assert frozen.digest == told["digest"] == hashlib.sha256(content).hexdigest()
    assert (frozen.name, told["rank"], told["layers"], told["idle_layers"]) == ("teacher", 2, len(frozen.targets), 0)
    assert told["kind"] == (f"lycoris ({KINDS[kind]['algo']})" if kind.startswith("lycoris") else kind)
    assert FrozenAdapter(transformer(), folder, name="ocr").name == "ocr"
    elsewhere = shutil.copytree(folder, folder.with_name("elsewhere"))
    assert FrozenAdapter(transformer(), elsewhere).digest == frozen.digest
    train_more = load_file(frozen.file)
    key = next(key for key in train_more if train_more[key].ndim > 1)
    train_more[key] += 1e-3
    with safe_open(frozen.file, "pt") as handle:
        save_file(train_more, elsewhere / frozen.file.name, handle.metadata())
    assert FrozenAdapter(transformer(), elsewhere).digest != frozen.digest


@per_kind
@pytest.mark.parametrize("student", [None, "lora", "lycoris-locon"])
def test_what_does_not_fit_is_refused(kind, student, teacher):
    folder, _ = teacher(kind)
    model = transformer()
    trained = build_adapter(model, section(student)) if student else None
    looks = appearance(model)
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    lycoris = kind.startswith("lycoris")
    layer = "transformer_blocks.0.attn.to_q"
    gone = [key for key in tensors if (layer.replace(".", "_") if lycoris else layer) + "." in key]
    first = next(key for key in tensors if tensors[key].ndim == 2)
    bad = {
        "no weights for": {key: tensor for key, tensor in tensors.items() if key not in gone},
        "missing|cannot build": {key: tensor for key, tensor in tensors.items() if key != first},
        "no place|no layer": {**tensors, f"{first.rsplit('.', 1)[0]}.surplus": torch.zeros(1)},
        "wrong shapes|cannot build": {**tensors, first: torch.zeros(99, tensors[first].shape[1])},
        "made for another model": {key.replace("blocks", "layers"): tensor for key, tensor in tensors.items()},
    }
    for message, changed in bad.items():
        save_file(changed, file, metadata)
        with pytest.raises(AdapterError, match=message):
            FrozenAdapter(model, folder)
        assert appearance(model) == looks
    if trained is not None:
        trained.detach()


@per_kind
def test_one_that_changes_nothing_is_refused(kind, tmp_path):
    fresh = build_adapter(transformer(), section(kind))
    fresh.save(tmp_path, {})
    with pytest.raises(AdapterError, match="changes nothing"):
        FrozenAdapter(transformer(), tmp_path)
    with torch.no_grad():
        for parameter in fresh.parameters()[: len(fresh.parameters()) // 2]:
            parameter.fill_(0.5)
    fresh.save(tmp_path, {})
    if kind == "lora":
        assert 0 < FrozenAdapter(transformer(), tmp_path).describe()["idle_layers"] < len(fresh.targets)


def test_a_lora_scaled_by_zero_changes_nothing(teacher):
    folder, _ = teacher("lora", alpha=0.0)
    with pytest.raises(AdapterError, match="changes nothing"):
        FrozenAdapter(transformer(), folder)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "teacher.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="refused"):
        FrozenAdapter(transformer(), tmp_path / "teacher.bin")


def cached(monkeypatch, root, repo, folder):
    """A Hub cache that holds one repository."""
    store = root / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, store / "snapshots" / "abc")
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_a_hub_id_offline(kind, teacher, tmp_path, monkeypatch):
    folder, alone = teacher(kind)
    cached(monkeypatch, tmp_path / "hub", "someone/teacher", folder)
    (file,) = folder.glob("*.safetensors")
    model = transformer()
    for source in ("someone/teacher", f"someone/teacher/{file.name}"):
        frozen = FrozenAdapter(model, source)
        assert frozen.source == source
        with frozen.alone():
            assert torch.equal(predict(model), predict(alone))
    with pytest.raises(AdapterError, match=r"someone/teacher/other.safetensors.*holds none of other.safetensors"):
        FrozenAdapter(model, "someone/teacher/other.safetensors")
    with pytest.raises(AdapterError, match="'someone/teacher' holds none of .* in 'sub'"):
        FrozenAdapter(model, "someone/teacher/sub")
    with pytest.raises(AdapterError, match="someone/else: is not on this disk nor in the Hub's cache"):
        FrozenAdapter(model, "someone/else")
    with pytest.raises(AdapterError, match="refused"):
        FrozenAdapter(model, "someone/teacher/weights.bin")


def test_what_is_on_the_disk_comes_before_the_hub(teacher, tmp_path, monkeypatch):
    teacher("lora", place="someone/teacher")
    monkeypatch.chdir(tmp_path)
    assert FrozenAdapter(transformer(), "someone/teacher").name == "teacher"
    with pytest.raises(AdapterError, match="no such file"):
        FrozenAdapter(transformer(), f"someone/{LORA_FILE}")


def test_a_path_that_is_missing_from_a_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in ("runs/ink", "runs/ink/checkpoint-8"):
        with pytest.raises(AdapterError, match=f"{source}: no such file or folder, though 'runs' is a folder here"):
            FrozenAdapter(transformer(), source)

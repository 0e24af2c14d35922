"""The file of what hooks trained: what it cannot hold, and what is no such file."""

from __future__ import annotations

import json

import pytest
import torch

import flowhooks
from flowhooks.adapters.adapter_file import read_tensors, write_tensors
from flowhooks.errors import ConfigError, ModelError
from flowhooks.hooks import TimeConditioningEnabler
from flowhooks.hooks.weight_average.hook import averaged
from flowhooks.manifest import MODULES, RUN
from flowhooks.modules_file import MANIFEST, load_modules, read_manifest, save_modules
from flowhooks.restore import restore_pipeline
from tests.export.wan_runs import BESIDE
from tests.families import learnt

SECOND = {"type": "time_conditioning"}
LORA = {"type": "lora", "rank": 2, "alpha": 2}


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
    with pytest.raises(ModelError, match="has format 2, this release reads 1"):
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


@pytest.fixture
def folder(model, tmp_path):
    """A finished run of a LoRA and a second time, neither as it began."""
    with flowhooks.attach(model, {"adapter": LORA, "hooks": [SECOND]}) as session, torch.no_grad():
        for parameter in session.parameters().values():
            parameter.add_(0.1)
        session.adapter.save(tmp_path, {})
        save_modules(tmp_path, session.assembly, model, {})
        trained = {name: value.detach().clone() for name, value in session.parameters().items()}
    return tmp_path, trained


def started(model, start, hooks, **more) -> dict:
    """What a run trains that starts from there; its average too, if it keeps one."""
    run = {"adapter": {**LORA, "init_from": str(start)}, "hooks": hooks, **more}
    with flowhooks.attach(model, run, allow_imports=True) as session, averaged(session):
        return {name: value.detach().clone() for name, value in session.parameters().items()}


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_run_that_starts_from_a_finished_one_starts_from_its_modules_too(model, folder, use_ema):
    """A LoRA learnt beside a second time is no flow map without it."""
    place, trained = folder
    found = started(model, place, [SECOND], training={"use_ema": use_ema})
    assert found.keys() == trained.keys() and all(torch.equal(found[name], value) for name, value in trained.items())


def test_a_run_that_starts_from_an_adapters_file_starts_from_that_alone(model, folder):
    place, trained = folder
    found = started(model, place / "pytorch_lora_weights.safetensors", [SECOND])
    equal = {name: torch.equal(value, trained[name]) for name, value in found.items()}
    assert equal == {name: not name.startswith("time_conditioning.") for name in trained}


def test_modules_that_the_new_run_has_no_place_for(model, folder):
    place, _ = folder
    with pytest.raises(ModelError, match="no place for.*set `adapter.init_from` to the adapter's file"):
        started(model, place, [])
    assert not hasattr(model.transformer, "peft_config")


def test_a_hook_that_the_finished_run_had_not_begins_afresh(model, folder):
    place, trained = folder
    projected = {"type": "feature_alignment", "block_index": 0, "teacher_block_index": 1, "projector_depth": 1}
    found = started(model, place, [SECOND, projected, BESIDE])
    assert all(torch.equal(found[name], value) for name, value in trained.items())
    assert any("projector" in name for name in found) and any("Beside" in name for name in found)


def rewritten(folder, change):
    """The folder's modules file with another manifest, as anybody can write it."""
    file = folder / MODULES
    tensors, header = read_tensors(file)
    manifest = json.loads(header[MANIFEST])
    change(manifest)
    write_tensors(file, tensors, {**header, MANIFEST: json.dumps(manifest)})
    (folder / RUN).write_text(json.dumps({"model": {"pretrained_model_name_or_path": "no/such-model"}}))


FOREIGN = {"type": "subprocess:Popen", "args": ["touch", "pwned"]}
DRAWN = {"type": "on_policy_rollout", "prompts": "/etc/hostname"}
JUDGED = {"type": "flow_grpo", "rewards": [{"type": "subprocess:Popen", "args": ["touch", "pwned"]}]}


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (FOREIGN, r"\$\.hooks\[1\]\.type: 'subprocess:Popen' is code"),
        (JUDGED, r"\$\.hooks\[1\]\.rewards\[0\]\.type: 'subprocess:Popen' is code"),
        ({"type": "time_conditioning", "gate": 1}, r"\$\.hooks\[1\]\.gate: unknown key"),
        (
            {"type": "on_policy_rollout", "prompts": "/etc/hostname"},
            r"\$\.hooks\[1\]: 'on_policy_rollout' trains nothing of its own",
        ),
        ({"type": "nothing_of_ours"}, r"\$\.hooks\[1\]\.type: .* is not one of"),
        ("flow_dpo", r"\$\.hooks\[1\]: expected an object"),
    ],
)
def test_a_folder_of_a_stranger_runs_nothing(model, folder, block, sentence, monkeypatch):
    """Attached or sampled: told by its file and place, before anything is built or fetched."""
    place, _ = folder
    monkeypatch.chdir(place)
    rewritten(place, lambda manifest: manifest["hooks"].append(block))
    built: list = []
    monkeypatch.setattr(TimeConditioningEnabler, "attached", lambda *_: built.append(1))
    with pytest.raises(ConfigError, match=f"{MODULES}: {sentence}"), flowhooks.attach(model, place):
        pass
    with pytest.raises(ConfigError, match=f"{MODULES}: {sentence}"):
        restore_pipeline(str(place), None, "fp32")
    assert not built and not (place / "pwned").exists()


def test_with_leave_it_still_has_to_be_a_hook(model, folder, monkeypatch):
    place, _ = folder
    monkeypatch.chdir(place)
    rewritten(place, lambda manifest: manifest["hooks"].append(FOREIGN))
    with (
        pytest.raises(ConfigError, match="is no subclass of flowhooks.Hook, but the class subprocess.Popen"),
        flowhooks.attach(model, place, allow_imports=True),
    ):
        pass
    assert not (place / "pwned").exists()


def test_a_finished_run_of_ones_own_hook_is_attached_with_leave(model, tmp_path):
    with flowhooks.attach(model, {"hooks": [SECOND, BESIDE]}, allow_imports=True) as session:
        save_modules(tmp_path, session.assembly, model, {})
    with pytest.raises(ConfigError, match=f"'{BESIDE['type']}' is code"), flowhooks.attach(model, tmp_path):
        pass
    with flowhooks.attach(model, tmp_path, allow_imports=True) as session:
        assert BESIDE["type"] in session.assembly.blocks


@pytest.mark.parametrize("key", ["network", "component", "pipeline_arguments", "size", "hooks"])
def test_a_manifest_that_lacks_a_part(folder, key):
    place, _ = folder
    rewritten(place, lambda manifest: manifest.update({key: 3}))
    with pytest.raises(ModelError, match=f"is no modules file of flowhooks .`{key}`"):
        read_manifest(place / MODULES)

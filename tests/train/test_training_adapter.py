"""A run with a training adapter: what it writes, how it resumes, and what stops it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flowhooks.adapters import build_adapter
from flowhooks.adapters.names import LORA_FILE
from flowhooks.errors import CheckpointError
from flowhooks.manifest import read_manifest
from flowhooks.train import train
from flowhooks.train.identity import require_same
from tests.adapters.helpers import section, train_randomly
from tests.families import tiny
from tests.train.runs import weights

pytestmark = pytest.mark.slow


def write_adapter(folder, seed: int):
    """An adapter for the tiny model, off its base."""
    adapter = build_adapter(tiny("sd3").transformer, section("lora"))
    train_randomly(adapter, seed, std=0.1)
    return adapter.save(folder, {})


@pytest.fixture
def held(tmp_path):
    return write_adapter(tmp_path / "held", 1)


def test_resuming_is_the_run_or_stops_and_its_file_knows_nothing_of_the_adapter(
    new_run, finished, held, tmp_path, monkeypatch, capsys
):
    training = {"checkpointing_steps": 1, "checkpoints_total_limit": None, "max_train_steps": 2}
    digest = hashlib.sha256(held.read_bytes()).hexdigest()
    asked = {"training_adapter": {"path": str(held), "strength": 0.5}}
    whole = train(new_run(training=training, adapter=asked), progress=False).output_dir
    said = "training adapter: lora 'held' in 18 layers, strength 0.5, "
    assert said in capsys.readouterr().err
    # Where the file is does not matter.
    asked["training_adapter"]["path"] = str(held.rename(tmp_path / "elsewhere.safetensors"))
    again = new_run("again", training=training, adapter=asked)
    resumed = train(again, resume=str(whole / "checkpoint-1"), progress=False).output_dir

    found, theirs, without = (
        weights(folder) for folder in (whole / "checkpoint-2", resumed / "checkpoint-2", finished / "checkpoint-1")
    )
    assert found.keys() == theirs.keys() == without.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in found.items())
    assert any(not torch.equal(value, without[name]) for name, value in weights(whole / "checkpoint-1").items())
    identities = [read_manifest(folder / "checkpoint-1").identity["adapter"] for folder in (whole, finished)]
    assert identities[0].pop("training_adapter") == {"sha256": digest, "strength": 0.5}
    assert identities[0] == identities[1]
    assert hashlib.sha256((tmp_path / "elsewhere.safetensors").read_bytes()).hexdigest() == digest

    headers = []
    for folder in (whole, finished):
        with safe_open(folder / LORA_FILE, "pt") as file:
            header = dict(file.metadata())
        headers.append(({**json.loads(header.pop("flowhooks.run")), "training": None, "cache_dir": None}, header))
    assert load_file(whole / LORA_FILE).keys() == load_file(finished / LORA_FILE).keys()
    assert headers[0] == headers[1]
    said = f"The training adapter `{held.name}` was on in the loss, at strength 0.5, and off in every image"
    cards = [(folder / "README.md").read_text(encoding="utf-8") for folder in (whole, finished)]
    assert [said in card for card in cards] == [True, False] and str(tmp_path) not in cards[0]

    # Before weights load.
    monkeypatch.setattr("flowhooks.train.setup.load_pipeline", None)
    told = asked["training_adapter"]
    changes = {
        "`adapter.training_adapter.strength` is 2.0, the checkpoint has 0.5": {**told, "strength": 2.0},
        "`adapter.training_adapter.strength` is nothing": None,
        "is not the file that the checkpoint was trained with": {**told, "path": str(write_adapter(tmp_path, 2))},
    }
    for message, other in changes.items():
        changed = new_run("other", training=training, adapter={"training_adapter": other})
        with pytest.raises(CheckpointError, match=message):
            train(changed, resume=str(whole / "checkpoint-1"), progress=False)


def test_a_file_that_check_may_not_fetch_is_compared_when_training_starts():
    known, other, unknown = (
        {"adapter": {"rank": 2, "training_adapter": {"sha256": digest, "strength": 1.0}}} for digest in ("a", "b", None)
    )
    require_same(known, unknown, "checkpoint-1")
    with pytest.raises(CheckpointError, match="put that file back"):
        require_same(known, other, "checkpoint-1")

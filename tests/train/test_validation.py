from __future__ import annotations

import shutil

import pytest
import torch

from flowhooks.config import resolve_run
from flowhooks.data import audit, holdout
from flowhooks.errors import ConfigError
from flowhooks.kernel import Hook
from flowhooks.train import train
from flowhooks.train.setup import prepared
from tests.train.runs import FLOW_DPO, history, weights

LOOK = {"prompts": ["a photo of one"], "num_inference_steps": 1, "height": 16, "width": 16, "every_steps": 1}
seen: list[tuple[bool, tuple[str, ...]]] = []


class Witness(Hook):
    """Writes down which files a step trained on, or was measured on."""

    type = "witness"

    def penalty(self, step):
        seen.append((step.training, step.batch.files))
        return {}


def test_looking_changes_nothing_about_the_run(new_run):
    training = {"use_ema": True, "max_train_steps": 3}
    adapter = {"dropout": 0.3}
    plain = train(new_run("plain", training=training, adapter=adapter), progress=False)
    looked = train(new_run("looked", training=training, adapter=adapter, validation=LOOK), progress=False)
    a, b = (weights(result.output_dir / "checkpoint-3") for result in (plain, looked))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(list((looked.output_dir / "validation").iterdir())) == 4


def test_held_out_samples_are_measured_and_never_trained_on(new_run):
    seen.clear()
    hooks = [*FLOW_DPO, {"type": f"{__name__}:Witness"}]
    validation = {"holdout": 3, "every_steps": 2}
    result = train(new_run(hooks=hooks, validation=validation, training={"max_train_steps": 6}), progress=False)
    trained = {name for training, files in seen if training for name in files}
    measured = {name for training, files in seen if not training for name in files}
    assert len(trained) == 3 and len(measured) == 3 and not trained & measured
    lines = [line for line in history(result.output_dir) if "val/loss" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert 0 <= lines[-1]["val/flow_dpo_implicit_accuracy"] <= 1


def test_the_noise_of_the_held_out_metrics_is_fixed(new_run):
    run = new_run(validation={"holdout": 3}, adapter={"dropout": 0.5})
    with prepared(run, None, False) as job:
        before = {name: p.clone() for name, p in job.session.parameters().items()}
        first, second = job.validation.validate(0), job.validation.validate(0)
        assert first["val/loss"] == second["val/loss"] and first["val/flow_dpo_margin"] == 0
        assert job.session.micro_step == 0 and job.session.model.transformer.training
        assert all(torch.equal(p, before[name]) for name, p in job.session.parameters().items())


def test_the_split_does_not_depend_on_the_order_of_files_or_on_repeats(data, tmp_path):
    def keys(blocks_repeats):
        blocks = [{"id": "win", "instance_data_dir": str(data.parent / "win"), "repeats": blocks_repeats}]
        run = resolve_run({"data": blocks, "hooks": []}, tmp_path / "run.json")
        records = audit(run.data).records
        return records, *holdout.split(records, 2, 7, "run.json")

    records, kept, held = keys(0)
    more, kept_more, held_more = keys(2)
    names = {records[i].key for i in held}
    assert names == {more[i].key for i in held_more} and len(held_more) == 2
    assert names.isdisjoint(records[i].key for i in kept) and names.isdisjoint(more[i].key for i in kept_more)
    assert len(kept) == 4 and len(kept_more) == 4 * (len(more) // len(records))
    backwards = records[::-1]
    assert {backwards[i].key for i in holdout.split(backwards, 2, 7, "run.json")[1]} == names
    with pytest.raises(ConfigError, match="leave at least one"):
        holdout.split(records, 6, 7, "run.json")


def test_an_image_is_held_out_under_every_name(data, tmp_path):
    """Rows of a table may show one image, and files may be copies: none of it is both measured and trained on."""
    folder = tmp_path / "copied"
    shutil.copytree(data.parent / "win", folder)
    for file in list(folder.iterdir()):
        shutil.copy(file, folder / f"z{file.name}")
    run = resolve_run({"data": [{"id": "win", "instance_data_dir": str(folder)}], "hooks": []}, tmp_path / "run.json")
    records = audit(run.data).records
    kept, held = holdout.split(records, 2, 7, "run.json")
    assert len(held) == 2 and len(kept) == len(records) - 4
    assert {records[i].image.digest for i in kept}.isdisjoint(records[i].image.digest for i in held)
    assert not any(records[i].key.startswith("z") for i in held)

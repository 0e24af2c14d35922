"""A run's pipeline with the adapter in its weights computes what the run's network computed."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel

from flowhooks.adapters import load_adapter
from flowhooks.cli import main
from flowhooks.errors import ModelError
from flowhooks.export.merged import export_merged
from tests.export.wan_runs import BESIDE, finished, write_pipeline

SFT = {"sft": {}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return finished(model, tmp_path_factory.mktemp("finished") / "out", method=SFT)


def weights(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def test_pipeline_and_network_hold_the_trained_change(run, model, tmp_path, capsys):
    assert main(["export", str(run), "--format", "merged", "--output", str(tmp_path / "pipe")]) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'pipe'}\n"
    assert export_merged(run, "merged-network", None) == run / "merged-network"
    base = DiffusionPipeline.from_pretrained(model)
    bare, network = weights(base.transformer), base.transformer
    adapter = load_adapter(network, run)
    expected = dict(bare)
    for name, layer in network.named_modules():
        if name in adapter.targets:
            expected[f"{name}.weight"] = bare[f"{name}.weight"] + layer.get_delta_weight("default").detach()
    merged = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert type(merged) is type(base)
    for found in (merged.transformer, WanTransformer3DModel.from_pretrained(run / "merged-network")):
        assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in found.state_dict().items())
        assert not all(torch.equal(value, bare[name]) for name, value in found.state_dict().items())
    assert json.loads((tmp_path / "pipe" / "model_index.json").read_text())["_class_name"] == "WanPipeline"


def test_what_no_merged_weight_holds_is_refused(run, model, tmp_path):
    with pytest.raises(ModelError, match="exists already"):
        export_merged(run, "merged", tmp_path)
    with pytest.raises(ModelError, match="is a file; format 'merged' needs the folder of a run"):
        export_merged(run / "pytorch_lora_weights.safetensors", "merged", tmp_path / "no")
    beside = finished(model, tmp_path / "beside", hooks=[BESIDE], method=SFT)
    with pytest.raises(ModelError, match=r"flowhooks_modules.safetensors: a hook trained modules beside the adapter"):
        export_merged(beside, "merged", None)
    whole = finished(model, tmp_path / "whole", adapter=None, training={"trainable": "transformer"}, method=SFT)
    with pytest.raises(ModelError, match="trained the whole network"):
        export_merged(whole, "merged", None)
    assert not list(tmp_path.glob("*/merged"))

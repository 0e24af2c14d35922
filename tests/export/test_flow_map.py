"""A flow map becomes one file, from which the node for ComfyUI tells the network what flowhooks tells it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flowhooks
from flowhooks.cli import main
from flowhooks.errors import AdapterError, ConfigError, FlowhooksError, ModelError
from flowhooks.export.flow_map import HEADER, export_flow_map
from flowhooks.pipeline import load_pipeline
from flowhooks.restore import read_run
from tests.comfyui.node import node
from tests.export.wan_runs import finished, write_pipeline

LORA, MODULES = "pytorch_lora_weights.safetensors", "flowhooks_modules.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of a network whose original names are those of Diffusers."""
    folder = tmp_path_factory.mktemp("flow-map")
    return finished(write_pipeline(folder / "model", "qwen-image"), folder / "out", name="qwen-image")


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    return export_flow_map(run, tmp_path_factory.mktemp("file") / "mine.safetensors").adapter.file


def test_the_file_holds_both_parts_under_original_names(run, file):
    with safe_open(file, "pt") as handle:
        header, keys = handle.metadata(), set(handle.keys())
    about = json.loads(header[HEADER])
    assert {key: about[key] for key in ("version", "family", "gate", "mode", "scale", "offset", "base")} == {
        **{"version": 1, "family": "qwen-image", "gate": 0.5, "mode": "r", "scale": 1000, "offset": 0},
        "base": "model",
    }
    assert about["layers"]["transformer_blocks.#.attn.to_q"] == [2, 64, 64]
    embedder = "time_text_embed.timestep_embedder"
    second = {key for key in keys if key.startswith("second_time.")}
    assert second == {f"second_time.{embedder}.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    trained = load_file(run / MODULES)["time_conditioning.delta_embedder.linear_1.weight"]
    assert torch.equal(load_file(file)[f"second_time.{embedder}.linear_1.weight"], trained)
    lora = load_file(run / LORA)
    assert len(keys - second) == len(lora) // 2 * 3, "with an alpha for each layer"


@torch.no_grad()
def test_the_node_makes_of_the_network_what_flowhooks_makes_of_it(run, file):
    pipe, module = load_pipeline(read_run(run)[0]), node()
    sigma, end = torch.tensor([0.75]), torch.tensor([0.25])
    with flowhooks.attach(pipe, run) as session:
        model = session.model
        condition = model.encode_prompts(["one two"])
        noisy = torch.randn(1, *model.sample_shape, generator=torch.Generator().manual_seed(1))
        wanted = model.predict(noisy, sigma, condition, r_sigma=end)
    pipe.load_lora_weights(str(run))
    untold = model.predict(noisy, sigma, condition)

    def executor(*args, **kwargs):
        return model.predict(noisy, sigma, condition)

    executor.class_obj = SimpleNamespace(diffusion_model=pipe.transformer)
    steps = module.steps_of("sample_euler", [1.0, 0.75, 0.25, 0.0], {})
    blend = module.BlendTimes(module.read_flow_map(file))
    found = blend(executor, noisy, sigma, transformer_options={module.KEY: steps})
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-5 * scale
    assert (untold - wanted).abs().max() > 1e-3 * scale, "so that equal means told"
    assert torch.equal(model.predict(noisy, sigma, condition), untold), "nothing is left on the network"


def test_the_command(run, tmp_path, capsys):
    output = tmp_path / "flow.safetensors"
    assert main(["export", str(run), "--format", "flow-map", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {output}: " in said and "for qwen-image, trained on model" in said and "right in" not in said
    assert main(["export", str(run), "--format", "flow-map", "--output", str(output)]) == 2
    assert "exists already and is not overwritten" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "comfyui", "--output", str(tmp_path / "plain.safetensors")]) == 0
    assert "a flow map's second time goes into a file with `--format flow-map`" in capsys.readouterr().out


def refused(run, error, message, output=None):
    with pytest.raises(FlowhooksError, match=message) as found:
        export_flow_map(run, output)
    assert type(found.value) is error
    assert "\n" not in str(found.value)


def test_what_is_no_flow_map(run, tmp_path):
    refused(tmp_path / "nowhere", ConfigError, "give a run's output folder")
    refused(run / LORA, ModelError, "is a file; format 'flow-map' needs the folder of a run")
    plain = shutil.copytree(run, tmp_path / "plain")
    (plain / MODULES).unlink()
    refused(plain, ModelError, "trained no second time beside its network; format 'flow-map'")
    assert not (plain / "flow_map.safetensors").exists()


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("mine")
    refused(run, AdapterError, "is below a file", tmp_path / "taken" / "inside.safetensors")
    assert (tmp_path / "taken").read_text() == "mine"
    made = export_flow_map(run, tmp_path / "new" / "folder")
    assert made.adapter.file == tmp_path / "new" / "folder" / "flow_map.safetensors" and made.adapter.file.is_file()


def test_what_the_file_cannot_hold(run, tmp_path):
    whole = shutil.copytree(run, tmp_path / "whole")
    (whole / "pipeline").mkdir()
    refused(whole, ModelError, "trained the whole network")
    gated = shutil.copytree(run, tmp_path / "gated")
    rewritten(gated / LORA, **{"flowhooks.adapter_below": "0.5"})
    refused(gated, ModelError, "was off above sigma 0.5 in training")
    other = shutil.copytree(run, tmp_path / "other")
    with safe_open(other / MODULES, "pt") as handle:
        manifest = json.loads(handle.metadata()["flowhooks.modules"])
    rewritten(other / MODULES, **{"flowhooks.modules": json.dumps({**manifest, "network": "ChromaTransformer2DModel"})})
    refused(other, ModelError, "was trained for ChromaTransformer2DModel; format 'flow-map' is known for SD3Trans")


def rewritten(file, **changes):
    """A file with other keys in its header."""
    with safe_open(file, "pt") as handle:
        header = handle.metadata()
    save_file(load_file(file), file, {**header, **changes})

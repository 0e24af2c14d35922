"""A run on Wan with a second time becomes an AnyFlowPipeline that computes the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import (
    AnyFlowPipeline,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_file

import flowhooks
from flowhooks import FlowMapScheduler
from flowhooks.cli import main
from flowhooks.errors import ConfigError, FlowhooksError, ModelError
from flowhooks.export.anyflow import export_anyflow
from flowhooks.testing.wan import wan_transformer
from tests.export.wan_runs import BESIDE, LORA, drawn, finished, unshifted, write_pipeline

SECOND = {"target_mode": "linear", "deltatime_type": "t-r", "gate_value": 0.8, "timestep_scale": 1000.0}
PARTS = {
    "lora": {},
    "t-r": {"method": {"anyflow": SECOND}},
    "lycoris": {"adapter": {"type": "lycoris", "algo": "lokr", "rank": 2, "alpha": 1}},
    "every layer": {
        "adapter": {**LORA, "target_modules": ["to_q", "ffn.net.2", "time_embedder.linear_1", "patch_embedding"]}
    },
    "whole network": {"adapter": None, "training": {"trainable": "transformer"}},
}


def with_flat_patches():
    """Wan's network with tokens that are no squares."""
    return WanTransformer3DModel.from_config({**wan_transformer().config, "patch_size": (1, 2, 1)})


def away(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return finished(model, tmp_path_factory.mktemp("finished") / "out")


def trained(base, run, **call):
    """Latents by the stock Wan pipeline with the run attached, and the sigmas it stepped over."""
    with flowhooks.attach(base, run, height=32, width=32):
        return drawn(base, **call), base.scheduler.sigmas.clone()


def base_of(run):
    folder = json.loads((run / "run.json").read_text())["model"]["pretrained_model_name_or_path"]
    return WanPipeline.from_pretrained(run / "pipeline" if (run / "pipeline").is_dir() else folder)


@pytest.mark.parametrize("part", PARTS)
def test_the_exported_pipeline_draws_what_the_attached_run_draws(part, model, tmp_path):
    run = finished(model, tmp_path / "out", **PARTS[part])
    folder = export_anyflow(run, None)
    assert folder == run / "anyflow"
    stock = AnyFlowPipeline.from_pretrained(folder)
    wanted, sigmas = trained(base_of(run), run, num_inference_steps=4)
    found = drawn(stock, sigmas=unshifted(sigmas, shift=3.0))
    assert away(found, wanted) < 1e-5
    assert away(drawn(base_of(run), num_inference_steps=4), wanted) > 1e-2


def test_what_was_trained_matters_in_the_exported_pipeline(run, model, tmp_path):
    """So that equal latents mean that both the adapter and the second time arrived."""
    stock = AnyFlowPipeline.from_pretrained(export_anyflow(run, tmp_path / "whole"))
    wanted = drawn(stock, num_inference_steps=4)
    embedder = stock.transformer.condition_embedder
    changes = load_file(run / "flowhooks_modules.safetensors")
    assert torch.equal(embedder.delta_embedder.linear_2.bias, changes["time_conditioning.delta_embedder.linear_2.bias"])
    embedder.delta_embedder.load_state_dict(embedder.time_embedder.state_dict())
    assert away(drawn(stock, num_inference_steps=4), wanted) > 1e-3
    plain = WanPipeline.from_pretrained(model).transformer.blocks[0].attn1.to_q.weight
    assert not torch.equal(stock.transformer.blocks[0].attn1.to_q.weight, plain)


def test_guidance_and_the_schedulers_own_steps(run, tmp_path):
    """Under the same scheduler the two pipelines agree without telling either its sigmas."""
    stock = AnyFlowPipeline.from_pretrained(export_anyflow(run, tmp_path / "whole"))
    assert isinstance(stock.scheduler, FlowMapEulerDiscreteScheduler)
    assert (stock.scheduler.config.shift, stock.scheduler.config.num_train_timesteps) == (3.0, 1000)
    own, guided = (drawn(stock, num_inference_steps=4, guidance_scale=scale) for scale in (1.0, 4.0))
    base = base_of(run)
    with flowhooks.attach(base, run, height=32, width=32):
        assert away(own, drawn(base, num_inference_steps=4)) > 1e-3, "FlowMatchEuler steps over other sigmas"
        base.scheduler = FlowMapScheduler.from_scheduler(FlowMapEulerDiscreteScheduler(shift=3.0))
        assert away(own, drawn(base, num_inference_steps=4)) < 1e-5
        assert away(guided, drawn(base, num_inference_steps=4, guidance_scale=4.0)) < 1e-5


def test_times_for_each_token_agree_too(tmp_path):
    """Wan 2.2's small model calls its network with a time for every token, all the same."""
    run = finished(write_pipeline(tmp_path / "model", expand_timesteps=True), tmp_path / "out")
    stock = AnyFlowPipeline.from_pretrained(export_anyflow(run, None))
    wanted, sigmas = trained(base_of(run), run, num_inference_steps=4)
    assert away(drawn(stock, sigmas=unshifted(sigmas, shift=3.0)), wanted) < 1e-5


def test_the_shift_of_wans_own_scheduler_and_other_parts_are_kept(tmp_path):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    run = finished(write_pipeline(tmp_path / "model", scheduler=scheduler), tmp_path / "out")
    stock = DiffusionPipeline.from_pretrained(export_anyflow(run, None))
    assert type(stock) is AnyFlowPipeline and stock.scheduler.config.shift == 5.0
    base = base_of(run)
    assert isinstance(stock.vae, AutoencoderKLWan) and stock.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    for part in ("vae", "text_encoder"):
        own = getattr(base, part).state_dict()
        assert all(torch.equal(own[key], value) for key, value in getattr(stock, part).state_dict().items())
    base.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    wanted, sigmas = trained(base, run, num_inference_steps=4)
    assert away(drawn(stock, sigmas=unshifted(sigmas, shift=5.0)), wanted) < 1e-5


def test_averaged_weights_are_exported(model, tmp_path):
    """Of a run that keeps an average, adapter and second time both."""
    average: dict[str, torch.Tensor] = {}
    training = {"use_ema": True, "ema_decay": 0.5}
    run = finished(model, tmp_path / "out", training=training, average=average)
    stock = AnyFlowPipeline.from_pretrained(export_anyflow(run, None))
    weight, bias = (f"time_conditioning.delta_embedder.linear_2.{part}" for part in ("weight", "bias"))
    found = stock.transformer.condition_embedder.delta_embedder.linear_2
    assert torch.equal(found.weight, average[weight]) and torch.equal(found.bias, average[bias])
    name = "blocks.0.attn1.to_q"
    down, up = (average[f"{name}.lora_{part}.weight"] for part in "AB")
    base = WanPipeline.from_pretrained(model).transformer.get_submodule(name).weight
    torch.testing.assert_close(stock.transformer.get_submodule(name).weight, base + 4 / 2 * up @ down)


def test_half_precision_is_kept(model, tmp_path):
    run = finished(model, tmp_path / "out", section={"dtype": "bf16"})
    weights = load_file(export_anyflow(run, None) / "transformer" / "diffusion_pytorch_model.safetensors")
    assert weights["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    first = {
        weights[f"condition_embedder.{name}.linear_1.weight"].dtype for name in ("time_embedder", "delta_embedder")
    }
    assert first == {torch.float32}, "as Diffusers keeps it in Wan"
    stock = AnyFlowPipeline.from_pretrained(run / "anyflow", dtype=torch.bfloat16)
    assert drawn(stock, num_inference_steps=2).isfinite().all()


def test_the_command(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "anyflow", "--output", str(tmp_path / "whole")]) == 0
    assert str(tmp_path / "whole") in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["whole"], "nothing is left beside it"
    assert main(["export", str(run), "--format", "anyflow", "--output", str(tmp_path / "whole")]) == 2
    assert "exists already and is not overwritten" in capsys.readouterr().err


def one_line(run, error, message, output=None):
    with pytest.raises(FlowhooksError, match=message) as found:
        export_anyflow(run, output)
    assert type(found.value) is error
    assert "\n" not in str(found.value)


def test_no_finished_run(run, tmp_path):
    one_line(tmp_path / "nowhere", ConfigError, "give a run's output folder")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run / "run.json", unfinished)
    one_line(unfinished, ModelError, "has written no weights yet")
    shutil.copy(run / "pytorch_lora_weights.safetensors", unfinished)
    one_line(unfinished, ModelError, "trained no second time beside its network")
    (unfinished / "flowhooks_modules.safetensors").write_bytes(b"nothing")
    one_line(unfinished, ModelError, "is no modules file of flowhooks")


def test_another_network(tmp_path):
    arguments = {"height": 16, "width": 16, "max_sequence_length": 8}
    model = write_pipeline(tmp_path / "model", "sd3")
    run = finished(model, tmp_path / "out", section={"pipeline_arguments": arguments})
    one_line(run, ModelError, "was trained for SD3Transformer2DModel; format 'anyflow' is for WanTransformer3DModel")


def test_modules_of_another_hook(model, tmp_path):
    hooks = [{"type": "target_replacer", "target_mode": "linear"}, {"type": "interval_times"}]
    run = finished(model, tmp_path / "out", method=None, hooks=[*hooks, BESIDE])
    one_line(run, ModelError, "holds what 'tests.export.wan_runs:Beside' trained too")


def test_two_experts(tmp_path):
    model = write_pipeline(tmp_path / "model", "wan-two-experts")
    one_line(finished(model, tmp_path / "out"), ModelError, "has two experts, `transformer` and `transformer_2`")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}, "`use_dynamic_shifting` True"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)}, "`shift_terminal` 0.1"),
        ({"transformer": wan_transformer(added_kv_proj_dim=24)}, "`added_kv_proj_dim` is 24"),
        ({"transformer": with_flat_patches()}, r"`patch_size` is \[1, 2, 1\]; AnyFlow's needs"),
    ],
)
def test_what_anyflow_cannot_express(change, message, run, model, tmp_path):
    """The run's base is another one by now."""
    other, copied = write_pipeline(tmp_path / "model", **change), tmp_path / "out"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("anyflow"))
    document = json.loads((copied / "run.json").read_text())
    document["model"]["pretrained_model_name_or_path"] = str(other)
    (copied / "run.json").write_text(json.dumps(document))
    one_line(copied, ModelError, message)
    assert not (copied / "anyflow").exists()


def test_a_pipeline_that_does_more_than_draw_from_text(run, model, tmp_path):
    """It has the same parts and calls the network in another way."""
    other, copied = shutil.copytree(model, tmp_path / "model"), tmp_path / "out"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("anyflow"))
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanVideoToVideoPipeline"}))
    document = json.loads((copied / "run.json").read_text())
    document["model"]["pretrained_model_name_or_path"] = str(other)
    (copied / "run.json").write_text(json.dumps(document))
    one_line(copied, ModelError, "model is a WanVideoToVideoPipeline; format 'anyflow' is for WanPipeline")


def test_another_unit_of_the_second_time(model, tmp_path):
    method = {"anyflow": {"target_mode": "linear", "timestep_scale": 250.0}}
    run = finished(model, tmp_path / "out", method=method)
    one_line(run, ModelError, "`timestep_scale` of the run is 250; AnyFlow has .* in the unit of the first, 1000")


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "taken").write_text("mine")
    one_line(run, ModelError, "cannot be written", tmp_path / "taken" / "whole")
    assert (tmp_path / "taken").read_text() == "mine"


def test_nothing_is_merged_into_a_quantised_base(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    document = json.loads((copied / "run.json").read_text())
    document["model"]["quantization"] = "int8"
    (copied / "run.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="not merged into quantised weights.*`model.quantization` to null"):
        export_anyflow(copied, None)
    assert not (copied / "anyflow").exists()

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file

from flowhooks.adapters import load_adapter
from flowhooks.attaching import attach_planned
from flowhooks.errors import AdapterError, ConfigError, DataError, ModelError, TrainingError
from flowhooks.pipeline import load_pipeline
from flowhooks.probe import encoding
from flowhooks.probe.runs import PROMPTS
from flowhooks.sampling.images import sample_images
from flowhooks.train import setup, train
from flowhooks.train.checkpoint import read, verify
from tests.train.runs import FLOW_DPO, NAMES, history, validated, weights, write_data

DRAW = {
    "prompts": ["a photo of one", "two"],
    "num_inference_steps": 2,
    "height": 16,
    "width": 16,
    "guidance_scale": 2.0,
}


def same_picture(a, b):
    return ImageChops.difference(a, b).getbbox() is None


def test_a_run_leaves_a_lora_that_stock_diffusers_draws_with(new_run):
    result = train(
        new_run(validation=DRAW, training={"learning_rate": 0.05}, logging={"trackers": ["tensorboard"]}),
        progress=False,
    )
    out = result.output_dir
    assert result.step == 4 and result.metrics["loss"] > 0
    drawn = validated(out, 4)
    assert not same_picture(drawn[0], validated(out, 0)[0])

    pipe = StableDiffusion3Pipeline.from_pretrained(
        new_run().model["pretrained_model_name_or_path"], text_encoder_3=None, tokenizer_3=None
    )
    pipe.load_lora_weights(out)
    options = {k: v for k, v in DRAW.items() if k != "prompts"}
    stock = sample_images(pipe, DRAW["prompts"], **options, arguments={"max_sequence_length": 8})
    assert same_picture(drawn[0], stock[0]) and same_picture(drawn[1], stock[1])

    with safe_open(out / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["flowhooks.run"])["training"]["learning_rate"] == 0.05
        assert str(out.parent) not in json.dumps(file.metadata())
    assert json.loads((out / "run.json").read_text())["hooks"][0]["type"] == "flow_dpo"
    assert json.loads((out / "metrics.json").read_text())["loss"] == result.metrics["loss"]
    card = (out / "README.md").read_text()
    assert "step_000004.png" in card and 'pipe.load_lora_weights("FOLDER"' in card
    assert "pipeline_tag: text-to-image" in card
    assert [line["step"] for line in history(out)] == [1, 2, 4]
    assert list((out / "logs").rglob("events.out.tfevents.*"))
    assert not [p for p in out.rglob("*") if p.suffix in {".pt", ".bin", ".pkl", ".pth"} or "partial" in p.name]


def test_prompts_are_encoded_before_hooks_attach_but_for_what_a_hook_learns_then(new_run, monkeypatch, tmp_path):
    attaching, encoded = [], []

    @contextmanager
    def watched(*args):
        attaching.append(True)
        with attach_planned(*args) as session:
            attaching.clear()
            yield session

    def encode_prompts(model, prompts, **size):
        encoded.extend((prompt, bool(attaching)) for prompt in prompts)
        return encode(model, prompts, **size)

    encode = encoding.encode_prompts
    monkeypatch.setattr(encoding, "encode_prompts", encode_prompts)
    monkeypatch.setattr(setup, "attach_planned", watched)
    once = {"training": {"max_train_steps": 1}, "cache_dir": str(tmp_path / "cache")}
    train(new_run("plain", hooks=[], **once), progress=False)
    plain = set(encoded)
    # The data's, for the cache, and those of the probe.
    assert plain == {(prompt, False) for prompt in (*PROMPTS, *(f"a photo of {name}" for name in NAMES))}
    train(new_run("hooked", hooks=[{"type": "tests.train.toys:Learning"}], **once), progress=False)
    assert set(encoded) - plain == {(prompt, True) for prompt in PROMPTS} and not attaching


def test_training_whole_saves_a_pipeline_of_averaged_weights(new_run):
    hooks = [{"type": "timestep_schedule"}, {"type": "anchor_regularizer", "role": "ema", "weight": 0.1}]
    training = {"trainable": "transformer", "use_ema": True, "max_train_steps": 3}
    out = train(new_run(adapter=None, hooks=hooks, training=training), progress=False).output_dir
    saved = load_pipeline(
        {**new_run().model, "pretrained_model_name_or_path": str(out / "pipeline")}
    ).transformer.state_dict()
    checkpoint = out / "checkpoint-3"
    shadow = read(checkpoint, "session")["hooks"]["weight_average"]["shadow"]
    assert all(torch.equal(saved[name.removeprefix("transformer.")], value) for name, value in shadow.items())
    assert any(not torch.equal(value, shadow[name]) for name, value in weights(checkpoint).items())


def test_an_adapter_is_exported_with_averaged_weights_too(new_run):
    run = new_run(training={"use_ema": True, "learning_rate": 0.05}, adapter={"type": "lycoris", "algo": "locon"})
    out = train(run, progress=False).output_dir
    shadow = read(out / "checkpoint-4", "session")["hooks"]["weight_average"]["shadow"]
    saved = load_file(out / "pytorch_lycoris_weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in shadow.items())
    transformer = load_pipeline(run.model).transformer
    loaded = load_adapter(transformer, out)
    assert all(torch.equal(p, shadow[name]) for name, p in loaded.named_parameters().items())


@pytest.mark.parametrize("name, error", [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit)])
def test_a_signal_ends_the_run_after_a_checkpoint(new_run, name, error):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = {"type": "tests.train.toys:SignalAt", "name": name, "micro_step": 2}
    run = new_run(hooks=[*FLOW_DPO, hook], training={"gradient_accumulation_steps": 2})
    with pytest.raises(error) as left:
        train(run, progress=False)
    assert name != "SIGTERM" or left.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert train(run, resume="latest", progress=False).step == 4
    verify(Path(run.output_dir) / "checkpoint-2")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_stops_the_run_and_names_the_files_and_the_weights_stay_finite(new_run, what):
    hook = {"type": "tests.train.toys:NanAt", "micro_step": 1, "what": what}
    run = new_run(hooks=[*FLOW_DPO, hook], training={"max_train_steps": 3, "log_every_steps": 3})
    with pytest.raises(TrainingError) as found:
        train(run, progress=False)
    assert f"the {what} of micro-step 1 " in str(found.value)
    assert str(found.value).count(".png") == 2
    assert not list(Path(run.output_dir).glob("checkpoint-*"))


@pytest.mark.slow
def test_a_missing_model_and_a_folder_that_is_none_are_clear_errors(new_run, tmp_path, online):
    for place, message in ((tmp_path / "nowhere", "there is no folder"), (tmp_path, "has no model_index.json")):
        run = new_run(model={"pretrained_model_name_or_path": str(place)})
        with pytest.raises(ConfigError, match=message):
            train(run, progress=False)
    run = new_run(model={"pretrained_model_name_or_path": "somebody/something"})
    with pytest.raises(ModelError, match="check the name, your network"):
        train(run, progress=False)


def test_arguments_that_only_the_pipeline_can_judge_are_told_with_their_place(new_run):
    run = new_run(model={"pipeline_arguments": {"max_sequence_length": -5}})
    with pytest.raises(ModelError, match=r"run\.json: \$\.model\.pipeline_arguments: .* cannot be run with"):
        train(run, progress=False)


def test_a_lora_for_another_model_is_refused(new_run, finished):
    for section, error in (({"rank": 4}, ConfigError), ({"target_modules": ["to_q"]}, AdapterError)):
        with pytest.raises(error, match="pytorch_lora_weights.safetensors"):
            train(new_run(adapter={**section, "init_from": str(finished)}), progress=False)


def test_a_run_starts_from_an_adapter(new_run, finished):
    run = new_run(adapter={"init_from": str(finished)}, training={"max_train_steps": 1, "learning_rate": 1e-12})
    train(run, progress=False)
    ours, theirs = (
        load_file(Path(folder) / "pytorch_lora_weights.safetensors") for folder in (run.output_dir, finished)
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in theirs)


def test_a_pair_without_partner_ends_the_run_before_weights_load(new_run, tmp_path):
    data = write_data(tmp_path / "pairs")
    (tmp_path / "pairs" / "lose" / "two.png").unlink()
    run = new_run(data=str(data), model={"pretrained_model_name_or_path": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="two"):
        train(run, progress=False)


def test_nan_in_a_cache_file_names_that_file(new_run, tmp_path):
    from safetensors.torch import load_file, save_file

    run = new_run(cache_dir=str(tmp_path / "own_cache"), training={"max_train_steps": 1})
    train(run, progress=False)
    file = next((tmp_path / "own_cache" / "latents").rglob("*.safetensors"))
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(DataError, match=file.name):
        train(run, resume="latest", progress=False)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"training": {"optimizer": "torch.optim:Adamm"}}, r"\$\.training\.optimizer"),
        ({"training": {"trainable": "transformer"}}, r"\$\.adapter"),
        ({"adapter": None}, r"\$\.(adapter|training)|role:reference|reference"),
        ({"validation": {"holdout": 6}}, r"\$\.validation\.holdout"),
        ({"logging": {"trackers": ["comet_ml"]}}, r"\$\.logging\.trackers.*comet_ml"),
    ],
)
def test_mistakes_are_told_before_weights_load(new_run, monkeypatch, sections, message):
    loads = []
    monkeypatch.setattr("flowhooks.train.setup.load_pipeline", loads.append)
    with pytest.raises(ConfigError, match=message) as found:
        train(new_run(**sections), progress=False)
    assert found.value.exit_code == 2 and loads == []

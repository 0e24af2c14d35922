"""Self-Flow runs end to end: the documented keys as printed, a LoRA and a whole network, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file

from flowhooks.adapters.names import LORA_FILE
from flowhooks.manifest import MODULES
from flowhooks.train import train
from tests.config.test_crepa import PRINTED
from tests.families import tiny
from tests.train.runs import history, weights

pytestmark = pytest.mark.slow

METHOD = {"self_flow": {"block_index": 0, "teacher_block_index": 1, "projector_width": 16}}
AVERAGED = {"use_ema": True}


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory) -> Path:
    """The tiny SD3 with as many blocks as the printed keys count on."""
    pipe = tiny("sd3")
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_layers": 18, "dual_attention_layers": ()}
    pipe.transformer = SD3Transformer2DModel.from_config(config)
    folder = tmp_path_factory.mktemp("deep") / "sd3"
    pipe.save_pretrained(folder)
    return folder


def test_the_printed_keys_run(new_run, deep_model):
    model = {"pretrained_model_name_or_path": str(deep_model)}
    result = train(new_run(hooks=[], model=model, **PRINTED), progress=False)
    lines = [line for line in history(result.output_dir) if "crepa_loss" in line]
    assert lines
    assert all(0 < line["crepa_loss"] < 2 and -1 <= line["crepa_alignment_score"] <= 1 for line in lines)
    assert all(line["alignment_loss"] == pytest.approx(0.5 * line["crepa_loss"]) for line in lines)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_leaves_a_stock_lora_without_the_projector(new_run, model):
    folder = train(new_run(hooks=[], method=METHOD, training=AVERAGED), progress=False).output_dir
    assert not (folder / MODULES).exists()
    assert not [name for name in load_file(folder / LORA_FILE) if "projector" in name]
    assert [name for name in weights(folder / "checkpoint-4") if name.startswith("feature_alignment.projector")]
    stock = StableDiffusion3Pipeline.from_pretrained(model, text_encoder_3=None, tokenizer_3=None)
    stock.load_lora_weights(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("whole", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(new_run, whole):
    """The average, the projector and the schedule's position come back."""
    block = {**METHOD["self_flow"], "scheduler": "linear", "decay_steps": 4, "similarity_threshold": 0.99}
    sections = {"hooks": [], "method": {"self_flow": block}}
    training = {**AVERAGED, **({"trainable": "transformer"} if whole else {})}
    if whole:
        sections["adapter"] = None
    straight = train(new_run("straight", training=training, **sections), progress=False).output_dir
    train(new_run("parts", training={**training, "max_train_steps": 2}, **sections), progress=False)
    parts = train(new_run("parts", training=training, **sections), resume="latest", progress=False).output_dir
    ours, theirs = (weights(folder / "checkpoint-4") for folder in (parts, straight))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    file = "pipeline/transformer/diffusion_pytorch_model.safetensors" if whole else LORA_FILE
    ours, theirs = (load_file(folder / file) for folder in (parts, straight))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_whole_network_is_saved_as_a_pipeline_of_averaged_weights(new_run):
    run = new_run(hooks=[], method=METHOD, adapter=None, training={**AVERAGED, "trainable": "transformer"})
    folder = train(run, progress=False).output_dir
    stock = StableDiffusion3Pipeline.from_pretrained(folder / "pipeline", text_encoder_3=None, tokenizer_3=None)
    state = weights(folder / "checkpoint-4")
    trained = {name.removeprefix("transformer."): value for name, value in state.items()}
    moved = [n for n, value in stock.transformer.state_dict().items() if n in trained and not value.equal(trained[n])]
    assert moved, "the average lags behind what the checkpoint holds"
    pictures = stock("one", num_inference_steps=2, height=16, width=16, output_type="pt", max_sequence_length=8).images
    assert bool(pictures.isfinite().all())

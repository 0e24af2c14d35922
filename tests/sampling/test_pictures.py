from __future__ import annotations

import copy
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from flowhooks.commands.sample_pictures import sample_command
from flowhooks.errors import AdapterError, ConfigError, ModelError
from flowhooks.probe import probe
from flowhooks.sampling.images import picture_grid, sample_images
from tests.families import PIPELINES, learnt, tiny

QUICK = {"num_inference_steps": 2, "height": 16, "width": 16, "arguments": {"max_sequence_length": 8}}


def pixels(picture):
    return np.asarray(picture)


def test_a_picture_depends_on_its_seed_alone_and_the_pipeline_is_left_as_found(tiny_sd3):
    before = {name: copy.copy(vars(part)) for name, part in (("pipe", tiny_sd3), ("scheduler", tiny_sd3.scheduler))}
    together = sample_images(tiny_sd3, ["one", "two"], seed=3, num_images_per_prompt=2, guidance_scale=3.0, **QUICK)
    assert (
        vars(tiny_sd3).keys() == before["pipe"].keys() and vars(tiny_sd3.scheduler).keys() == before["scheduler"].keys()
    )
    alone = sample_images(tiny_sd3, ["two"], seed=4, guidance_scale=3.0, **QUICK)
    assert len(together) == 4
    assert np.abs(pixels(together[3]).astype(int) - pixels(alone[0]).astype(int)).max() <= 1
    assert (pixels(together[0]) != pixels(together[1])).any() and (pixels(together[0]) != pixels(together[2])).any()


def test_a_guider_is_told_the_scale_and_left_as_found():
    pipe, arguments = tiny("motif-video"), PIPELINES["motif-video"].arguments
    options = {"num_inference_steps": 2, "arguments": arguments}
    own, same, plain = (
        pixels(*sample_images(pipe, ["one"], guidance_scale=scale, **options)).astype(int) for scale in (None, 8.0, 1.0)
    )
    assert pipe.guider.guidance_scale == 8.0
    assert (own == same).all() and (own != plain).any()


def test_a_scale_of_another_name_is_learnt_and_told():
    """Qwen-Image has a `guidance_scale` too, which does nothing on a network that is told none."""
    pipe, arguments = tiny("qwen-image"), PIPELINES["qwen-image"].arguments
    scale = probe(pipe, arguments=arguments).contract.scale
    assert scale == "true_cfg_scale"
    options = {"num_inference_steps": 2, "arguments": arguments}
    drawn = {
        value: pixels(*sample_images(pipe, ["one"], guidance_scale=value, scale_argument=scale, **options)).astype(int)
        for value in (1.0, 8.0)
    }
    call = {"num_inference_steps": 2, "generator": [torch.Generator().manual_seed(0)], **arguments}
    (stock,) = pipe("one", true_cfg_scale=8.0, negative_prompt="", **call).images
    assert (drawn[8.0] == pixels(stock)).all() and (drawn[8.0] != drawn[1.0]).any()
    unheard = [pixels(*sample_images(pipe, ["one"], guidance_scale=value, **options)) for value in (1.0, 8.0)]
    assert (unheard[0] == unheard[1]).all()


@pytest.mark.parametrize(("name", "scale"), [("flux", "guidance_scale"), ("sd3", "guidance_scale")])
def test_a_guidance_scale_that_does_something_stays(name, scale):
    assert learnt(name).contract.scale == scale


def test_a_grid_keeps_every_picture_in_its_cell():
    colours = ["red", "lime", "blue"]
    grid = picture_grid([Image.new("RGB", (4, 3), colour) for colour in colours], columns=2)
    assert grid.size == (10, 8)
    assert [grid.getpixel(at) for at in ((0, 0), (6, 0), (0, 5), (9, 7), (4, 0))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (255, 255, 255),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one image"):
        picture_grid([], columns=2)


@pytest.fixture
def arguments(tmp_path, tiny_sd3):
    tiny_sd3.save_pretrained(tmp_path / "sd3")
    return Namespace(
        given=None,
        allow_imports=False,
        offload=False,
        model=str(tmp_path / "sd3"),
        prompt=["one"],
        negative_prompt="",
        image=None,
        height=None,
        width=None,
        dtype="fp32",
        adapter_below=None,
        lora=None,
        steps=[1],
        guidance_scale=1.0,
        seed=0,
        num_images=1,
        save_dataset=None,
        output=str(tmp_path / "pictures" / "grid.png"),
    )


def run_folder(tmp_path, tiny_sd3):
    """A run's output folder with a LoRA that changes the picture."""
    from flowhooks.adapters import build_adapter
    from flowhooks.config import resolve_run

    model = {"pretrained_model_name_or_path": str(tmp_path / "sd3"), "pipeline_arguments": {"max_sequence_length": 8}}
    run = resolve_run({"model": model, "hooks": [], "adapter": {"rank": 2}}, tmp_path / "run.json")
    adapter = build_adapter(tiny_sd3.transformer, run.adapter)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    adapter.save(tmp_path / "out", {})
    (tmp_path / "out" / "run.json").write_text(json.dumps(run.document))
    return str(tmp_path / "out")


def test_the_command_draws_a_model_a_run_and_a_lora(arguments, tmp_path, tiny_sd3, capsys):
    folder = run_folder(tmp_path, tiny_sd3)
    drawn = {}
    for name, changes in {"model": {}, "run": {"model": folder}, "lora": {"lora": folder}}.items():
        output = tmp_path / f"{name}.png"
        assert sample_command(Namespace(**{**vars(arguments), **changes, "output": str(output)})) == 0
        assert str(output) in capsys.readouterr().out
        drawn[name] = pixels(Image.open(output))
    assert (drawn["model"] != drawn["run"]).any()


def test_a_folder_gets_every_picture(arguments, tmp_path):
    output = tmp_path / "all"
    sample_command(Namespace(**{**vars(arguments), "num_images": 2, "prompt": ["one", "two"], "output": str(output)}))
    names = sorted(path.name for path in output.iterdir())
    assert names == ["grid.png", *(f"prompt_{p:03d}_{i:02d}.png" for p in (0, 1) for i in (0, 1))]


def test_mistakes_are_clear(arguments, tmp_path):
    for changes, error in (
        ({"model": str(tmp_path / "nowhere")}, ModelError),
        ({"lora": str(tmp_path / "nowhere.safetensors")}, AdapterError),
    ):
        with pytest.raises(error):
            sample_command(Namespace(**{**vars(arguments), **changes}))
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match="choose another --output"):
        sample_command(Namespace(**{**vars(arguments), "output": str(tmp_path / "taken")}))
    assert (tmp_path / "taken").read_text() == "mine"
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text(json.dumps({"model": {"pretrained_model_name_or_path": "x/y"}}))
    with pytest.raises(ModelError, match="has written no weights yet"):
        sample_command(Namespace(**{**vars(arguments), "model": str(tmp_path / "unfinished")}))


def test_of_a_video_the_middle_frame_is_drawn():
    """Whatever a pipeline calls their number: one names it for videos, one makes one video of each prompt."""
    for name in ("wan", "cosmos3"):
        pipe, arguments = tiny(name), PIPELINES[name].arguments
        pipe.set_progress_bar_config(disable=True)
        drawn = sample_images(pipe, ["one"], num_inference_steps=2, num_images_per_prompt=2, arguments=arguments)
        video, *_ = pipe(
            prompt="one",
            num_inference_steps=2,
            output_type="pil",
            generator=torch.Generator().manual_seed(1),
            return_dict=False,
            **arguments,
        )
        frames = video[0] if isinstance(video[0], list) else video
        assert len(drawn) == 2 and len(frames) == 5
        assert np.abs(pixels(drawn[1]).astype(int) - pixels(frames[2]).astype(int)).max() <= 1
        assert (pixels(drawn[0]) != pixels(drawn[1])).any()

"""Sound, from a run file to the pipeline that loads its result."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from flowhooks.cli import main
from tests.data.folders import write_mask
from tests.families import tiny
from tests.train.runs import document


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Pairs of clips with masks and lyrics, and a tiny AceStep."""
    root, draw = tmp_path_factory.mktemp("songs"), np.random.default_rng(0)
    (root / "clips").mkdir()
    rows = []
    for name, lyrics in (("one", "two two"), ("two", "[instrumental]")):
        for side in ("", "worse_"):
            soundfile.write(root / "clips" / f"{side}{name}.wav", draw.uniform(-0.5, 0.5, (200, 2)), 800)
        write_mask(root / "clips" / f"{name}.png", 255 * (np.arange(64)[None] < 40))
        files = {"file_name": f"{name}.wav", "rejected_file_name": f"worse_{name}.wav", "mask_file_name": f"{name}.png"}
        rows.append({**files, "text": "a photo", "words": lyrics})
    (root / "clips" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    block = {"id": "clips", "type": "imagefolder", "dataset_type": "audio", "instance_data_dir": "clips"}
    block |= {"duration": 0.16, "text_columns": {"lyrics": "words"}}
    (root / "data.json").write_text(json.dumps([block]))
    tiny("ace-step").save_pretrained(root / "model")
    return root


def test_masked_flow_dpo_on_songs_with_lyrics_from_a_file_to_the_pipeline(songs, tmp_path, capsys):
    run = document(
        songs / "model",
        songs / "data.json",
        tmp_path / "out",
        model={"pipeline_arguments": {}},
        training={"max_train_steps": 1, "log_every_steps": 1},
        validation={
            "prompts": ["one", "two"],
            "texts": [{"lyrics": "seven"}, None],
            "duration": 0.16,
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "every_steps": 1,
        },
    )
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert main(["train", str(tmp_path / "run.json"), "--no-progress"]) == 0
    made = sorted(file.name for file in (tmp_path / "out" / "validation").iterdir())
    assert made == [f"step_{step:06d}_prompt_00{i}_00.wav" for step in (0, 1) for i in (0, 1)]
    clips = [soundfile.read(tmp_path / "out" / "validation" / name) for name in made]
    assert all(rate == 800 and clip.shape == (128, 2) and clip.any() for clip, rate in clips)

    pipe = tiny("ace-step")
    call = {"prompt": "one", "lyrics": "seven", "audio_duration": 0.16, "num_inference_steps": 1, "guidance_scale": 1.0}
    pipe.load_lora_weights(tmp_path / "out")
    theirs = pipe(**call, generator=torch.Generator().manual_seed(0)).audios[0].numpy()
    # 24 bits a sample.
    assert np.abs(clips[2][0].T - theirs).max() < 1e-5

    (tmp_path / "clips").mkdir()
    sample = ["sample", str(tmp_path / "out"), "--prompt", "one", "--text", "lyrics=seven", "--steps", "1"]
    sample += ["--guidance-scale", "1", "--duration", "0.16"]
    assert main([*sample, "--output", str(tmp_path / "clip.flac")]) == 0
    again, _ = soundfile.read(tmp_path / "clip.flac")
    assert np.abs(again - clips[2][0]).max() < 1e-5
    capsys.readouterr()
    for more, words in (
        (["--output", str(tmp_path / "clip.png")], "output: AceStepPipeline makes sound; name a folder, or a .wav"),
        (["--height", "16"], "height: AceStepPipeline makes sound; give its length with --duration"),
    ):
        assert main([*sample, *more]) == 2 and words in capsys.readouterr().err


def test_images_have_no_duration(capsys):
    for more, words in (
        (["--duration", "2"], "duration: the pipeline makes images; give --height and --width"),
        (["--output", "a.wav"], "output: the pipeline makes images; name a folder or a .png"),
    ):
        assert main(["sample", "digits", "--prompt", "seven", *more]) == 2
        assert words in capsys.readouterr().err

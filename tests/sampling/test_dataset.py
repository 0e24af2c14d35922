"""Pictures of a model become a data set that a run trains on."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.train import train
from tests.families import tiny
from tests.train.runs import make_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "sd3"
    tiny("sd3").save_pretrained(folder)
    return folder


def sample(model, *more):
    return main(["sample", str(model), "--steps", "2", "--height", "16", "--width", "16", *map(str, more)])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_drawn_data_set_trains_a_student(model, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "one", "task": "a"}, {"prompt": "a photo of two", "task": "b"}]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    folder = tmp_path / "drawn"
    assert sample(model, "--prompts", prompts, "--num-images", 2, "--save-dataset", folder) == 0
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == [f"00000{i}.{kind}" for i in range(4) for kind in ("png", "txt")]
    texts = [(folder / "images" / f"00000{i}.txt").read_text(encoding="utf-8") for i in range(4)]
    assert texts == ["one", "one", "a photo of two", "a photo of two"]
    assert Image.open(folder / "images" / "000000.png").size == (16, 16)
    run = make_run(model, folder / "dataset.json", tmp_path / "out", hooks=[], method={"sft": {}})
    assert (train(run, progress=False).output_dir / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--steps", "1,2"], "takes one number of --steps"),
        (["--prompts", "nowhere.txt"], "--prompts: nowhere.txt cannot be read"),
        ([], "one of the arguments --prompt --prompts is required"),
    ],
)
def test_mistakes(model, tmp_path, capsys, arguments, message):
    try:
        code = sample(model, *arguments, "--save-dataset", tmp_path / "new")
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(model, tmp_path, capsys):
    (tmp_path / "mine").write_text("keep", encoding="utf-8")
    assert sample(model, "--prompt", "a", "--save-dataset", tmp_path) == 2
    assert "exists already; name a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]

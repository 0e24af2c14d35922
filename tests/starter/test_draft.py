"""`flowhooks init` writes a run and its data that `check` accepts, and refuses what it would have to guess."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.config import load_run
from flowhooks.memory.report import Fit
from flowhooks.starter import methods_offered
from tests.data.test_folder import EDITS, PAIRS, PLAIN, write
from tests.families import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a whole tiny pipeline."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny("sd3").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Whatever card the machine of the tests has.
    monkeypatch.setattr("flowhooks.checks.machine.cuda_memory", tuple)


def init(model: str | Path, data: str, *more: str) -> int:
    return main(["init", "--model", str(model), "--data", data, *more])


@pytest.mark.parametrize(
    "names, method, options",
    [
        pytest.param(PLAIN, "sft", {}, id="images"),
        pytest.param(
            PAIRS, "flow_dpo", {"norm_type": "masked_mean", "auto_beta": True, "anchor_alpha": 0.05}, id="pairs"
        ),
    ],
)
def test_what_is_written_passes_check(names, method, options, model, tmp_path, capsys):
    write(tmp_path / "mine", names)
    assert init(model, "mine") == 0
    run, data = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("run.json", "data.json"))
    assert run["method"] == {method: options} and run["data"] == "data.json"
    assert data[0]["instance_data_dir"] in ("mine", "mine/preferred")
    said = capsys.readouterr().out
    assert "LoRA of rank 16" in said and "samples of 16x16" in said
    # The commands that it names work as they are printed.
    check = next(line for line in said.splitlines() if "flowhooks check" in line).partition("flowhooks ")[2]
    assert main(shlex.split(check)) == 0
    assert capsys.readouterr().out.endswith("ok\n")


def test_videos_begin_with_a_frame_of_their_own_where_the_pipeline_is_given_one(tmp_path):
    tiny("wan21-i2v").save_pretrained(tmp_path / "model")
    write(tmp_path / "clips", {"a.gif": "it runs"}, (64, 64))
    assert init("model", "clips") == 0
    (block,) = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert (block["num_frames"], block["reference"]) == (9, "first_frame")
    assert load_run("run.json").model["pipeline_arguments"] == {"num_frames": 9}


def test_validation_is_given_the_references_of_its_prompts(tmp_path):
    tiny("flux-kontext").save_pretrained(tmp_path / "model")
    write(tmp_path / "mine", EDITS)
    assert init("model", "mine") == 0
    run = load_run("run.json")
    assert run.validation["prompts"] == ["remove it"] and run.provides >= {"data:reference", "data:rejected"}
    ((first, second),) = run.validation["images"]
    assert [Path(each).parent.name for each in (first, second)] == ["source_1", "source_2"]


def test_a_folder_in_a_run_means_what_init_writes(model, tmp_path):
    write(tmp_path / "mine", PAIRS, (16, 16))
    assert init(model, "mine") == 0
    written, named = load_run("run.json"), load_run("run.json", ["data=mine/"])
    assert written.document["data"] == named.document["data"]


def test_nothing_is_overwritten_and_nothing_is_written_after_an_error(model, tmp_path, capsys):
    write(tmp_path / "mine", {"a.png": "one", "b.png": None})
    assert init(model, "mine") == 2
    assert "1 of 2 images have no caption" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "data.json").write_text("mine", encoding="utf-8")
    assert init(model, "mine", "--prompt", "a photo of it") == 2
    assert "data.json: exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "data.json").read_text(encoding="utf-8") == "mine" and not (tmp_path / "run.json").exists()
    assert init(model, "mine", "--prompt", "a photo of it", "--output", "other") == 2
    assert "would not use: a" in capsys.readouterr().err
    (tmp_path / "mine/a.txt").unlink()
    assert init(model, "mine", "--prompt", "a photo of it", "--output", "other") == 0
    (block,) = json.loads((tmp_path / "other" / "data.json").read_text(encoding="utf-8"))
    assert block["instance_prompt"] == "a photo of it" and load_run("other/run.json").provides == {"data:image"}


@pytest.mark.parametrize(
    "names, arguments, message",
    [
        pytest.param(PLAIN, ["--method", "flow_dpo"], "has no rejected one; add a folder 'rejected'", id="no pairs"),
        pytest.param(PLAIN, ["--method", "flow_grpo"], "'flow_grpo' needs `rewards`", id="a reward"),
        pytest.param(PLAIN, ["--method", "dpo"], "there is no method 'dpo'", id="no method"),
        pytest.param(PLAIN, ["--method", "what"], "there are anyflow, dmd, flow_dpo, ", id="no method like it"),
        pytest.param(EDITS, [], "holds references, and the pipeline takes no image", id="edits for another model"),
        pytest.param({**PLAIN, "c.gif": "x"}, [], "put them into two folders", id="mixed"),
    ],
)
def test_what_cannot_be_known_is_refused(names, arguments, message, model, tmp_path, capsys):
    write(tmp_path / "mine", names)
    assert init(model, "mine", *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine"]


def test_one_file_is_no_folder(model, tmp_path, capsys):
    write(tmp_path / "mine", PLAIN)
    assert init(model, "mine/a.png") == 2
    assert capsys.readouterr().err.endswith("mine/a.png: is one file; name the folder that it is in: --data mine\n")


def test_an_option_of_a_plain_folder_is_set_in_the_file_that_init_writes(model, tmp_path, capsys):
    write(tmp_path / "mine", PAIRS, (16, 16))
    assert init(model, "mine") == 0
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) | {"data": "mine/"}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    Image.new("RGB", (16, 24)).save(tmp_path / "mine/rejected/a.png")
    capsys.readouterr()
    assert main(["check", "run.json"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mine: ") and "$[" not in said
    assert "write a data set file with `flowhooks init --data mine --model ...`" in said


def test_a_broken_file_is_named_with_its_folder(model, tmp_path, capsys):
    folder = write(tmp_path / "mine", PLAIN)
    (folder / "a.png").write_bytes(b"no image")
    assert init(model, "mine") == 2
    assert "mine: files that cannot be used (1): a.png" in capsys.readouterr().err


def test_a_run_is_made_to_fit_the_card(model, tmp_path, capsys):
    write(tmp_path / "mine", PLAIN)
    assert init(model, "mine", "--gpu", "515MiB") == 0
    assert "and fits" in capsys.readouterr().out
    run = load_run("run.json")
    assert (run.training["train_batch_size"], run.training["gradient_accumulation_steps"]) == (2, 2)


def test_a_card_that_nothing_fits_is_refused(model, tmp_path, capsys, monkeypatch):
    """What is counted is tested with the memory plan."""
    none = Fit(fits=False, sentence="needs 4.0 GiB and does not fit a card of 1.0 GiB")
    monkeypatch.setattr("flowhooks.starter.card.plan_memory", lambda *_: SimpleNamespace(needs=lambda: None))
    monkeypatch.setattr("flowhooks.starter.card.fitting", lambda *_: none)
    write(tmp_path / "mine", PLAIN)
    assert init(model, "mine", "--gpu", "1") == 2
    assert "does not fit a card of 1.0 GiB; name a larger card" in capsys.readouterr().err
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("fetching", [True, False], ids=["no network", "HF_HUB_OFFLINE"])
def test_a_model_that_is_not_here_is_not_verified(fetching, tmp_path, capsys, request):
    if fetching:
        request.getfixturevalue("online")
    write(tmp_path / "mine", PLAIN)
    assert init("stabilityai/stable-diffusion-3.5-medium", "mine", "--gpu", "24") == 0
    said = capsys.readouterr().out
    assert "is not on this disk" in said and "could not be verified" in said
    assert "settings of the model as in examples/" in said
    run = load_run("run.json", complete=True)
    assert run.model["dtype"] == "bf16" and run.model["gradient_checkpointing"]


def test_methods_that_need_more_than_a_folder_are_not_offered():
    assert {"flow_dpo", "sft", "anyflow"} <= set(methods_offered())
    assert not {"flow_grpo", "flow_opd", "adjoint_matching"} & set(methods_offered())

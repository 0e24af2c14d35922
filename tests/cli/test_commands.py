"""Commands in this process: what they print and how they end."""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from flowhooks.cli import main, parser
from flowhooks.documents.schemas import schemas
from flowhooks.errors import FlowhooksWarning, TrainingError
from tests.cli.folders import BLOCKS, COMMANDS, make_run


def test_check_prints_a_plan_and_ok(tmp_path, capsys):
    assert main(["check", str(make_run(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert out.endswith("ok\n")
    assert "timestep_schedule -> mask_reducer -> paired_views -> flow_dpo -> anchor_regularizer" in out
    assert "2 per micro-batch, for main/policy, rejected/policy, main/reference, rejected/reference" in out
    assert "win: 3 images, 3 reference_strict from 'lose', 3 mask from 'mask'" in out
    assert "buckets    a step draws " in out and re.search(r"buckets    \d+x\d+: 3 samples \(3 of 'win'\)", out)
    assert "lora adapter of rank 16, alpha 16, on the attention projections" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "method", [{}, {"method": None}, {"method": {"sft": {}}}, {"hooks": [{"type": "timestep_schedule"}]}]
)
def test_a_run_without_a_method_is_told_to_be_plain_flow_matching(tmp_path, capsys, method):
    run = make_run(tmp_path, **{"hooks": [], **method})
    (tmp_path / "data.json").write_text(json.dumps([{**BLOCKS[0], "conditioning_data": []}]))
    for command in ("check", "explain"):
        assert main([command, str(run)]) == 0
        captured = capsys.readouterr()
        assert captured.out.count("this is plain flow matching") == 1 and captured.err == ""
        assert "a `method` other than `sft` learns something else" in captured.out


def test_train_says_the_same_before_it_begins(tmp_path, capsys, monkeypatch):
    told = []

    def begins(*_, **__):
        told.append(capsys.readouterr().out)
        raise TrainingError("stopped here")

    monkeypatch.setattr("flowhooks.train.train", begins)
    for hooks in ([], [{"type": "flow_dpo"}]):
        folder = tmp_path / str(len(hooks))
        folder.mkdir()
        run = make_run(folder, hooks=hooks)
        assert main(["train", str(run)]) == 1
    assert [each.count("this is plain flow matching") for each in told] == [1, 0]


def test_check_tells_problems_of_machine_data_and_plan_together(tmp_path, capsys, monkeypatch):
    model = {"pretrained_model_name_or_path": "digit", "attention_backend": "sage"}
    run = make_run(tmp_path, model=model, hooks=[{"type": "flow_dpo"}, {"type": "flow_dpo", "beta": 2}])
    (tmp_path / "lose" / "1.png").unlink()
    assert main(["check", str(run)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert any("$.model.attention_backend: 'sage' cannot be used: it has no backward pass" in line for line in lines)
    assert any("$.model.pretrained_model_name_or_path: there is no folder 'digit'" in line for line in lines)
    assert any("$.hooks[1]: `flow_dpo` cannot be in one run with `flow_dpo` (at $.hooks[0])" in line for line in lines)
    assert any("data.json: $[1]" in line for line in lines)
    assert "Traceback" not in captured.err


def test_check_names_what_a_hook_needs_and_the_data_lacks(tmp_path, capsys):
    run = make_run(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps([{**BLOCKS[0], "conditioning_data": []}]))
    assert main(["check", str(run), "--set", "adapter=null", "--set", "training.trainable=transformer"]) == 2
    err = capsys.readouterr().err
    assert "$.hooks[1]: `mask_reducer` needs masks in the data" in err
    assert "$.hooks[2]: `flow_dpo` needs a reference" in err
    assert "`paired_views` needs a rejected side of the data" in err


def test_check_audits_a_data_set_file(tmp_path, capsys):
    make_run(tmp_path)
    file = tmp_path / "data.json"
    assert main(["check", str(file)]) == 0
    out = capsys.readouterr().out
    assert "data       win: 3 images, 3 reference_strict from 'lose', 3 mask from 'mask'" in out and out.endswith(
        "ok\n"
    )
    assert "model" not in out
    assert main(["check", str(file), "--set", "training.seed=1"]) == 2
    assert "--set and --resume go with a run file" in capsys.readouterr().err
    (tmp_path / "lose" / "1.png").unlink()
    assert main(["check", str(file)]) == 2
    alone = capsys.readouterr()
    assert alone.out == "" and "data.json: $[1].instance_data_dir: 1 of 3 images of 'win'" in alone.err
    assert main(["check", str(tmp_path / "run.json")]) == 2
    assert capsys.readouterr().err == alone.err


@pytest.mark.parametrize("form", ["list", "object"])
def test_check_tells_what_is_wrong_with_a_data_set_file(tmp_path, capsys, form):
    blocks = [{**BLOCKS[0], "captoin_strategy": "filename"}]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(blocks if form == "list" else {"datasets": blocks}))
    assert main(["check", str(file)]) == 2
    assert "unknown key 'captoin_strategy'; did you mean 'caption_strategy'?" in capsys.readouterr().err


def test_sample_looks_on_the_disk_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    for name, words in (
        ("runs/digist", ("there is no folder 'runs/digist', though 'runs' is here; did you mean 'digits'?",)),
        ("runs/digits", ("runs/digits: holds no run.json and no model_index.json", "a run's output folder")),
        ("digist", ("there is no folder 'digist'", "no Hub id")),
        ("digits:smal", ("'digits:smal' is no embedded pipeline",)),
    ):
        assert main(["sample", name, "--prompt", "a"]) == 2
        err = capsys.readouterr().err
        assert all(word in err for word in words) and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("kind", ["csv", "parquet", "imagefolder", "webdataset", "huggingface"])
def test_of_a_table_that_cannot_be_read_no_column_is_missed(tmp_path, capsys, kind):
    run = make_run(tmp_path)
    (tmp_path / "broken").write_text("no table")
    for command, named in product(("check", "train"), ("not/in/here", "broken", "win/*.tar")):
        (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "type": kind, "instance_data_dir": named}]))
        assert main([command, str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "data.json: $[0].instance_data_dir: " in line


def test_our_own_warnings_are_one_line_without_code(monkeypatch, capsys):
    def warn(args):
        for kind in (FlowhooksWarning, UserWarning):
            print(warnings.formatwarning(kind("look here"), kind, "code.py", 3, "code"), end="")
        return 0

    usual = warnings.formatwarning
    monkeypatch.setattr("flowhooks.commands.env.run", warn)
    assert main(["env"]) == 0 and warnings.formatwarning is usual
    assert capsys.readouterr().out == "warning: look here\ncode.py:3: UserWarning: look here\n  code\n"


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


@pytest.mark.parametrize("number", FULL)
@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_is_told_with_its_file_and_how_to_go_on(tmp_path, capsys, monkeypatch, number, named):
    """Whoever was writing: while it writes, the system does not say into what."""
    file = tmp_path / "out" / "logs" / "events"
    error = OSError(number, os.strerror(number), *([str(file)] if named else []))

    @contextmanager
    def begun(run, *_):
        (Path(run.output_dir) / "checkpoint-1").mkdir(parents=True)
        raise error
        yield

    monkeypatch.setattr("flowhooks.train.loop.prepared", begun)
    run = make_run(tmp_path)
    assert main(["train", str(run)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == [
        f"to resume: flowhooks train {run} --resume latest",
        f"{file if named else tmp_path / 'out'}: the disk is full ({error}); "
        "free some space or choose another `output_dir`, then start again with `--resume latest`",
    ]


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_under_another_command(tmp_path, capsys, monkeypatch, number):
    def full(args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("flowhooks.commands.inspect.run", full)
    assert main(["inspect", "data.json", "--output", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told == f"{tmp_path}: {os.strerror(number)}; the disk is full: free some space, then start again\n"


def test_another_error_of_the_system_is_no_full_disk(tmp_path, capsys, monkeypatch):
    @contextmanager
    def begun(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")
        yield

    monkeypatch.setattr("flowhooks.train.loop.prepared", begun)
    assert main(["train", str(make_run(tmp_path))]) == 1
    assert capsys.readouterr().err.endswith("somewhere: Permission denied\n")


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_set_that_takes_the_rejected_sides_from_all_is_named(tmp_path, capsys, command):
    """Before weights load: the pipeline's folder of this run holds none."""
    run = make_run(tmp_path)
    plain = {"id": "plain", "instance_data_dir": "lose"}
    (tmp_path / "data.json").write_text(json.dumps([*BLOCKS, plain]))
    assert main([command, str(run)]) == 2
    err = capsys.readouterr().err
    assert "`paired_views` needs a rejected side of the data" in err
    assert "data.json: $: 3 of 6 samples have no rejected side, those of 'plain', so none is offered" in err


def test_check_warns_of_data_that_no_hook_uses(tmp_path, capsys):
    run = make_run(tmp_path, hooks=[{"type": "flow_dpo"}])
    assert main(["check", str(run)]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "the data gives 'mask', but no hook uses it; add a mask_reducer" in warnings[0]


@pytest.mark.parametrize(
    "override, path",
    [
        ("model.pretrained_model_name_or_path=./nowhere", "$.model.pretrained_model_name_or_path"),
        ("model.pretrained_model_name_or_path={here}/win", "$.model.pretrained_model_name_or_path"),
        ("model.pretrained_model_name_or_path={here}/run.json", "$.model.pretrained_model_name_or_path"),
        ("adapter.init_from=./nowhere", "$.adapter.init_from"),
    ],
)
def test_check_looks_for_the_files_a_run_names(tmp_path, capsys, override, path):
    run = make_run(tmp_path)
    assert main(["check", str(run), "--set", override.format(here=tmp_path)]) == 2
    assert f"{path}: " in capsys.readouterr().err


def test_check_looks_for_the_files_of_teachers(tmp_path, capsys, online):
    teachers = {"here": "./nowhere", "there": "owner/name", "parked": {"path": f"{tmp_path}/win", "parked": True}}
    run = make_run(tmp_path, hooks=[], method={"flow_opd": {"teachers": teachers}})
    assert main(["check", str(run)]) == 2
    error = capsys.readouterr().err
    assert "$.method.flow_opd.teachers.here: nowhere: no such file or folder" in error
    assert "$.method.flow_opd.teachers.parked: " in error and "teachers.there" not in error


def test_check_takes_a_hub_id_without_looking_it_up(tmp_path, online):
    override = "model.pretrained_model_name_or_path=stabilityai/stable-diffusion-3.5-medium"
    assert main(["check", str(make_run(tmp_path)), "--set", override]) == 0


def test_explain_says_what_is_on_in_the_loss(tmp_path, capsys):
    held = "adapter.training_adapter=owner/name/held.safetensors"
    assert main(["explain", str(make_run(tmp_path)), "--set", held]) == 0
    out = capsys.readouterr().out
    assert "the training adapter owner/name/held.safetensors is on in the loss at strength 1, off in every image" in out
    assert "reference   the base model, its adapter off and the training adapter on" in out


def test_fp16_needs_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flowhooks.checks.machine.has_accelerator", lambda: False)
    assert main(["check", str(make_run(tmp_path)), "--set", "training.mixed_precision=fp16"]) == 2
    assert "'fp16' needs a GPU" in capsys.readouterr().err


def test_explain_shows_expansion_slots_forwards_and_beta(tmp_path, capsys):
    run = make_run(tmp_path, hooks=[], method={"flow_dpo": {"beta": 2, "anchor_alpha": 0.1, "mask_dilate": 1}})
    assert main(["explain", str(run)]) == 0
    out = capsys.readouterr().out
    assert '{"type": "mask_reducer", "mask_dilate": 1}    from $.method.flow_dpo' in out
    assert '{"type": "paired_views"}    (implied by $.method.flow_dpo)' in out
    rows = {
        line.split()[0]: line.split()[2:]
        for line in out.split("slots, in")[1].split("forwards")[0].splitlines()[1:]
        if line
    }
    assert rows["source"] == ["(default)"] and rows["objective"] == ["flow_dpo"]
    assert rows["views"] == ["timestep_schedule", "->", "mask_reducer", "->", "paired_views"]
    assert "forwards    2 per micro-batch" in out
    assert "2 under 'sum' equals, under 'mean', 2 times N" in out and "524,288" in out


def test_explain_counts_the_latents_of_this_run_where_it_knows_them(tmp_path, capsys):
    run = make_run(tmp_path)
    assert main(["explain", str(run)]) == 0
    assert "1024x1024 images, for example" in capsys.readouterr().out
    blocks = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps([{**blocks[0], "resolution": [64, 32]}, *blocks[1:]]))
    (tmp_path / "model/vae").mkdir(exist_ok=True)
    for vae, told in (
        ({"latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"] * 2, "block_out_channels": [8, 8]}, 4 * 512),
        ({"z_dim": 16, "scale_factor_spatial": 16}, 16 * 2 * 4),
    ):
        (tmp_path / "model/vae/config.json").write_text(json.dumps(vae))
        assert main(["explain", str(run)]) == 0
        assert f"N is {told:,} for 32x64 images of this run, so there" in capsys.readouterr().out
    for model, told in (
        ("digits", "N is 512 for 32x64 images of this run, so there"),
        (
            "nobody/nothing",
            "N is 512 for 32x64 images of this run with latents of 16 channels at 1/8 of the size, for example",
        ),
    ):
        assert main(["explain", str(run), "--set", f"model.pretrained_model_name_or_path={model}"]) == 0
        assert told in capsys.readouterr().out


def test_explain_counts_views_one_by_one_where_they_are_not_batched(tmp_path, capsys):
    assert main(["explain", str(make_run(tmp_path)), "--set", "training.batch_views=false"]) == 0
    out = capsys.readouterr().out
    assert "forwards    4 per micro-batch" in out and "divided by N" in out


def test_explain_takes_a_list_of_hooks_for_somebody_elses_loop(tmp_path, capsys):
    path = tmp_path / "hooks.json"
    path.write_text('{"hooks": [{"type": "flow_dpo"}]}')
    assert main(["explain", str(path)]) == 0
    assert "flow_dpo" in capsys.readouterr().out


def test_schema_lists_prints_and_writes(tmp_path, capsys):
    assert main(["schema"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(schemas())
    for name in ("hooks/flow_dpo", "hooks/flow_dpo.schema.json"):
        assert main(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out) == schemas()["hooks/flow_dpo"]
    assert main(["schema", "hook/flow_dpo"]) == 2
    assert "did you mean 'hooks/flow_dpo'?" in capsys.readouterr().err
    assert main(["schema", "--write", str(tmp_path)]) == 0
    for name, schema in schemas().items():
        assert json.loads((tmp_path / f"{name}.schema.json").read_text()) == schema


def test_schema_never_replaces_a_file_unasked(tmp_path, capsys):
    (tmp_path / "run.schema.json").write_text("mine")
    assert main(["schema", "--write", str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["run.schema.json"]
    assert (tmp_path / "run.schema.json").read_text() == "mine"
    assert main(["schema", "--write", str(tmp_path), "--force"]) == 0
    assert main(["schema", "--write", str(tmp_path)]) == 0
    assert "0 of" in capsys.readouterr().out.splitlines()[-1]


def test_env(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"] and found["attention_backends"]["native"] is None
    assert found["devices"][0].startswith("cpu")
    assert main(["env"]) == 0
    assert "native: usable" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_arguments_reach_their_commands():
    read = parser().parse_args
    args = read(
        [
            "sample",
            "m",
            "--prompt",
            "a",
            "--prompt",
            "b",
            "--lora",
            "l",
            "--steps",
            "4,8",
            "--guidance-scale",
            "1",
            "--seed",
            "7",
        ]
    )
    assert (args.model, args.prompt, args.lora, args.steps, args.guidance_scale, args.seed) == (
        "m",
        ["a", "b"],
        "l",
        [4, 8],
        1.0,
        7,
    )
    assert (args.num_images, args.height, args.width, args.output) == (1, None, None, None)
    args = read(["export", "l", "--format", "kohya", "--output", "o"])
    assert (args.adapter, args.format, args.output) == (Path("l"), "kohya", Path("o"))
    args = read(["train", "r", "--set", "a=1", "--set", "b=2", "--resume", "latest", "--no-progress"])
    assert (args.run, args.overrides, args.resume, args.progress) == ("r", ["a=1", "b=2"], "latest", False)
    assert (
        read(["--debug", "check", "r"]).debug
        and read(["check", "r", "--debug"]).debug
        and not read(["check", "r"]).debug
    )

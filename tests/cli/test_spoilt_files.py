"""`export` and `merge` refuse files that are not as they were written, and arguments that would do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import build_adapter
from flowhooks.cli import main
from tests.adapters.helpers import section, train_randomly, transformer

QUERY, VALUE = ".0.attn.to_q", ".0.attn.to_v"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two LoRAs whose alpha is not their rank, and what they are on."""
    place = tmp_path_factory.mktemp("files")
    transformer().save_pretrained(place / "model" / "transformer")
    for name, kind in (("one", "lora"), ("two", "lora"), ("lycoris", "lycoris-locon"), ("loha", "loha")):
        adapter = build_adapter(transformer(), section(kind, rank=2, alpha=4.0, target_modules=["to_q", "to_v"]))
        train_randomly(adapter, seed=len(name))
        adapter.save(place / name, {})
    return place


def content(folder, name="one"):
    (file,) = (folder / name).glob("*.safetensors")
    with safe_open(file, "pt") as handle:
        return file, load_file(file), dict(handle.metadata())


def lost(tensors, header):
    return {key: t for key, t in tensors.items() if not any(part in key for part in (VALUE, "_0_attn_to_v"))}, header


def strange(tensors, header):
    renamed = {key.replace(QUERY, ".0.attn.to_q9"): t for key, t in tensors.items()}
    return renamed, {key: value.replace(QUERY, ".0.attn.to_q9") for key, value in header.items()}


def zeros(tensors, header):
    return {key: t * 0 if "lora_B" in key or "hada_w1_a" in key else t for key, t in tensors.items()}, header


def edited(key, name, value):
    def change(tensors, header):
        return tensors, {**header, key: json.dumps({**json.loads(header[key]), name: value})}

    return change


SPOILT = {
    "a layer that its configuration names is lost": ("one", lost, f"no weights for `transformer_blocks{VALUE}`"),
    "a layer that its header lists is lost": ("lycoris", lost, f"no weights for `transformer_blocks{VALUE}`"),
    "a layer that the network lacks": ("one", strange, "to_q9` changes a weight of shape [32, 32], and SD3"),
    "all zeros": ("one", zeros, "changes nothing, a matrix of every layer is all zeros"),
    "all zeros of another kind": ("loha", zeros, "changes nothing, a matrix of every layer is all zeros"),
    "alpha for Diffusers": (
        "one",
        edited("lora_adapter_metadata", "transformer.lora_alpha", 8),
        "`lora_alpha` is 8, and 2 by",
    ),
    "alpha of training": ("one", edited("flowhooks.trained", "transformer.lora_alpha", 8), "`alpha` is 8, and 4.0 by"),
    "alpha of the section": (
        "one",
        edited("flowhooks.adapter", "alpha", 8.0),
        "and 8.0 by the file's header `flowhooks.adapter`",
    ),
    "rank of the section": ("one", edited("flowhooks.adapter", "rank", 4), "`rank` is 2, and 4 by"),
    "alpha of another kind": (
        "loha",
        edited("flowhooks.adapter", "alpha", 8.0),
        "and 8.0 by the file's header `flowhooks.adapter`",
    ),
}


@pytest.mark.parametrize("command", ["export", "merge"])
@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_is_not_as_it_was_written(case, command, folder, tmp_path, capsys):
    name, change, words = SPOILT[case]
    file, tensors, header = content(folder, name)
    (tmp_path / "spoilt").mkdir()
    save_file(*change(tensors, header)[:1], tmp_path / "spoilt" / file.name, change(tensors, header)[1])
    for beside in (folder / name).glob("*.json"):
        (tmp_path / "spoilt" / beside.name).write_bytes(beside.read_bytes())
    out = ["--output", str(tmp_path / "out.safetensors")]
    more = ["--format", "lycoris"] if command == "export" else [str(folder / "two"), "--method", "svd"]
    assert main([command, str(tmp_path / "spoilt"), *more, *out]) == 2
    err = capsys.readouterr().err
    assert words in err and "spoilt" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", ["export", "merge"])
def test_foreign_names_ask_for_the_model(command, folder, tmp_path, capsys):
    _, tensors, _ = content(folder)
    renamed = {key.replace("transformer.transformer_blocks", "lora_unet_joint_blocks"): t for key, t in tensors.items()}
    save_file(renamed, tmp_path / "foreign.safetensors")
    more = ["--method", "cat", "--output", str(tmp_path / "out")] if command == "merge" else []
    assert main([command, str(tmp_path / "foreign.safetensors"), *more]) == 2
    assert "`export` and `merge` take its folder with `--model`" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "merge"])
def test_an_unfinished_run_says_so_and_names_its_checkpoint(command, folder, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    more = ["--method", "cat", "--output", str(tmp_path / "out")] if command == "merge" else []
    assert main([command, str(run), *more]) == 2
    assert (
        "has written no weights yet; finish it with `flowhooks train ... --resume latest`." in capsys.readouterr().err
    )
    for step in (4, 12):
        (run / f"checkpoint-{step}").mkdir()
        file, tensors, header = content(folder)
        save_file(tensors, run / f"checkpoint-{step}" / file.name, header)
    assert main([command, str(run), *more]) == 2
    assert f"or give its checkpoint {run / 'checkpoint-12'}." in capsys.readouterr().err
    assert main([command, str(run / "checkpoint-12"), *more]) == 0
    (run / "pipeline").mkdir()
    assert main([command, str(run), *more]) == 2
    assert "trained the whole network" in capsys.readouterr().err


#: Arguments -> words of the refusal.
IDLE = {
    "a LoRA into a LoRA": (["export", "{one}", "--as-lora", "2"], "is a LoRA already"),
    "a LoRA for Diffusers into a LoRA": (
        ["export", "{one}", "--format", "diffusers", "--as-lora", "2"],
        "is a LoRA already",
    ),
    "a model for a merged run": (
        ["export", "{run}", "--format", "merged", "--model", "{model}"],
        "has no use for --model; leave it out",
    ),
    "options of files for a network": (
        ["export", "{run}", "--format", "merged-network", "--as-lora", "2", "--leave-out"],
        "has no use for --as-lora and --leave-out; leave them out",
    ),
    "a model for AnyFlow": (["export", "{run}", "--format", "anyflow", "--model", "{model}"], "no use for --model"),
    "a text file": (["export", "{one}", "--output", "{out}.txt"], "ends like a file, and a folder would be made of it"),
    "a text file to merge into": (["merge", "{one}", "--method", "cat", "--output", "{out}.pt"], "ends like a file"),
    "a merged file": (
        ["export", "{run}", "--format", "merged", "--output", "{out}.safetensors"],
        "ends like a file, and a folder would be made of it; name a folder",
    ),
    "an AnyFlow file": (["export", "{run}", "--format", "anyflow", "--output", "{out}.ckpt"], "ends like a file"),
}


@pytest.mark.parametrize("case", IDLE)
def test_arguments_that_would_do_nothing_or_something_else(case, folder, tmp_path, capsys):
    argv, words = IDLE[case]
    run = tmp_path / "run"
    run.mkdir()
    places = {"one": folder / "one", "model": folder / "model", "run": run, "out": tmp_path / "out"}
    before = sorted(folder.rglob("*"))
    assert main([each.format(**places) for each in argv]) == 2
    assert words in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before and list(tmp_path.iterdir()) == [run]


def test_a_folder_with_a_version_and_a_file_to_merge_into(folder, tmp_path, capsys):
    one = str(folder / "one")
    assert main(["merge", one, "--method", "cat", "--output", str(tmp_path / "v1.5")]) == 0
    assert (tmp_path / "v1.5" / "pytorch_lora_weights.safetensors").is_file()
    assert main(["merge", one, "--method", "cat", "--output", str(tmp_path / "mine.safetensors")]) == 0
    (tmp_path / "lora.new").mkdir()
    assert main(["export", one, "--format", "kohya", "--output", str(tmp_path / "lora.new")]) == 0
    assert {
        Path(each.split()[1].rstrip(":")).name for each in capsys.readouterr().out.splitlines() if "afetensors" in each
    } == {
        "pytorch_lora_weights.safetensors",
        "mine.safetensors",
        "pytorch_lora_weights_kohya.safetensors",
    }
    first, second = (
        load_file(tmp_path / name) for name in ("v1.5/pytorch_lora_weights.safetensors", "mine.safetensors")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


#: Arguments -> words of the refusal.
ODD = {
    "a run for a model": (["export", "{one}", "--model", "{one}"], "one: has no transformer/*.safetensors"),
    "a pipeline for an adapter": (["export", "{pipe}"], "is a pipeline, not an adapter"),
    "a run file to merge": (["export", "{pipe}/model_index.json", "--format", "merged"], "is a file; format 'merged'"),
    "a place below a file": (
        ["export", "{one}", "--output", "{pipe}/model_index.json/x"],
        "x/pytorch_lora_weights_portable.safetensors: is below a file, where a folder is expected",
    ),
    "a place below a file to merge into": (
        ["merge", "{one}", "--method", "cat", "--output", "{pipe}/model_index.json/x"],
        "is below a file, where a folder is expected",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_places(case, folder, tmp_path, capsys):
    argv, words = ODD[case]
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert main([each.format(one=folder / "one", pipe=tmp_path / "pipe") for each in argv]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["export", ""],
        ["export", "a", "--output", ""],
        ["export", "a", "--model", " "],
        ["merge", "a", "", "--method", "cat", "--output", "b"],
        ["merge", "a", "--method", "cat", "--output", ""],
        ["push", ""],
    ],
)
def test_an_empty_place_is_not_the_working_directory(argv, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2 and "expected a file or folder, found an empty string" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["one", "lycoris"])
def test_one_layout_is_right_in_the_same_programs_however_it_was_asked_for(kind, folder, tmp_path, capsys):
    said = []
    for dialect in ("portable", "diffusers") if kind == "one" else ("lycoris",):
        out = tmp_path / f"{dialect}.safetensors"
        assert main(["export", str(folder / kind), "--format", dialect, "--output", str(out)]) == 0
        said.append(capsys.readouterr().out.splitlines()[1])
    page = Path("docs/files.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| sd3 "))
    if kind == "one":
        assert said == [f"right in   {row.split('|')[4].strip()}"] * 2
    else:
        assert said == ["right in   LyCORIS 4.1.3, ComfyUI 0.33.0"]

"""What a valid run becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowhooks.config import hook_defaults, load_run, parse_timesteps, resolve_hook, resolve_run
from flowhooks.errors import ConfigError
from flowhooks.hooks.build import build_assembly, resolved_hooks
from flowhooks.hooks.registry import HOOKS, hook_class
from flowhooks.kernel.hook import Hook
from tests.config.writing import SEED_CONFIG, SEED_DATASETS, written
from tests.hooks.required import REQUIRED

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_examples_are_complete_runs_and_read_back(path, tmp_path):
    run = load_run(path, complete=True)
    again = resolve_run(json.loads(json.dumps(run.document)), tmp_path / "elsewhere" / "run.json", complete=True)
    assert again.document == run.document
    assert [(hook.type, hook.options) for hook in again.hooks] == [(hook.type, hook.options) for hook in run.hooks]
    assert again.provides == run.provides


def test_every_section_is_complete_in_an_empty_run():
    run = resolve_run({}, Path("empty.json"))
    assert run.model["dtype"] == "fp32" and run.model["pipeline_arguments"] == {}
    assert run.adapter == {
        "type": "lora",
        "algo": None,
        "rank": 16,
        "alpha": 16,
        "use_dora": False,
        "dropout": 0.0,
        "target_modules": None,
        "init_from": None,
        "training_adapter": None,
    }
    assert run.training["seed"] == 0 and run.training["trainable"] == "adapter"
    assert run.validation["prompts"] == [] and run.logging["trackers"] == ["tensorboard"]
    assert run.hooks == () and run.data is None and run.push is None
    assert run.output_dir == "runs/empty"


def test_the_example_of_the_digits_keeps_what_it_writes():
    run = load_run(next(path for path in EXAMPLES if path.match("flow_dpo/digits.json")))
    assert [hook.type for hook in run.hooks] == ["flow_dpo", "mask_reducer", "anchor_regularizer"]
    assert [hook.where for hook in run.hooks] == ["$.hooks[0]", "$.hooks[1]", "$.hooks[2]"]
    assert run.hooks[0].options == {**hook_defaults("flow_dpo"), "norm_type": "masked_mean", "auto_beta": True}
    assert run.training["max_train_steps"] == 200
    assert run.provides == {"data:image", "data:rejected", "data:mask"}


def test_the_blocks_of_the_seed_document_are_taken_as_printed(tmp_path):
    written(tmp_path, SEED_DATASETS, "data.json")
    run = load_run(
        written(
            tmp_path,
            {
                "model_type": "lora",
                "distillation_method": "flow_dpo",
                "flow_custom_timesteps": "801,694,548,338",
                "flow_timesteps_mode": "round-robin",
                "distillation_config": SEED_CONFIG,
                "data": "data.json",
            },
        )
    )
    assert [hook.type for hook in run.hooks] == ["flow_dpo", "timestep_schedule"]
    dpo, times = run.hooks
    assert dpo.where == "$.distillation_config.flow_dpo"
    assert dpo.options == {**hook_defaults("flow_dpo"), "auto_beta": True}
    assert times.options["flow_custom_timesteps"] == "801,694,548,338"
    assert times.options["flow_timesteps_mode"] == "round-robin"
    assert run.data is not None and [block["id"] for block in run.data.blocks] == ["preferred", "rejected"]
    assert run.data.source == tmp_path / "data.json"


def test_the_method_key_and_the_documented_aliases_are_one_thing(tmp_path):
    alias = resolve_run({"distillation_method": "flow_dpo", "distillation_config": SEED_CONFIG}, tmp_path / "a.json")
    method = resolve_run({"method": SEED_CONFIG}, tmp_path / "a.json")
    assert [h.options for h in alias.hooks] == [h.options for h in method.hooks]
    bare = resolve_run({"distillation_method": "flow_dpo"}, tmp_path / "a.json")
    assert [(h.type, h.where) for h in bare.hooks] == [("flow_dpo", "$.distillation_method")]
    assert bare.hooks[0].options == hook_defaults("flow_dpo")


def test_flow_dpo_expands_to_a_mask_only_with_masks_and_to_an_anchor_only_with_weight(tmp_path):
    method = {"flow_dpo": {"mask_dilate": 2, "anchor_alpha": 0.1}}
    unmasked = resolve_run({"method": method, "data": SEED_DATASETS}, tmp_path / "a.json")
    assert [hook.type for hook in unmasked.hooks] == ["flow_dpo", "anchor_regularizer"]
    assert unmasked.hooks[1].options == {
        "role": "reference",
        "weight": 0.1,
        "least_weight": None,
        "guidance_scale": 1.0,
        "adapter": None,
    }
    mask = {**SEED_DATASETS[1], "id": "mask", "conditioning_type": "segmentation"}
    masked = resolve_run(
        {"method": {"flow_dpo": {"mask_dilate": 2}}, "data": [*SEED_DATASETS, mask]}, tmp_path / "a.json"
    )
    assert [(hook.type, hook.options) for hook in masked.hooks[1:]] == [("mask_reducer", {"mask_dilate": 2})]


def test_without_known_data_a_method_masks_where_its_options_ask_for_it(tmp_path):
    for options, types in (
        ({}, ["flow_dpo"]),
        ({"norm_type": "masked_mean"}, ["flow_dpo", "mask_reducer"]),
        ({"mask_dilate": 1}, ["flow_dpo", "mask_reducer"]),
    ):
        run = resolve_run({"method": {"flow_dpo": options}}, tmp_path / "a.json")
        assert [hook.type for hook in run.hooks] == types


def test_sft_is_the_engine_without_hooks(tmp_path):
    assert resolve_run({"method": {"sft": {}}}, tmp_path / "a.json").hooks == ()


@pytest.mark.parametrize("type", HOOKS)
def test_defaults_of_a_hook_build_its_class(type):
    hook_class(type, "$.hooks[0]")(**resolve_hook({"type": type, **REQUIRED.get(type, {})}, "$.hooks[0]").options)


def test_timesteps_mode_follows_the_list_where_it_is_not_written():
    assert hook_defaults("timestep_schedule")["flow_timesteps_mode"] == "random"
    listed = resolve_hook({"type": "timestep_schedule", "flow_custom_timesteps": [0.5]}, "$")
    assert listed.options["flow_timesteps_mode"] == "fixed-list"


@pytest.mark.parametrize("value", ["801,694,548,338", [801, 694, 548, 338], "801, 0.694 ,548,338"])
def test_timesteps_as_a_string_or_a_list(value):
    assert parse_timesteps(value) == [0.801, 0.694, 0.548, 0.338]


def test_alpha_takes_the_rank_and_lycoris_an_algorithm():
    adapter = resolve_run({"adapter": {"rank": 4, "alpha": None}}, Path("a.json")).adapter
    assert adapter is not None and adapter["alpha"] == 4
    lycoris = resolve_run({"adapter": {"type": "lycoris"}}, Path("a.json")).adapter
    assert lycoris is not None and lycoris["algo"] == "locon"


def test_remarks_are_dropped_everywhere(tmp_path):
    data = [{"_comment": 1, **SEED_DATASETS[0], "conditioning_data": []}]
    run = load_run(
        written(
            tmp_path,
            {
                "_comment": "why",
                "$comment": "and",
                "training": {"_comment_lr": "x", "seed": 3},
                "hooks": [{"type": "paired_views", "_comment": "x"}],
                "data": data,
            },
        )
    )
    assert run.training["seed"] == 3 and run.hooks[0].options == {}
    assert "comment" not in json.dumps(run.document)


def test_whole_floats_become_integers(tmp_path):
    run = resolve_run({"training": {"max_train_steps": 4e2, "max_grad_norm": 1}}, tmp_path / "a.json")
    assert isinstance(run.training["max_train_steps"], int)


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path / "own"))
    document = {"output_dir": "~/out", "model": {"pretrained_model_name_or_path": "~/model"}}
    run = resolve_run(document, Path("a.json"))
    assert run.output_dir == str(tmp_path / "out")
    assert run.model["pretrained_model_name_or_path"] == str(tmp_path / "model")
    assert run.cache_dir == str(tmp_path / "own" / "cache")
    assert resolve_run({"cache_dir": "here"}, Path("a.json")).cache_dir == "here"


def test_a_byte_order_mark_is_fine(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert load_run(path).hooks == ()


def test_the_caller_keeps_its_document(tmp_path):
    document = {"training": {"seed": 1}, "hooks": [{"type": "flow_dpo"}], "adapter": {"alpha": None}}
    before = json.dumps(document)
    resolve_run(document, tmp_path / "a.json")
    assert json.dumps(document) == before


class OwnHook(Hook):
    schema = {
        "type": "object",
        "properties": {"strength": {"type": "number", "minimum": 0, "default": 0.5}},
        "additionalProperties": False,
    }

    def __init__(self, *, strength):
        self.strength = strength


def test_a_hook_of_ones_own_is_checked_by_its_schema_when_it_is_built():
    own = f"{__name__}:OwnHook"
    assert resolve_hook({"type": own}, "$.hooks[0]", allow_imports=True).options == {}
    assembly = build_assembly(resolved_hooks([{"type": own}], allow_imports=True), {"data:image"}, "a.json")
    assert assembly.hooks[-1].strength == 0.5 and assembly.blocks[own] == {"type": own, "strength": 0.5}
    wrong = resolved_hooks([{"type": own, "strenght": 1}], allow_imports=True)
    with pytest.raises(ConfigError, match=r"\$\.hooks\[0\]\.strenght.*did you mean 'strength'"):
        build_assembly(wrong, {"data:image"}, "a.json")


def test_a_hook_of_ones_own_that_is_not_there(tmp_path):
    run = resolve_run({"hooks": [{"type": "no_such_package:Hook"}]}, tmp_path / "a.json", allow_imports=True)
    with pytest.raises(ConfigError, match=r"a\.json: \$\.hooks\[0\]: cannot import"):
        build_assembly(run.hooks, {"data:image"}, "a.json")


def test_a_training_adapter_named_by_its_path_takes_a_strength_on_the_command_line(tmp_path):
    document = {"hooks": [], "adapter": {"training_adapter": "a.safetensors"}}
    found = load_run(written(tmp_path, document), ("adapter.training_adapter.strength=0.5",))
    assert found.adapter["training_adapter"] == {"path": "a.safetensors", "strength": 0.5}
    found = load_run(written(tmp_path, document), ("adapter.training_adapter=b.safetensors",))
    assert found.adapter["training_adapter"] == {"path": "b.safetensors", "strength": 1.0}

"""Every mistake is told at its own place, in words, with a way out; and all of them at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flowhooks import reading
from flowhooks.config import load_datasets, load_run, resolve_hook, resolve_run
from flowhooks.config.rules import _PRECISIONS
from flowhooks.errors import ConfigError
from tests.config.writing import only, problems, written

CASES = [
    ({"modle": {}}, "$.modle", "unknown key 'modle'; did you mean 'model'?"),
    ({"learning_rate": 1e-4}, "$.learning_rate", "did you mean 'training.learning_rate'?"),
    ({"training": {"lr": 1e-4}}, "$.training.lr", "did you mean 'learning_rate'?"),
    ({"training": {"zzz": 1}}, "$.training.zzz", "the nearest keys are "),
    (
        {"hooks": [{"type": "flow_grpo", "rewards": [{"type": "reference_similarity"}], "height": 1}]},
        "$.hooks[0].height",
        "did you mean 'validation.height'?",
    ),
    ({"training": {"odd key": 1}}, '$.training["odd key"]', "unknown key 'odd key'"),
    ({"training": 3}, "$.training", "expected an object, found the number 3"),
    (
        {"training": {"max_train_steps": "16"}},
        "$.training.max_train_steps",
        "expected an integer, found the string '16'; remove",
    ),
    ({"training": {"max_train_steps": 1.5}}, "$.training.max_train_steps", "expected an integer, found the number 1.5"),
    ({"training": {"max_train_steps": True}}, "$.training.max_train_steps", "expected an integer, found true"),
    ({"training": {"max_train_steps": None}}, "$.training.max_train_steps", "expected an integer, found null"),
    ({"training": {"max_train_steps": 0}}, "$.training.max_train_steps", "expected a number at least 1, found 0"),
    (
        {"training": {"use_ema": "true"}},
        "$.training.use_ema",
        "expected true or false, found the string 'true'; remove the quotes",
    ),
    (
        {"training": {"optimizer": "lyon"}},
        "$.training.optimizer",
        "'lyon' is not one of 'adamw', 'adamw8bit', 'adafactor', 'prodigy', 'lion', 'schedule_free', 'muon'; did you "
        "mean 'lion'?",
    ),
    (
        {"training": {"optimizer": "torch optim:X"}},
        "$.training.optimizer",
        "wrong form; expected something like 'torch.optim:SGD'",
    ),
    ({"training": {"max_grad_norm": "null"}}, "$.training.max_grad_norm", "write null without quotes"),
    ({"model": {"dtype": "float32"}}, "$.model.dtype", "did you mean 'fp32'?"),
    ({"model": {"dtype": 16}}, "$.model.dtype", "expected a string, found the number 16"),
    ({"model": {"attention_backend": "xformer"}}, "$.model.attention_backend", "did you mean 'xformers'?"),
    ({"model": {"revision": 5}}, "$.model.revision", "expected a string or null, found the number 5; put it in quotes"),
    ({"model": {"offload": 0}}, "$.model.offload", "expected 'none', 'blocks' or an object, found the number 0"),
    ({"model": {"pretrained_model_name_or_path": ""}}, "$.model.pretrained_model_name_or_path", "the string is empty"),
    (
        {"adapter": {"target_modules": "to_q"}},
        "$.adapter.target_modules",
        "expected a list or null, found the string 'to_q'; put",
    ),
    ({"adapter": {"target_modules": []}}, "$.adapter.target_modules", "expected at least 1 entry, found 0"),
    ({"adapter": {"algo": "loha"}}, "$.adapter.algo", "only type 'lycoris' takes an algorithm"),
    ({"adapter": {"type": "lycoris", "algo": "locom"}}, "$.adapter.algo", "did you mean 'locon'?"),
    ({"logging": {"trackers": ["wandb", "wandb"]}}, "$.logging.trackers", "the string 'wandb' is listed twice"),
    ({"push": {}}, "$.push.repo_id", "is missing; expected a string"),
    (  # The first sentence of its text, not all of it.
        {"hooks": [{"type": "adapter_gate"}]},
        "$.hooks[0].sigma",
        "expected a number (the adapter is off in steps that start above this sigma, in (0, 1]; 1 is pure noise)",
    ),
    ({"push": {"repo_id": "no owner"}}, "$.push.repo_id", "something like 'my-name/my-lora'"),
    ({"hooks": {"type": "flow_dpo"}}, "$.hooks", "expected a list, found an object"),
    ({"hooks": ["flow_dpo"]}, "$.hooks[0]", "expected an object, found the string 'flow_dpo'"),
    ({"hooks": [{"beta": 1}]}, "$.hooks[0].type", "is missing"),
    ({"hooks": [{"type": "flow_dpoo"}]}, "$.hooks[0].type", "did you mean 'flow_dpo'?"),
    (
        {"hooks": [{"type": "flow_dpo", "norm_type": "avg"}]},
        "$.hooks[0].norm_type",
        "'avg' is not one of 'sum', 'mean', 'masked_mean'; did you",
    ),
    ({"hooks": [{"type": "flow_dpo", "btea": 1}]}, "$.hooks[0].btea", "did you mean 'beta'?"),
    ({"hooks": [{"type": "flow_dpo", "beta": 0}]}, "$.hooks[0].beta", "above 0"),
    (
        {"hooks": [{"type": "flow_dpo", "auto_beta_target_gf": 0.5}]},
        "$.hooks[0].auto_beta_target_gf",
        "above 0 and below 0.5, found 0.5",
    ),
    (
        {"hooks": [{"type": "flow_dpo", "auto_beta_target_gf": 0}]},
        "$.hooks[0].auto_beta_target_gf",
        "above 0 and below 0.5, found 0",
    ),
    (
        {"hooks": [{"type": "flow_dpo", "auto_beta_min": 9, "auto_beta_max": 1}]},
        "$.hooks[0].auto_beta_min",
        "9 is above `auto_beta_max` 1",
    ),
    ({"hooks": [{"type": "mask_reducer", "mask_dilate": -1}]}, "$.hooks[0].mask_dilate", "at least 0, found -1"),
    ({"hooks": [{"type": "mask_reducer", "mask_dilate": 0.5}]}, "$.hooks[0].mask_dilate", "expected an integer"),
    ({"hooks": [{"type": "anchor_regularizer", "role": "base"}]}, "$.hooks[0].role", "something like 'reference'"),
    (
        {"hooks": [{"type": "timestep_schedule", "shift": "auto"}]},
        "$.hooks[0].shift",
        "'auto' is not one of 'scheduler'",
    ),
    ({"hooks": [{"type": "timestep_schedule", "shift": 0}]}, "$.hooks[0].shift", "above 0"),
    ({"method": {"flow_dpoo": {}}}, "$.method.flow_dpoo", "did you mean 'flow_dpo'?"),
    ({"method": {"flow_dpo": {"anchor": 1}}}, "$.method.flow_dpo.anchor", "did you mean 'anchor_alpha'?"),
    (
        {"method": {"flow_dpo": {"auto_beta_min": 9, "auto_beta_max": 1}}},
        "$.method.flow_dpo.auto_beta_min",
        "swap the two",
    ),
    ({"distillation_method": "flow-dpo"}, "$.distillation_method", "did you mean 'flow_dpo'?"),
    ({"distillation_config": {"flow_dpo": {}}}, "$.distillation_config", 'add "distillation_method": "flow_dpo"'),
    (
        {"distillation_method": "sft", "distillation_config": {"flow_dpo": {}}},
        "$.distillation_config.flow_dpo",
        "would be ignored",
    ),
    ({"distillation_method": "sft", "method": {"sft": {}}}, "$.distillation_method", "keep one of the two"),
    ({"model_type": "full"}, "$.model_type", "'full' is not one of 'lora'"),
    ({"flow_custom_timesteps": "801,x,338"}, "$.flow_custom_timesteps", "entry 2: 'x' is not a number"),
    ({"flow_custom_timesteps": "801,,338"}, "$.flow_custom_timesteps", "entry 2: '' is not a number"),
    ({"flow_custom_timesteps": "1001"}, "$.flow_custom_timesteps", "out of range"),
    ({"flow_custom_timesteps": "nan"}, "$.flow_custom_timesteps", "out of range"),
    (
        {"flow_custom_timesteps": [801, "694"]},
        "$.flow_custom_timesteps[1]",
        "found the string '694'; remove the quotes",
    ),
    ({"flow_custom_timesteps": [801, 0]}, "$.flow_custom_timesteps[1]", "above 0 and at most 1000, found 0"),
    ({"flow_custom_timesteps": []}, "$.flow_custom_timesteps", "at least 1 entry"),
    ({"flow_timesteps_mode": "round-robin"}, "$.flow_timesteps_mode", "'round-robin' needs a list of times"),
    ({"flow_timesteps_mode": "fixed-list"}, "$.flow_timesteps_mode", "'fixed-list' needs a list of times"),
    (
        {"flow_timesteps_mode": "round_robin", "flow_custom_timesteps": [1]},
        "$.flow_timesteps_mode",
        "did you mean 'round-robin'?",
    ),
    (
        {"flow_timesteps_mode": "random", "flow_custom_timesteps": [1]},
        "$.flow_timesteps_mode",
        "would leave `flow_custom_timesteps` unused",
    ),
    (
        {"hooks": [{"type": "timestep_schedule", "flow_timesteps_mode": "fixed-list"}]},
        "$.hooks[0].flow_timesteps_mode",
        "needs a list",
    ),
    ({"training": {"train_text_encoder": True}}, "$.training.train_text_encoder", "text encoders are not trained"),
    ({"text_encoder_lr": 1e-5}, "$.text_encoder_lr", "text encoders are not trained"),
    ({"training": {"trainable": "transformer"}}, "$.adapter", 'write "adapter": null'),
    ({"adapter": None}, "$.training.trainable", "train the 'transformer'"),
    (
        {"adapter": None, "training": {"trainable": "transformer"}, "model_type": "lora"},
        "$.model_type",
        "`adapter` is null",
    ),
    ({"training": {"lr_warmup_steps": 5}}, "$.training.lr_warmup_steps", "use 'constant_with_warmup'"),
    ({"data": 5}, "$.data", "expected a string, a list, an object or null, found the number 5"),
    ({"data": "nowhere.json"}, "$.data", "there is no such file"),
]


@pytest.mark.parametrize("document, path, words", CASES, ids=[f"{i}-{case[1]}" for i, case in enumerate(CASES)])
def test_one_mistake_is_one_problem_at_its_place(tmp_path, document, path, words):
    problem = only(tmp_path, document)
    assert problem.path == path
    assert words in problem.message
    assert problem.file == str(tmp_path / "run.json")
    assert "schema" not in problem.message


def test_all_at_once_in_the_order_they_are_written(tmp_path):
    found = problems(
        tmp_path,
        {
            "training": {"seed": "0", "lrate": 1},
            "hooks": [{"type": "flow_dpo", "norm_type": "average", "bta": 2}],
            "model": {"dtype": 3},
            "data": "nowhere.json",
        },
    )
    assert [problem.path for problem in found] == [
        "$.training.seed",
        "$.training.lrate",
        "$.hooks[0].norm_type",
        "$.hooks[0].bta",
        "$.model.dtype",
        "$.data",
    ]


def test_contradictions_come_together_with_those_of_hooks_and_data(tmp_path):
    found = problems(
        tmp_path,
        {
            "adapter": None,
            "flow_timesteps_mode": "round-robin",
            "hooks": [{"type": "timestep_schedule", "flow_custom_timesteps": "a"}],
            "data": [{"id": "a", "instance_data_dir": "x", "conditioning_data": "b"}],
        },
    )
    assert {problem.path for problem in found} == {
        "$.data[0].conditioning_data",
        "$.training.trainable",
        "$.flow_timesteps_mode",
        "$.hooks[0].flow_custom_timesteps",
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mixed", ["no", "bf16", "fp16"])
def test_precisions(tmp_path, dtype, mixed):
    document = {"model": {"dtype": dtype}, "training": {"mixed_precision": mixed}}
    if mixed in _PRECISIONS[dtype]:
        assert load_run(written(tmp_path, document)).training["mixed_precision"] == mixed
    else:
        assert only(tmp_path, document).path == "$.training.mixed_precision"


@pytest.mark.parametrize(
    "text, words, place",
    [
        ('{"a" 1}', "not valid JSON: a colon is missing after the key", ":1:6"),
        ('{\n  "a": 1\n  "b": 2}', "a comma is missing before this", ":3:3"),
        ('{"a": 1,}', "there is a comma before the closing bracket; remove the comma", ":1:9"),
        ("[1, 2,\n]", "there is a comma before the closing bracket; remove the comma", ":2:1"),
        ('{"a": 1 // one\n}', "JSON has no comments", ":1:9"),
        ('{\n# one\n"a": 1}', "JSON has no comments", ":2:1"),
        ('{"a": /* one */ 1}', "JSON has no comments", ":1:7"),
        ("{'a': 1}", "single quotes; keys and strings need double quotes", ":1:2"),
        ("{“a”: 1}", "curly quotes", ":1:2"),
        ("{a: 1}", "a key in double quotes is expected here", ":1:2"),
        ('{"a": lora}', "'lora' has no quotes", ":1:7"),
        ('{"a": True}', "True is written true in JSON", ":1:7"),
        ('{"a": [None]}', "None is written null in JSON", ":1:8"),
        ('{"data": "C:\\Users"}', "a backslash begins an escape; write two of them, or /", ":1:13"),
        ('{"a": ${STEPS}}', "variables are not expanded in a file", ":1:7"),
        ('{"a": "b\n"}', "a line break or a tab inside a string", ":1:9"),
        ('{"a": "b', "this quote is never closed", ":1:7"),
        ('{"a": {"b": 1}', "the text ends too early", ":1:15"),
        ('{"a": 1}{"b": 1}', "something follows after the end", ":1:9"),
        ("model:\n  dtype: bf16\n", "this is YAML", ":1:1"),
        ("---\nmodel: digits\n", "this is YAML", ":1:1"),
        ("# my run\nmodel: digits\n", "this is YAML", ":1:1"),
        ('{"training": {"seed": ' + "9" * 400 + "}}", "is too large for a number", ":1:23"),
        ('{"training": {"seed": ' + "9" * 5000 + "}}", "is too large for a number", ":1:23"),
        ('{"training": {"learning_rate": 1e400}}', "is too large for a number", ":1:32"),
        ('{"output_dir": "a\\u0000b"}', "holds a zero byte", ":1:16"),
        ('{"\\ud800": 1}', "half of a surrogate pair", ":1:2"),
        ("", "the file is empty", ":1:1"),
        ('{"seed": 1, "seed": 2}', "'seed' is written twice", ":1:13"),
        ('{"training": {"learning_rate": NaN}}', "NaN is not a JSON number", ":1:32"),
        ('{"training": {"learning_rate": 1e999}}', "1e999 is too large", ":1:32"),
        ("[" * 100_000, "nested too deeply", ""),
        ("[]", "expected an object with the sections of a run", ""),
    ],
)
def test_what_is_no_json_is_told_with_its_place(tmp_path, text, words, place):
    problem = only(tmp_path, text)
    assert words in problem.message
    assert problem.file == f"{tmp_path / 'run.json'}{place}"


@pytest.mark.parametrize(
    "data, words",
    [
        (json.dumps({"model": {}}).encode("utf-16"), "is UTF-16; save the file as UTF-8"),
        (json.dumps({"model": {}}).encode("utf-16-le"), "is UTF-16; save the file as UTF-8"),
        (b" " * (reading.MAX_DOCUMENT + 1), "bytes; more than 16,777,216 are not read, is it the right file?"),
    ],
)
def test_what_is_no_text_is_told(tmp_path, data, words):
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        load_run(tmp_path / "run.json")


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"training": {"seed": 3}}).encode())
    assert load_run(tmp_path / "run.json").training["seed"] == 3


@pytest.mark.parametrize("name", ["run.json", "data.json"])
def test_pipes_and_devices_are_refused_without_waiting(tmp_path, name):
    written(tmp_path, {"data": "data.json"})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="a pipe or a device, not a regular file; name a file"):
        load_run(tmp_path / "run.json")
    with pytest.raises(ConfigError, match=r"data: /dev/zero: is a pipe or a device|/dev/zero: is a pipe or a device"):
        load_datasets("/dev/zero", tmp_path)


PATHS = [
    ("~nosuchuser/a", "there is no home folder '~nosuchuser'; write the path itself"),
    ("a" * 300, "too long for a path, which takes 255 bytes for each name"),
    ("a/" * 3000, "too long for a path"),
    ("${HOME}/a", "'${HOME}' is not expanded; write the path itself, or give it with --set"),
    ("$HOME/a", "'$HOME' is not expanded"),
    ("%USERPROFILE%/a", "'%USERPROFILE%' is not expanded"),
    ("C:\new", "holds a line break or a tab where a folder begins"),
]


@pytest.mark.parametrize("path", ["output_dir", "cache_dir", "data", "model.pretrained_model_name_or_path"])
@pytest.mark.parametrize("value, words", PATHS)
def test_what_can_be_no_path_is_told_at_its_place(tmp_path, path, value, words):
    section, _, key = path.rpartition(".")
    problem = only(tmp_path, {section: {key: value}} if section else {key: value})
    assert problem.path == f"$.{path}" and words in problem.message


@pytest.mark.parametrize("value, words", PATHS)
def test_the_same_in_a_block_and_on_the_command_line(tmp_path, value, words):
    problem = only(tmp_path, {"data": [{"id": "a", "instance_data_dir": value}]})
    assert problem.path == "$.data[0].instance_data_dir" and words in problem.message
    problem = only(tmp_path, {}, (f"adapter.init_from={value}",))
    assert (problem.file, problem.path) == ("--set", "$.adapter.init_from") and words in problem.message
    method = {"flow_opd": {"teachers": {"one": value, "two": {"path": value}}}}
    found = problems(tmp_path, {"method": method})
    told = {problem.path for problem in found if words in problem.message}
    assert told == {"$.method.flow_opd.teachers.one", "$.method.flow_opd.teachers.two.path"}


def test_a_variable_in_place_of_a_number_is_told(tmp_path):
    problem = only(tmp_path, {"training": {"seed": "${SEED}"}})
    assert "expected an integer, found the string '${SEED}'; variables are not expanded" in problem.message


def test_an_unknown_key_has_three_neighbours_and_not_all(tmp_path):
    (problem,) = problems(tmp_path, {"training": {"zzz_every": 1}})
    assert problem.message.count("'") == 8 and "'log_every_steps'" in problem.message
    (problem,) = problems(tmp_path, {"data": [{"id": "a", "instance_data_dir": "a", "qqqq": 1}]})
    assert problem.message.count("'") == 8
    (problem,) = problems(tmp_path, {"k" * 10_000: 1})
    assert len(str(problem)) < 500


def test_files_that_cannot_be_read(tmp_path):
    written(tmp_path, {}, "mine.json")
    for path, words in (
        (tmp_path / "mien.json", "no such file; did you mean 'mine.json'"),
        (tmp_path / "no" / "mine.json", "no folder"),
        (tmp_path, "this is a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_run(path)
    (tmp_path / "latin.json").write_bytes(b'{"_comment": "\xe9"}')
    with pytest.raises(ConfigError, match="byte 14 is not UTF-8"):
        load_run(tmp_path / "latin.json")


def test_a_run_that_is_to_train_names_model_and_data(tmp_path):
    found = problems(tmp_path, {}, complete=True)
    assert [problem.path for problem in found] == ["$.model.pretrained_model_name_or_path", "$.data"]


def test_a_data_set_file_is_told_as_itself(tmp_path):
    data = written(tmp_path, {"datasets": [{"id": "a"}]}, "data.json")
    problem = only(tmp_path, {"data": "data.json"})
    assert (problem.file, problem.path) == (str(data), "$.datasets[0].instance_data_dir")


def test_a_run_from_a_dict_names_its_source():
    with pytest.raises(ConfigError, match=r"^attach\(\): \$\.hooks\[0\]\.beta: expected a number"):
        resolve_run({"hooks": [{"type": "flow_dpo", "beta": "1"}]}, Path("attach()"))


def test_a_single_hook_is_told_below_its_place():
    with pytest.raises(ConfigError, match=r"^\$\.hooks\[3\]\.mask_dilate: expected an integer"):
        resolve_hook({"type": "mask_reducer", "mask_dilate": "1"}, "$.hooks[3]")

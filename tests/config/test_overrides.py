from __future__ import annotations

import pytest

from flowhooks.config import load_run
from tests.config.writing import SEED_DATASETS, only, problems, written

RUN = {"hooks": [{"type": "flow_dpo", "beta": 1}], "training": {"seed": 1}}


def test_values_are_json_or_else_strings(tmp_path):
    run = load_run(
        written(tmp_path, RUN),
        [
            "training.learning_rate=1e-3",
            "hooks[0].beta=500",
            'validation.prompts=["a", "b"]',
            "training.use_ema=true",
            "adapter.alpha=null",
            "output_dir=runs/a=b",
            'model.revision="12"',
            "$.logging.project=mine",
            "method.sft={}",
        ],
    )
    assert run.training["learning_rate"] == 1e-3 and run.training["use_ema"] is True and run.training["seed"] == 1
    assert run.hooks[0].options["beta"] == 500
    assert run.validation["prompts"] == ["a", "b"]
    assert run.output_dir == "runs/a=b" and run.model["revision"] == "12" and run.logging["project"] == "mine"


def test_the_last_of_two_wins(tmp_path):
    assert load_run(written(tmp_path, RUN), ["training.seed=2", "training.seed=3"]).training["seed"] == 3


def test_a_whole_section_can_be_replaced(tmp_path):
    run = load_run(written(tmp_path, RUN), ["adapter=null", 'training={"trainable": "transformer"}', "hooks=[]"])
    assert run.adapter is None and run.hooks == () and run.training["seed"] == 0


@pytest.mark.parametrize(
    "override, path, words",
    [
        ("training.learning_rte=1", "$.training.learning_rte", "did you mean 'learning_rate'?"),
        ("trainin.seed=1", "$.trainin", "did you mean 'training'?"),
        ("training.seed=x", "$.training.seed", "expected an integer, found the string 'x'"),
        ("validation.prompts=hello", "$.validation.prompts", "put it in brackets"),
        ("hooks[0].norm_type=avg", "$.hooks[0].norm_type", "did you mean 'mean'?"),
        ("push.private=true", "$.push.repo_id", "is missing"),
        ("training.learning_rate=NaN", "$.training.learning_rate", "NaN is not a JSON number; write a finite one"),
        ("training=3", "$.training", "expected an object"),
    ],
)
def test_a_wrong_value_is_blamed_on_the_command_line(tmp_path, override, path, words):
    problem = only(tmp_path, RUN, (override,))
    assert (problem.file, problem.path) == ("--set", path)
    assert words in problem.message


@pytest.mark.parametrize(
    "override, words",
    [
        ("training.seed", "has no '='"),
        ("=3", "has no '='"),
        ("hooks[1].beta=1", "$.hooks ends at [0]"),
        ("hooks.beta=1", "is a list; write the number of the entry"),
        ("training[0]=1", "is not a list"),
        ("training.seed.x=1", "is a plain value"),
        ("training..seed=1", "is not a path"),
        ("hooks[x]=1", "is not a path"),
    ],
)
def test_a_place_that_cannot_be(tmp_path, override, words):
    problem = only(tmp_path, RUN, (override,))
    assert problem.file == "--set" and words in problem.message


def test_hooks_of_a_method_are_set_through_it(tmp_path):
    problem = only(tmp_path, {"method": {"flow_dpo": {}}}, ("hooks[0].beta=5",))
    assert "method.<name>.<key>" in problem.message


def test_the_file_keeps_its_own_mistakes(tmp_path):
    found = problems(tmp_path, {"training": {"sed": 1}}, ("training.seed=x", "hooks[4].beta=1"))
    assert {(p.file, p.path) for p in found if p.path} == {
        (str(tmp_path / "run.json"), "$.training.sed"),
        ("--set", "$.training.seed"),
    }
    assert len(found) == 3


def test_a_data_path_is_relative_to_where_it_is_typed(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    written(tmp_path / "here", SEED_DATASETS, "data.json")
    monkeypatch.chdir(tmp_path / "here")
    run = load_run(written(tmp_path / "there", RUN), ["data=data.json"])
    assert run.data is not None and run.data.source == tmp_path / "here" / "data.json"


def test_a_token_is_not_repeated(tmp_path):
    token = "hf_AbCdEfGh1234567890"
    for override in (f"push.token={token}", f"model.revision={token}", f"{token}"):
        found = problems(tmp_path, {"push": {"repo_id": "a/b"}}, (override,))
        assert found and not any(token in str(problem) for problem in found)
        assert all(problem.file == "--set" for problem in found)

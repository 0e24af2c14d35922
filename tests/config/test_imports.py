"""A run names code by import paths: refused without leave, and looked at before it is called."""

from __future__ import annotations

import re
import sys

import pytest

from flowhooks.config import load_run, resolve_hook, resolve_reward, resolve_run
from flowhooks.documents.imports import PATH, imported, imports_in_block, subclass_of
from flowhooks.documents.schemas import schemas
from flowhooks.errors import ConfigError
from tests.config.writing import written

STRANGER = "stranger_package.of_mine:Thing"
CLASSIFIER = {"type": "classifier", "model": STRANGER}
PLACES = {
    "$.hooks[0].type": {"hooks": [{"type": STRANGER, "args": ["touch", "pwned"]}]},
    "$.hooks[0].rewards[1].type": {
        "hooks": [{"type": "flow_grpo", "rewards": [{"type": "ocr", "model": "m"}, {"type": STRANGER}]}]
    },
    "$.hooks[0].rewards[0].model": {"hooks": [{"type": "adjoint_target", "rewards": [CLASSIFIER]}]},
    "$.hooks[0].route": {"hooks": [{"type": "teacher_velocity", "teachers": {"a": "a"}, "route": STRANGER}]},
    "$.method.flow_grpo.rewards[0].type": {
        "method": {"flow_grpo": {"prompts": ["a"], "rewards": [{"type": STRANGER}]}}
    },
    "$.method.adjoint_matching.rewards[0].model": {
        "method": {"adjoint_matching": {"prompts": ["a"], "rewards": [CLASSIFIER]}}
    },
    "$.method.flow_opd.route": {"method": {"flow_opd": {"prompts": ["a"], "teachers": {"a": "a"}, "route": STRANGER}}},
    "$.training.optimizer": {"training": {"optimizer": STRANGER}},
}


@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_by_its_place_unless_it_is_allowed(place, tmp_path):
    file = written(tmp_path, PLACES[place])
    with pytest.raises(ConfigError) as caught:
        load_run(file)
    (problem,) = caught.value.problems
    assert (problem.file, problem.path) == (str(file), place)
    assert STRANGER in problem.message and "--allow-imports" in problem.message
    assert load_run(file, allow_imports=True).document
    assert not any(name.startswith("stranger_package") for name in sys.modules), "reading imports nothing"


def test_on_the_command_line_too(tmp_path):
    with pytest.raises(ConfigError, match=rf"\$\.training\.optimizer.*{STRANGER}"):
        load_run(written(tmp_path, {}), [f"training.optimizer={STRANGER}"])


def test_every_option_that_takes_an_import_path_is_known_here():
    """Each place in a schema that tells of one is a place that is refused."""
    told = {
        (name.partition("/")[2] or name, key)
        for name, schema in schemas().items()
        if not name.startswith("methods/")
        for key, found in _properties(schema)
        if re.search(r"package\.module:", found.get("description", ""))
    }
    known = {("hook", "type"), ("reward", "type"), ("teacher_velocity", "route"), ("classifier", "model")}
    assert told == known | {("run", "optimizer")}


def _properties(schema):
    for key, value in schema.items():
        if key == "properties":
            yield from value.items()
        if isinstance(value, dict):
            yield from _properties(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield from _properties(item)


def test_what_comes_with_flowhooks_and_torch_needs_no_leave(tmp_path):
    rewards = [{"type": "flowhooks.digits.rewards:Ink"}, {"type": "flowhooks.digits.rewards:Legibility"}]
    hook = {"type": "flow_grpo", "rewards": rewards}
    run = resolve_run({"hooks": [hook], "training": {"optimizer": "torch.optim:SGD"}}, tmp_path / "a.json")
    assert run.training["optimizer"] == "torch.optim:SGD"
    for near in ("flowhooks.digits.rewards:deepcopy", "flowhooks.train.loop:train", "torch.optim:SGD"):
        assert list(imports_in_block({"type": near}, "$")) == [("$.type", near)]


def test_blocks_alone():
    with pytest.raises(ConfigError, match=r"\$\.type: 'subprocess:Popen' is code"):
        resolve_hook({"type": "subprocess:Popen", "args": ["touch", "pwned"]}, "$")
    with pytest.raises(ConfigError, match=r"\$\.type: 'subprocess:Popen' is code"):
        resolve_reward({"type": "subprocess:Popen", "args": ["touch", "pwned"]}, "$")


def test_other_options_may_look_like_one():
    block = {"type": "clip_score", "model": "owner:name", "name": "a:b", "pipeline_arguments": {"mode": "a:b"}}
    assert not list(imports_in_block(block, "$"))


def test_what_is_imported_is_of_the_right_kind(tmp_path, monkeypatch):
    (tmp_path / "raises_on_import.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert imported("collections:OrderedDict", subclass_of(dict), "dict").__name__ == "OrderedDict"
    for path, sentence in (
        ("subprocess:Popen", "is no dict, but the class subprocess.Popen; nothing of it was called"),
        ("os:system", "is no dict, but a builtin_function_or_method"),
        ("raises_on_import:Thing", "RuntimeError: no"),
        ("collections:Absent", "Absent"),
        ("no_such_package:Thing", "no_such_package"),
        ("collections", "no ':'"),
    ):
        with pytest.raises(ImportError, match=re.escape(sentence)):
            imported(path, subclass_of(dict), "dict")


@pytest.mark.parametrize("text", ["a:B", "a.b_c:D1", "_a:_b"])
def test_the_form_of_an_import_path(text):
    assert PATH.fullmatch(text)
    assert not any(PATH.fullmatch(other) for other in (f"{text} ", f".{text}", f"{text}.c", f"1{text}", f"{text}:c"))

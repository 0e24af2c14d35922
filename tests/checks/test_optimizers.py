"""Optimisers by name: what stands for each, what is said where its package is missing, and what is warned of."""

from __future__ import annotations

import json

import pytest

from flowhooks.checks import optimizers
from flowhooks.checks.optimizers import NAMED, optimizer_problems, optimizer_warnings
from flowhooks.config import resolve_run
from tests.packaging.test_dependencies import EXTRAS, ROOT


def run_with(tmp_path, **training):
    return resolve_run({"hooks": [], "training": training}, tmp_path / "run.json")


def test_the_schema_offers_every_name_and_no_other():
    schema = json.loads((ROOT / "schemas" / "run.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["training"]["properties"]["optimizer"]["else"]["enum"] == list(NAMED)


@pytest.mark.parametrize("name", [name for name, named in NAMED.items() if named.extra])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None)
    (problem,) = optimizer_problems(run_with(tmp_path, optimizer=name))
    assert problem.path == "$.training.optimizer"
    assert f"pip install 'flowhooks[{NAMED[name].extra}]'" in problem.message
    # What the extra installs is one package, and it is the one that has the module.
    assert len(EXTRAS[NAMED[name].extra]) == 1


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"optimizer": "prodigy"}, "`training.learning_rate` is 0.0001"),
        ({"optimizer": "prodigy", "learning_rate": 1.0}, None),
        ({"optimizer": "schedule_free", "use_ema": True}, "averages already"),
        ({"optimizer": "schedule_free"}, None),
        ({"use_ema": True}, None),
    ],
)
def test_what_is_unlikely_to_be_meant_is_warned_of(tmp_path, training, said):
    told = list(optimizer_warnings(run_with(tmp_path, **training)))
    assert len(told) == (said is not None)
    assert all(said in sentence for sentence in told)

"""`--allow-imports`: without it code is refused by name; check and explain never import it, train looks before it
calls."""

from __future__ import annotations

import json
import shlex

import pytest

from flowhooks.cli import main
from tests.cli.folders import make_run

#: Would leave a file behind when it is imported, and another when it is called.
CODE = """
from pathlib import Path

Path("imported").touch()


class Hook:
    def __init__(self, **options):
        Path("called").touch()


def judge(*arguments, **options):
    Path("called").touch()
"""
GRPO = {"type": "flow_grpo", "rewards": [{"type": "stranger:judge"}]}
PLACES = {
    "$.hooks[0].type": {"hooks": [{"type": "stranger:Hook", "x": 1}]},
    "$.hooks[0].rewards[0].type": {"hooks": [GRPO]},
    "$.training.optimizer": {"training": {"optimizer": "stranger:judge"}},
}


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package of a stranger, beside the run, where Python finds it."""
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["check", "explain", "train"])
@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_and_the_command_that_allows_it_is_told(stranger, place, command, capsys):
    run = make_run(stranger, **PLACES[place])
    more = ["--resume", "latest"] if command == "train" else []
    assert main([command, str(run), *more]) == 2
    err = capsys.readouterr().err
    assert f"{run}: {place}: 'stranger:" in err and "is code outside flowhooks" in err
    told = err.splitlines()[-1].removeprefix("to allow it: ")
    assert shlex.split(told) == ["flowhooks", command, str(run), *more, "--allow-imports"]
    assert not (stranger / "imported").exists()


@pytest.mark.parametrize("command", ["check", "explain"])
def test_allowed_code_is_still_not_imported(stranger, command, capsys):
    """A hook whose slots are not known fills none, and may give what another misses."""
    hooks = [{"type": "stranger:Hook", "rewards": [{"type": "stranger:judge"}]}, {"type": "twin_flow_target"}]
    run = make_run(stranger, hooks=hooks, training={"optimizer": "stranger:judge"})
    assert main([command, str(run), "--allow-imports"]) == 0
    captured = capsys.readouterr()
    assert "$.hooks[0]: 'stranger:Hook' is not imported here; `train` checks its options" in captured.out
    assert "$.hooks[0].rewards[0].type: 'stranger:judge' is not imported here" in captured.out
    assert "$.training.optimizer: 'stranger:judge' is not imported here" in captured.out
    assert not (stranger / "imported").exists()


def test_what_others_write_is_told_beside_code_too(stranger, capsys):
    run = make_run(stranger, hooks=[{"type": "stranger:Hook"}, {"type": "flow_dpo"}, {"type": "flow_dpo", "beta": 2}])
    assert main(["check", str(run), "--allow-imports"]) == 2
    assert "`flow_dpo` cannot be in one run with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        (
            PLACES["$.hooks[0].type"],
            "$.hooks[0]: cannot import the hook 'stranger:Hook': is no subclass of",
        ),
        (PLACES["$.training.optimizer"], "is no subclass of torch.optim.Optimizer, but a function"),
    ],
)
def test_train_looks_at_what_it_imports_before_it_calls_it(stranger, sections, sentence, capsys):
    assert main(["train", str(make_run(stranger, **sections)), "--allow-imports"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (stranger / "called").exists()


def test_sample_of_a_folder_reads_no_code_from_its_run(stranger, capsys):
    """A run that was trained with code of somebody's is drawn with from its weights; here it has none yet."""
    folder = stranger / "finished"
    folder.mkdir()
    document = {"model": {"pretrained_model_name_or_path": "digits"}, "hooks": [{"type": "stranger:Hook"}]}
    (folder / "run.json").write_text(json.dumps(document))
    assert main(["sample", str(folder), "--prompt", "a"]) == 2
    assert "has written no weights yet" in capsys.readouterr().err
    (folder / "run.json").write_text(json.dumps({"model": {"component": 3, "pretrained_model_name_or_path": "digits"}}))
    assert main(["sample", str(folder), "--prompt", "a"]) == 2
    assert "run.json: $.model.component: expected" in capsys.readouterr().err
    assert not (stranger / "imported").exists()

"""The recipes of released models pass `check`, and their tables say what was counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import recipes
from benchmarks.released_models import MODELS, write_released
from flowhooks import cli


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    recipes.write_data(folder)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_recipes_pass_check_against_the_released_configuration(
    model: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], online: None
) -> None:
    """Models of rewards are not on this disk: `check` says that `train` fetches them."""
    monkeypatch.chdir(place)
    folder = write_released(MODELS[model], place / "models" / model)
    bytes_of_bf16 = sum(file.stat().st_size for file in folder.glob("transformer/*.safetensors"))
    assert round(bytes_of_bf16 / 2e9, 1) == MODELS[model].billions
    own = [recipe for recipe in recipes.recipes() if recipes.model_of(recipe) == model]
    assert own
    for recipe in own:
        shutil.copy(recipe, place / "run.json")
        sets = [word for line in recipes.overrides(folder) for word in ("--set", line)]
        assert cli.main(["check", "run.json", *sets]) == 0, recipe
        assert "ok" in capsys.readouterr().out
    shutil.rmtree(folder)


def test_every_model_has_plain_training_and_recipes_name_released_models() -> None:
    names = {f"{recipe.parent.name}/{recipe.stem}" for recipe in recipes.recipes()}
    for model, released in MODELS.items():
        assert any(name.startswith(f"sft/{model}") for name in names), model
        for recipe in recipes.recipes():
            if recipes.model_of(recipe) == model:
                hub = json.loads(recipe.read_text(encoding="utf-8"))["model"]["pretrained_model_name_or_path"]
                assert hub.replace("-base-", "-") == released.hub, recipe


@pytest.mark.parametrize("page", [recipes.RECIPES, recipes.CARDS], ids=lambda page: page.stem)
def test_tables_say_what_was_counted(page: Path) -> None:
    """``python -m benchmarks.recipes`` writes them anew."""
    assert recipes.made(page) == page.read_text(encoding="utf-8")

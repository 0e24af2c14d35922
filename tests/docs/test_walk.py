"""The tutorials, followed from their first line to their last on a tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from flowhooks.manifest import HISTORY
from tests.data.folders import write_image
from tests.docs import walk
from tests.families import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tutorials") / "sd3"
    tiny("sd3").save_pretrained(folder)
    return folder


def images(folder: str, count: int) -> Callable[[], None]:
    """What writes captioned images of the reader's into a folder, once."""

    @cache
    def write() -> None:
        for number in range(count):
            write_image(Path(folder, f"{number:02}.png"), (20, 24), seed=number)
            Path(folder, f"{number:02}.txt").write_text(f"a photo of dog {number}", encoding="utf-8")

    return write


def written(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_first_lora(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert walk.follow("docs/first_lora.md", model, {"inspect": images("photos", 10)}, monkeypatch) == 10
    assert {"pytorch_lora_weights.safetensors", "README.md", HISTORY, "validation"} <= written("runs/sks-dog")
    assert {
        "spaceship.png",
        "sks-dog.safetensors",
        "sks-dog-400.safetensors",
        "look",
        "pictures",
        "earlier",
    } <= written(".")


def test_first_preference_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert walk.follow("docs/first_preference.md", model, {"pairs": images("photos", 10)}, monkeypatch) == 8
    history = Path("runs/no-blots", HISTORY).read_text(encoding="utf-8")
    assert '"flow_dpo_margin": 0.0' in history and "val/flow_dpo_implicit_accuracy" in history
    assert {"fisherman.png", "compared"} <= written(".")


def test_few_steps(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red bicycle\na dog\n", encoding="utf-8")
    assert walk.follow("docs/few_steps.md", model, {}, monkeypatch) == 8
    assert {"flow_map_loader.py", "flowhooks_modules.safetensors"} <= written("runs/few-steps")
    assert {"four_steps.png", "few_steps.safetensors", "steps"} <= written(".")

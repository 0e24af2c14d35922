"""Every command line of the pages runs: here, in a folder as its page has it, or in the test that a table names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import flowhooks
from flowhooks import cli
from tests.data.folders import write_image, write_mask
from tests.docs import pages, walk
from tests.docs.pages import PAGES, ROOT
from tests.docs.test_docs import WALKED
from tests.families import tiny
from tests.train import runs

#: Beginning of a command line -> the test that runs it, for what is long, needs a network, or another model.
ELSEWHERE = {
    "check examples/flow_dpo/digits.json": "tests/packaging/test_wheel.py",
    "check examples/sft/": "tests/docs/test_recipes.py",
    "check my_run.json --gpu": "tests/docs/test_walk.py",
    "check my_run.json --memory": "tests/memory/test_check.py",
    "check my_run.json --resume latest": "tests/train/test_topology.py",
    "convert ": "tests/config/test_elsewhere.py",
    "export runs/mine --format anyflow": "tests/export/test_anyflow.py",
    "export runs/mine --format flow-map": "tests/docs/test_walk.py",
    "init ": "tests/starter/test_draft.py",
    "probe path/to/pipeline --dtype bf16 --offload": "tests/probe/test_offload.py",
    "push ": "tests/acceptance/test_push.py",
    "report ": "tests/report/test_page.py",
    "sample runs/digits-anyflow": "tests/docs/test_walk.py",
    "sample runs/my-edit": "tests/sampling/test_pictures.py",
    "sample runs/songs": "tests/train/test_sound.py",
    "sample runs/my-flight": "tests/sampling/test_pictures.py",
    "train examples/flow_dpo/digits.json": "tests/digits/test_demo.py",
    "train examples/sft/": "tests/docs/test_recipes.py",
}


def elsewhere(line: str) -> str | None:
    return next((test for start, test in ELSEWHERE.items() if line.startswith(start)), None)


HERE = {
    page: [line for line in pages.commands(page) if elsewhere(line) is None] for page in PAGES if page not in WALKED
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of somebody who has read the pages: a model, data, runs that ended, adapters."""
    folder = tmp_path_factory.mktemp("commands")
    model = runs.write_model(folder / "path/to/pipeline")
    tiny("wan").save_pretrained(folder / "path/to/video-pipeline")
    tiny("ace-step").save_pretrained(folder / "path/to/sound-pipeline")
    data = json.loads(runs.write_data(folder).read_text(encoding="utf-8"))
    sections = {"training": {"max_train_steps": 1}, "validation": {"prompts": []}}
    document = runs.document(Path("path/to/pipeline"), Path("my_data.json"), Path("runs/my-run"), **sections)
    document["cache_dir"] = "cache"
    (folder / "my_run.json").write_text(json.dumps(document), encoding="utf-8")
    for name in ("my_data.json", "my_pairs.json"):
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    for number in range(3):
        write_image(folder / f"photos/{number}.png", seed=number)
        (folder / f"photos/{number}.txt").write_text("a photo", encoding="utf-8")
    (folder / "scores.csv").write_text(
        "image,prompt,score\n" + "".join(f"photos/{n}.png,a photo,{n}\n" for n in range(3)), encoding="utf-8"
    )
    (folder / "prompts.jsonl").write_text('{"prompt": "a photo"}\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "my_run.json", "--set", "output_dir=runs/mine"]) == 0
        for name, adapter in {"my-loha": "loha", "my-lokr": "lokr"}.items():
            section = {"type": "lycoris", "algo": adapter, "rank": 2, "alpha": 2}
            with flowhooks.attach(tiny("sd3"), {"adapter": section}) as session:
                for parameter in session.parameters().values():
                    parameter.data.normal_()
                session.adapter.save(folder / "runs" / name, {})
    for copy in ("runs/ocr", "runs/faces", "teachers/ocr", "teachers/geneval"):
        shutil.copytree(folder / "runs/mine", folder / copy)
    assert model.is_dir()
    return folder


@pytest.mark.parametrize("page", [page for page, lines in HERE.items() if lines])
def test_commands_run(page: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "here"
    shutil.copytree(home, place)
    for name in sorted(path.name for path in (place / "win").glob("*.png")):
        write_mask(place / "faces" / name, runs.np.full((16, 16), 255))
    monkeypatch.chdir(place)
    for line in HERE[page]:
        words = walk.small_command(f"flowhooks {line}", Path("path/to/pipeline"))
        swaps = {
            "BASE": "path/to/pipeline",
            "RUN.json": "my_run.json",
            "512": "16",
            "480": "32",
            "832": "32",
            "49": "5",
        }
        words = [swaps.get(word, word) for word in words]
        if "--duration" in words:
            words[words.index("--duration") + 1] = "0.2"
        if "--rank" in words:
            words[words.index("--rank") + 1] = "2"
        words = [word.replace("resolution=512", "resolution=16") for word in words]
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        if "--output" in words:
            shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
        if words[0] == "train" and "--resume" not in words:
            shutil.rmtree("runs/my-run", ignore_errors=True)
        assert cli.main(words) == 0, f"{page}: flowhooks {line}"


@pytest.mark.parametrize("page", PAGES)
def test_the_others_have_a_test(page: str) -> None:
    for line in pages.commands(page):
        assert elsewhere(line) is None or (ROOT / elsewhere(line)).is_file(), line

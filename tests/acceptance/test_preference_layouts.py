"""Preferences in the layouts that people have them in: each passes `check`, `inspect` and two steps of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.acceptance.user import User
from tests.data.folders import audit_in, load
from tests.data.sources.kept import picture
from tests.train.runs import history

PAIRS = {"type": "flow_dpo", "norm_type": "mean", "beta": 50.0}


def written(file: Path, seed: int, text: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(seed))
    if text is not None:
        file.with_suffix(".caption").write_text(text)


def pick_a_pic(folder: Path) -> dict[str, Any]:
    """Bytes in Parquet; the second image wins, the first, a tie, no labels at all, a label that is missing."""
    votes = [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (None, None), (1.0, None)]
    table = {f"jpg_{side}": [picture(2 * i + side) for i in range(len(votes))] for side in (0, 1)}
    table |= {f"label_{side}": [vote[side] for vote in votes] for side in (0, 1)}
    pq.write_table(pa.table({**table, "caption": [f"prompt {i}" for i in range(len(votes))]}), folder / "votes.parquet")
    columns = {"image": ["jpg_0", "jpg_1"], "preference": ["label_0", "label_1"], "caption": "caption"}
    return {"type": "parquet", "instance_data_dir": "votes.parquet", "columns": columns}


def suffixes(win: str, lose: str, caption: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        for i, name in enumerate("ab"):
            written(folder / f"files/{name}{win}.png", 2 * i)
            written(folder / f"files/{name}{lose}.png", 2 * i + 1)
            (folder / f"files/{name}{caption}").write_text(f"prompt {name}")
        return {"instance_data_dir": "files", "pair_names": [f"*{win}", f"*{lose}"]}

    return make


def sub_folders(win: str, lose: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        for i, name in enumerate("ab"):
            written(folder / f"files/{win}/{name}.png", 2 * i, f"prompt {name}")
            written(folder / f"files/{lose}/{name}.png", 2 * i + 1)
        return {"instance_data_dir": "files", "pair_names": [f"{win}/*", f"{lose}/*"]}

    return make


def ranked(folder: Path) -> dict[str, Any]:
    rows = [(f"files/{i}.png", "prompt", place) for i, place in enumerate((2, 1, 3))]
    for seed, (file, *_) in enumerate(rows):
        written(folder / file, seed)
    lines = ["image_path,prompt,rank", *(",".join(map(str, row)) for row in rows)]
    (folder / "ranks.csv").write_text("\n".join(lines))
    return {"type": "csv", "instance_data_dir": "ranks.csv", "columns": {"order": "rank"}, "pairs": "adjacent"}


LAYOUTS = {
    "Pick-a-Pic": pick_a_pic,
    "_w and _l, one text a pair": suffixes("_w", "_l", ".txt"),
    "other suffixes": suffixes("-good", "-bad", "-good.caption"),
    "w and l": sub_folders("w", "l"),
    "folders with numbers": sub_folders("10_dog", "1_dog worse"),
    "a ranking": ranked,
}


#: What `check` says of a layout beside the number of its pairs.
SAID = {
    "Pick-a-Pic": "2 pairs, of which 1 prefers 'jpg_1' to 'jpg_0'; 1 tie left out; "
    "2 rows without a preference left out",
    "a ranking": "2 pairs (adjacent) of 3 images in 1 group",
}


def of_data(user: User, blocks: list[dict[str, Any]], hook: dict[str, Any], steps: int = 2) -> None:
    user.edit_blocks(lambda given: given.__setitem__(slice(None), blocks))
    user.write(hooks=[hook], training={"max_train_steps": steps, "checkpointing_steps": steps})


def passes(user: User, *lines: str, steps: int = 2) -> None:
    before = user.state()
    checked = user.command("check", str(user.run))
    assert checked.code == 0, checked.err
    for line in lines:
        assert line in checked.out
    assert user.command("inspect", str(user.data / "data.json"), "--output", str(user.folder / "look")).code == 0
    assert user.train().code == 0
    assert [each["step"] for each in history(user.out)] == list(range(1, steps + 1)) and user.state() == before


def test_pairs(user):
    """All layouts in one run, whose steps draw two pairs each: every set is trained on. Each passes on its own too."""
    blocks = []
    for number, make in enumerate(LAYOUTS.values()):
        (user.data / str(number)).mkdir()
        block = make(user.data / str(number))
        blocks.append({"id": str(number), **block, "instance_data_dir": f"{number}/{block['instance_data_dir']}"})
    for block, name in zip(blocks, LAYOUTS, strict=True):
        found = audit_in(user.data, [block])
        assert len(found.records) == 2 and found.given == load(user.data, [block]).provides, name
        assert SAID.get(name, "") in " ".join(found.report)
    of_data(user, blocks, PAIRS, steps=len(blocks))
    passes(user, *SAID.values(), steps=len(blocks))


def test_ties_that_are_kept(user):
    of_data(user, [{"id": "pairs", **pick_a_pic(user.data), "ties": "keep"}], {"type": "ipo"})
    passes(user, "1 tie kept")


def test_two_folders_up_and_down(user):
    blocks = []
    for seed, (side, label) in enumerate((("up", 1), ("down", 0))):
        for i in range(2):
            written(user.data / side / f"{i}.png", 2 * seed + i, f"prompt {i}")
        blocks.append({"id": side, "instance_data_dir": side, "records": {"label": label}})
    of_data(user, blocks, {"type": "kto"})
    passes(user, "up: 2 images; captions by textfile; hooks may read 'label'")
    wrong = [{**blocks[0], "records": {"label": 0.5}}, blocks[1]]
    user.edit_blocks(lambda given: given.__setitem__(slice(None), wrong))
    refused = user.command("check", str(user.run))
    assert refused.code == 2 and "2 of 4 samples have no label in 'label'" in refused.err
    assert json.loads((user.data / "data.json").read_text()) == wrong

"""One Parquet file with pairs and masks, from `check` to a rebuilt cache, as on the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowhooks.errors import FlowhooksWarning
from tests.acceptance.user import User
from tests.train.runs import NAMES


def one_table(user: User) -> None:
    """The pairs of the user's folders in the columns of one file, and a data set file that names it."""

    def cells(folder: str) -> list[bytes]:
        return [(user.data / folder / f"{name}.png").read_bytes() for name in NAMES]

    columns = {"image": cells("win"), "rejected": cells("lose"), "mask": cells("mask")}
    pq.write_table(pa.table({**columns, "caption": [f"a photo of {name}" for name in NAMES]}), user.data / "t.parquet")
    block = {"id": "pairs", "type": "parquet", "instance_data_dir": "t.parquet"}
    (user.data / "data.json").write_text(json.dumps([block]))


def cached(user: User) -> dict[Path, bytes]:
    return {file.relative_to(user.cache): file.read_bytes() for file in user.cache.rglob("*.safetensors")}


def test_from_check_to_a_rebuilt_cache(user):
    one_table(user)
    mine = user.state()
    found = user.command("check", str(user.run))
    assert found.code == 0 and "6 images, 6 reference_strict from 'pairs.rejected', 6 mask" in found.out
    assert re.search(r"^cache +0 bytes in ", found.out, re.MULTILINE)

    found = user.command("train", str(user.run), "--set", "training.max_train_steps=2")
    assert found.code == 0 and "step 2; results are in" in found.out
    sizes = re.search(r"^cache: 24 entries, [\d.]+ kB; ([\d.]+ kB) in ", found.err, re.MULTILINE)
    assert sizes
    told = user.command("check", str(user.run), "--resume", "latest").out
    assert re.search(rf"^cache +{re.escape(sizes[1])} in {re.escape(str(user.cache))}$", told, re.MULTILINE)

    before = cached(user)
    found = user.train("--resume", "latest")
    assert found.code == 0 and "step 4; results are in" in found.out
    assert cached(user) == before

    shard = next(file for file in user.cache.rglob("*.safetensors") if file.parent.name == "latents")
    stale = {name: torch.full_like(value, 0.5) for name, value in load_file(shard).items()}
    save_file(stale, shard)
    elsewhere = f"output_dir={user.folder / 'again'}"
    assert user.train("--set", elsewhere, "--rebuild-cache").code == 0
    assert cached(user) == before
    assert user.state() == mine


def test_train_tells_the_warnings_of_the_data(user):
    """As `check` does, and that a run goes on over other data."""
    shutil.copy(user.data / "lose/one.png", user.data / "lose/orphan.png")
    told = re.search(r"^warning +(lose: 1 file .* orphan)$", user.command("check", str(user.run)).out, re.MULTILINE)
    assert told
    with pytest.warns(FlowhooksWarning, match=f"^{re.escape(told[1])}$"):
        assert user.train("--set", "training.max_train_steps=2").code == 0
    user.edit_blocks(lambda blocks: blocks[0].update(repeats=1))
    changed = "the data sets have changed since"
    assert changed in user.command("check", str(user.run), "--resume", "latest").out
    with pytest.warns(FlowhooksWarning, match=changed):
        assert user.train("--resume", "latest").code == 0
    shorter, late = ("--resume", "latest", "--set", "training.max_train_steps=1"), "after the last step 1 of this run"
    assert late in user.command("check", str(user.run), *shorter).out
    with pytest.warns(FlowhooksWarning, match=late):
        assert user.train(*shorter).code == 0

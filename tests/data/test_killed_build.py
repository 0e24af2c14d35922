"""A build that was killed again and again ends as one that was not, and so do two at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.folders import TRIPLE, load, snapshot, write_pairs
from tests.families import tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_ten_kills_leave_no_trace_in_the_cache(tmp_path):
    write_pairs(tmp_path, [f"{i:03}" for i in range(200)])
    load(tmp_path, TRIPLE)
    tiny("sd3").save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "tests.data.killed", str(tmp_path), str(tmp_path / "model"), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["codes"] == [0, 0, 0, 0], done.stderr
    killed, shards, partial = zip(*told["stages"], strict=True)
    # Killed indeed: at different stages, some of them with a shard begun.
    assert all(killed) and len(set(shards)) > 3 and sum(partial) > 1, told["stages"]

    whole, torn, shared = (contents_of(tmp_path / name) for name in ("whole", "torn", "shared"))
    assert len(whole) == 13 + 1 + 7 and whole.keys() == torn.keys() == shared.keys()
    assert whole == torn
    assert whole == shared


def contents_of(cache: Path) -> dict[str, bytes]:
    return {path.relative_to(cache).as_posix(): data for path, data in snapshot(cache).items()}

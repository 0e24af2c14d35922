"""The folder `examples/reward_server`: its server runs as a program, and its run trains on the digits by it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from flowhooks.cli import main
from tests.golden.digits import prepare
from tests.rewards.servers import EXAMPLE
from tests.train.runs import history


@pytest.fixture
def address():
    """Of the server, started as its README says."""
    command = [sys.executable, str(EXAMPLE / "server.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            yield program.stdout.readline().strip()
        finally:
            program.terminate()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_digits_learn_from_a_server(address, tmp_path):
    assert address.startswith("http://127.0.0.1:")
    prepare(tmp_path)
    document = json.loads((EXAMPLE / "digits.json").read_text(encoding="utf-8"))
    (block,) = document["method"]["diffusion_nft"]["rewards"]
    ours = {"type": "flowhooks.digits.rewards:Ink", "name": "own", "weight": 0.0}
    changes = {
        "method.diffusion_nft.rewards": [{**block, "url": address}, ours],
        "model.pretrained_model_name_or_path": str(tmp_path / "base"),
        "training.max_train_steps": 2,
        "training.train_batch_size": 2,
        "training.log_every_steps": 1,
        "logging.trackers": [],
        "validation.prompts": [],
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["train", str(EXAMPLE / "digits.json"), *overrides]) == 0
    lines = history(tmp_path / "out")
    assert len(lines) == 2
    for line in lines:
        # Only eight bits of each pixel travel.
        assert line["ends_reward_ink"] == pytest.approx(line["ends_reward_own"], abs=1 / 255)
        assert line["ends_reward"] == pytest.approx(line["ends_reward_ink"])

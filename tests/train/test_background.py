"""Files are written beside the steps, in order; a failure ends the run as it did when steps waited for them."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path
from threading import Event

import pytest
import torch

from flowhooks.errors import CheckpointError
from flowhooks.train import train
from flowhooks.train.background import Background
from flowhooks.train.checkpoint import Checkpoints
from flowhooks.train.guard import FiniteGuard
from tests.train.runs import weights

#: Longer than anything takes that is not waited for.
PATIENCE = 60
AT_ONCE = "at once"


def test_work_is_done_in_order_and_the_caller_does_not_wait():
    background, go, done = Background(), Event(), []
    background.submit(lambda: (go.wait(PATIENCE), done.append(1)))
    background.submit(lambda: done.append(2))
    assert not done
    go.set()
    background.join()
    assert done == [1, 2]


def test_what_fails_is_raised_once_and_what_follows_it_is_left_undone():
    background, go, done = Background(), Event(), []

    def fail():
        go.wait(PATIENCE)
        raise CheckpointError("no space")

    background.submit(fail)
    background.submit(lambda: done.append(1))
    go.set()
    with pytest.raises(CheckpointError, match="no space"):
        background.join()
    background.raise_failure()
    background.join()
    assert not done


def test_another_exception_ends_the_block_and_the_failure_is_told():
    background, told = Background(), []
    with pytest.raises(KeyboardInterrupt), background.open(told.append):
        background.submit(lambda: Path("/there/is/no/such/folder").mkdir())
        raise KeyboardInterrupt
    assert len(told) == 1 and "No such file" in told[0]


@pytest.fixture
def slow(monkeypatch):
    """The checkpoint of step 2 is published once step 3 has computed: the run would stand still if it waited for it.

    What is in the list is called before it is published, with the folder that is complete but for its name."""
    begun, before, publish, loss = Event(), [], Checkpoints._publish, FiniteGuard.loss

    def published(self, aside, final, step, identity):
        if step == 2 and aside.parent.name != AT_ONCE:
            assert begun.wait(PATIENCE), "the run waited for its checkpoint"
            for each in before:
                each(aside)
        publish(self, aside, final, step, identity)

    def noted(self, value, micro_step, files):
        if micro_step == 2:
            begun.set()
        loss(self, value, micro_step, files)

    monkeypatch.setattr(Checkpoints, "_publish", published)
    monkeypatch.setattr(FiniteGuard, "loss", noted)
    return before


def digests(folder):
    """Name -> digest of each file but the manifest, which holds digests itself. The header of a safetensors file is in
    no order."""
    found = {}
    for file in folder.iterdir():
        held = file.read_bytes()
        if file.suffix == ".safetensors":
            end = 8 + int.from_bytes(held[:8], "little")
            held = json.dumps(json.loads(held[8:end]), sort_keys=True).encode() + held[end:]
        found[file.name] = hashlib.sha256(held).hexdigest()
    del found["manifest.json"]
    return found


TRAINING = {"max_train_steps": 4, "checkpointing_steps": 2}


def test_a_slow_save_holds_up_no_step_and_writes_what_a_save_at_once_writes(new_run, tmp_path, monkeypatch, slow):
    taken, at_once = Checkpoints.taken, Checkpoints(tmp_path / AT_ONCE)

    def both(self, step, states, own, identity, beside):
        at_once.save(step, states, own, identity, beside)
        return taken(self, step, states, own, identity, beside)

    monkeypatch.setattr(Checkpoints, "taken", both)
    killed = tmp_path / "killed"
    slow.append(lambda aside: shutil.copytree(aside.parent, killed))
    images = {"prompts": ["one"], "every_steps": 2, "num_inference_steps": 1, "height": 16, "width": 16}
    run = new_run(training={**TRAINING, "use_ema": True}, validation=images)
    out = Path(train(run, progress=False).output_dir)
    for step in (2, 4):
        assert digests(out / f"checkpoint-{step}") == digests(at_once.path(step))
    assert [file.name for file in sorted((out / "validation").iterdir())] == [
        f"step_{step:06d}.png" for step in (0, 2, 4)
    ]

    # What a kill leaves while the checkpoint is being written: the next run starts again without it, to the same end.
    assert [file.name for file in killed.glob(".checkpoint-*")] == [".checkpoint-2.partial"]
    slow.clear()
    (killed / ".running.json").unlink()
    again = new_run("killed", training={**TRAINING, "use_ema": True}, validation=images)
    with pytest.warns(UserWarning, match="no checkpoint to resume from"):
        train(again, resume="latest", progress=False)
    assert not list(killed.glob(".checkpoint-*"))
    ended, same = (weights(folder / "checkpoint-4") for folder in (out, killed))
    assert ended.keys() == same.keys() and all(torch.equal(ended[name], same[name]) for name in ended)


def test_a_save_that_fails_ends_the_run_at_its_next_step_with_the_same_error(new_run, slow):
    def full(aside):
        raise OSError(errno.ENOSPC, "No space left on device")

    slow.append(full)
    run = new_run(training={**TRAINING, "max_train_steps": 200, "checkpointing_steps": 2})
    with pytest.raises(CheckpointError, match=r"checkpoint-2: the disk is full .*--resume latest"):
        train(run, progress=False)
    assert not [file.name for file in Path(run.output_dir).iterdir() if "checkpoint" in file.name]
    assert not (Path(run.output_dir) / ".running.json").exists()

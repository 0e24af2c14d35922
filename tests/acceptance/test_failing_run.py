"""What only shows while a run runs: damaged caches and weights, a full disk, a checkpoint cut in half."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowhooks.data import cache
from flowhooks.train import setup
from flowhooks.train.checkpoint import verify
from tests.acceptance.user import User, assert_one_error, checkpoint_states
from tests.train.test_resume import equal

pytestmark = pytest.mark.slow

STEPS = 4


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """The file system refuses files above ``size`` bytes: to a writer, that is a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def take_over(user: User, done: User) -> None:
    """Give ``user`` all that a finished run left; its checkpoints belong to the model they were trained on."""
    for each in ("out", "cache"):
        shutil.copytree(done.folder / each, user.folder / each)
    user.write(model={"pretrained_model_name_or_path": str(done.mine / "model")})


def entries(user: User, kind: str) -> list[Path]:
    return sorted((user.cache / kind).rglob("*.safetensors"))


def test_nan_in_a_cache_file(user, done):
    shutil.copytree(done.cache, user.cache)
    file = entries(user, "latents")[0]
    tensors = load_file(file)
    list(tensors.values())[2][0, 0, 0] = float("nan")
    save_file(tensors, file)
    before, cached = user.state(), user.state(user.cache)
    found = user.train()
    assert_one_error(found, 2, (f"{file}: ", "NaN or infinity in 'latents'", "delete this file", "`--rebuild-cache`"))
    assert user.state() == before and user.state(user.cache) == cached
    assert not list(user.out.glob("checkpoint-*"))


def test_a_cache_file_cut_short_is_made_again(user, done):
    shutil.copytree(done.cache, user.cache)
    file = entries(user, "text")[0]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .*; it is made again"):
        assert user.train().code == 0
    made, first = load_file(file), load_file(done.cache / file.relative_to(user.cache))
    assert made.keys() == first.keys()
    assert all(torch.equal(made[name], first[name]) for name in first)


def test_a_full_disk_while_caching(user, monkeypatch):
    def on_a_full_disk(*args, **kwargs):
        with file_limit(1024):
            return cache.build_cache(*args, **kwargs)

    before = user.state()
    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_cache", on_a_full_disk)
        found = user.train()
    words = (f"{user.cache}/", "cannot be written: File too large", "free some space or point `cache_dir` to a disk")
    assert_one_error(found, 2, words)
    assert user.state() == before
    assert not list((user.cache / "partial").iterdir()), "no half-written file is left"
    again = user.train()
    assert again.code == 0, again.err
    assert user.state() == before


def test_a_full_disk_while_checkpointing(user, done):
    shutil.copytree(done.cache, user.cache)
    before = user.state()
    with file_limit(10_000):
        found = user.train()
    words = (f"{user.out}/checkpoint-2: ", "the disk is full", "free some space", "--resume latest")
    assert_one_error(found, 1, words)
    assert user.state() == before
    assert not list(user.out.glob("*checkpoint*")), "nothing half-written is left"
    with pytest.warns(UserWarning, match="no checkpoint to resume from; starting at step 0"):
        assert user.train("--resume", "latest").code == 0
    assert equal(states(user, STEPS), states(done, STEPS))


def test_a_full_disk_at_a_later_checkpoint_keeps_the_earlier_one(user, done):
    take_over(user, done)
    shutil.rmtree(user.out / "checkpoint-4")
    earlier = user.state(user.out / "checkpoint-2")
    with file_limit(10_000):
        found = user.train("--resume", "latest")
    assert_one_error(found, 1, (f"{user.out}/checkpoint-4: ", "the disk is full", "free some space"))
    verify(user.out / "checkpoint-2")
    assert user.state(user.out / "checkpoint-2") == earlier
    assert user.train("--resume", "latest").code == 0
    assert equal(states(user, STEPS), states(done, STEPS))


def states(user: User, step: int):
    found = dict(checkpoint_states(user.out / f"checkpoint-{step}"))
    values = found["progress"]["values"]
    assert values["loss"] == values["loss"]
    # No two runs take the same time, and NaN (no sample fell in that range of sigma) is not equal to itself.
    kept = {name: value for name, value in values.items() if name != "seconds_per_step" and value == value}
    found["progress"] = {**found["progress"], "values": kept}
    return found


def test_a_checkpoint_cut_in_half(user, done, loads):
    take_over(user, done)
    broken = user.out / "checkpoint-4" / "parameters.safetensors"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    before, written = user.state(), user.state(user.out)
    found = user.train("--resume", str(broken.parent))
    assert_one_error(found, 2, (f"{broken.parent}: ", "parameters.safetensors is damaged", "use another checkpoint"))
    assert loads == []
    assert user.state() == before and user.state(user.out) == written

    with pytest.warns(UserWarning, match="skipped a damaged checkpoint: .*checkpoint-4: parameters.safetensors"):
        assert user.train("--resume", "latest").code == 0
    assert equal(states(user, STEPS), states(done, STEPS))
    kept = list(user.out.glob("checkpoint-4-replaced-*/parameters.safetensors"))
    assert len(kept) == 1, "the damaged one is moved aside, not deleted"
    assert user.state() == before


def test_a_checkpoint_that_is_not_there(user, loads):
    before = user.state()
    found = user.train("--resume", str(user.out / "checkpoint-9"))
    assert_one_error(found, 2, ("checkpoint-9", "there is no such checkpoint", "checkpoint-<step>", "latest"))
    assert loads == [] and user.state() == before and not user.out.exists()


def test_weights_of_the_model_cut_in_half(user):
    file = user.mine / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = user.state()
    found = user.train()
    assert_one_error(found, 2, (f"{user.mine / 'model'}", "damaged or was cut short", "save_pretrained"))
    assert user.state() == before


def test_nan_in_a_lora(user):
    file = user.mine / "own.safetensors"
    tensors = load_file(file)
    tensors[sorted(tensors)[0]].fill_(torch.nan)
    save_file(tensors, file)
    user.write(adapter={"init_from": str(file)})
    before = user.state()
    found = user.train()
    assert_one_error(found, 2, (f"{file}: ", "NaN or infinite", "Use an earlier checkpoint"))
    assert user.state() == before


def test_export_of_a_damaged_lora(user):
    file = user.mine / "own.safetensors"
    file.write_bytes(file.read_bytes()[:9000])
    before = user.state()
    found = user.command("export", str(file), "--format", "kohya", "--output", str(user.out / "kohya.safetensors"))
    assert_one_error(found, 2, (f"{file}: ", "cannot be read as safetensors", "copy or download it again"))
    assert user.state() == before and not user.out.exists()

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from flowhooks.adapters.adapter_file import write_tensors
from flowhooks.cli import main
from flowhooks.errors import AdapterError, CheckpointError, TrainingError
from flowhooks.train.checkpoint import Checkpoints, read, read_manifest, verify
from flowhooks.train.files import full_disk_told
from tests.train.runs import document


def save(checkpoints: Checkpoints, step: int, size: int = 8) -> Path:
    states = {"parameters": {"w": torch.full((size,), float(step))}, "session": {"micro_step": step}}
    return checkpoints.save(step, states, {"random": torch.arange(3)}, {"hooks": {}})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read_back(tmp_path):
    folder = save(Checkpoints(tmp_path), 3)
    verify(folder)
    assert torch.equal(read(folder, "parameters")["w"], torch.full((8,), 3.0))
    assert read(folder, "session") == {"micro_step": 3}
    assert torch.equal(read(folder, "process_0")["random"], torch.arange(3))
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}


def test_the_limit_removes_the_oldest_of_ours_and_nothing_else(tmp_path):
    checkpoints = Checkpoints(tmp_path, limit=2)
    for stranger in ("checkpoint-1", "checkpoint-best", "notes"):
        (tmp_path / stranger).mkdir()
        (tmp_path / stranger / "mine.txt").write_text("keep")
    for step in (2, 10, 9, 30):
        save(checkpoints, step)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-10", "checkpoint-30", "checkpoint-best", "notes"]


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "manifest"])
def test_latest_skips_a_damaged_one_with_a_warning_and_a_named_one_is_an_error(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    good, bad = save(checkpoints, 9), save(checkpoints, 10)
    file = bad / ("manifest.json" if damage == "manifest" else "parameters.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match=f"checkpoint-10: {file.name}"):
        assert checkpoints.find("latest") == good
    with pytest.raises(CheckpointError, match=f"checkpoint-10: {file.name}"):
        checkpoints.find(str(bad))


IDENTITY = {"training": {"learning_rate": 1e-05, "seed": 0}, "adapter": None, "hooks": {"a é": [-1.5, True]}}


def test_no_flipped_bit_makes_another_run_of_a_manifest(tmp_path):
    folder = Checkpoints(tmp_path).save(3, {"session": {"micro_step": 3}}, {}, IDENTITY)
    file = folder / "manifest.json"
    content, written = file.read_bytes(), read_manifest(folder)
    assert written.identity == IDENTITY
    damaged = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            assert read_manifest(folder) == written, place
        except CheckpointError as error:
            assert "manifest.json is missing or damaged" in str(error), place
            damaged += 1
    # What is left are spaces of another kind, and capitals where JSON allows them.
    assert damaged > 0.9 * len(content)


def test_latest_goes_past_a_manifest_that_names_other_settings(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    good, bad = (checkpoints.save(step, {"session": {}}, {}, IDENTITY) for step in (1, 2))
    file = bad / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.warns(UserWarning, match="checkpoint-2: manifest.json .* its own digest"):
        assert checkpoints.find("latest") == good


def test_a_manifest_of_an_older_version_has_no_digest_of_itself(tmp_path):
    folder = Checkpoints(tmp_path).save(1, {"session": {}}, {}, IDENTITY)
    file, written = folder / "manifest.json", read_manifest(folder)
    document = json.loads(file.read_text())
    del document["sha256"]
    file.write_text(json.dumps(document))
    assert read_manifest(folder) == written
    verify(folder)


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_a_fresh_start(tmp_path):
    checkpoints = Checkpoints(tmp_path / "out")
    assert checkpoints.find("latest") is None
    (save(checkpoints, 1) / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="no checkpoint is complete"):
        checkpoints.find("latest")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        checkpoints.find(str(tmp_path / "checkpoint-5"))


def test_a_damaged_one_in_the_way_is_moved_aside_not_deleted(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (save(checkpoints, 4) / "session.safetensors").unlink()
    verify(save(checkpoints, 4))
    kept = [path for path in tmp_path.iterdir() if path.name.startswith("checkpoint-4-replaced-")]
    assert len(kept) == 1 and (kept[0] / "parameters.safetensors").is_file()


@contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_error_and_the_older_checkpoint_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, limit=1)
    older = save(checkpoints, 1)
    with full_disk(), pytest.raises(CheckpointError, match=r"checkpoint-2: the disk is full .*free some space"):
        save(checkpoints, 2, size=100_000)
    verify(older)
    assert names(tmp_path) == ["checkpoint-1"]


BIG = {"a": torch.zeros(100_000)}


def test_a_disk_that_is_full_when_the_adapter_is_written_beside_it_is_told_alike(tmp_path):
    def beside(folder: Path) -> None:
        write_tensors(folder / "adapter.safetensors", BIG, {})

    with full_disk(), pytest.raises(CheckpointError, match=r"checkpoint-2: the disk is full .*--resume latest"):
        Checkpoints(tmp_path).save(2, {"session": {}}, {}, {}, beside)
    assert names(tmp_path) == []


def test_a_disk_that_is_full_at_the_end_is_no_wrong_configuration(tmp_path):
    """What is written there is an adapter, whose errors have the exit code of a refusal."""
    file = tmp_path / "adapter.safetensors"
    with (
        full_disk(),
        pytest.raises(TrainingError, match=rf"^the disk is full: {file}: .*--resume latest`\.$") as found,
        full_disk_told(tmp_path),
    ):
        write_tensors(file, BIG, {})
    assert found.value.exit_code == 1 and names(tmp_path) == []
    with full_disk(), pytest.raises(TrainingError, match=rf"^{tmp_path}: the disk is full"), full_disk_told(tmp_path):
        file.write_bytes(b"0" * 5000)
    with pytest.raises(AdapterError, match="^another$"), full_disk_told(tmp_path):
        raise AdapterError("another")


def test_what_a_killed_writer_left_is_swept_away(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / ".checkpoint-5.partial").mkdir()
    (tmp_path / ".checkpoint-5.partial" / "parameters.safetensors").write_bytes(b"half")
    (tmp_path / ".git").mkdir()
    assert checkpoints.all() == []
    checkpoints.sweep()
    assert names(tmp_path) == [".git"]


def test_a_resume_of_another_run_is_refused_before_anything_of_training_is_imported(
    model, data, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("flowhooks.train.loop.train", lambda *_, **__: pytest.fail("training was imported"))
    written = document(model, data, tmp_path / "out", cache_dir=str(cache), model={"quantization": "int8"})
    (tmp_path / "run.json").write_text(json.dumps(written))
    folder = tmp_path / "out" / "checkpoint-2"
    folder.mkdir(parents=True)
    identity = {"model": {"quantization": "nf4"}, "processes": 2}
    manifest = {"format": 1, "step": 2, "files": {}, "identity": identity}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for asked in ("latest", str(folder)):
        assert main(["train", str(tmp_path / "run.json"), "--resume", asked]) == 2
        said = capsys.readouterr().err
        assert "`model.quantization` is 'int8', the checkpoint has 'nf4'" in said and "processes" not in said

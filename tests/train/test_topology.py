"""A checkpoint goes on with other numbers of processes as the run would have: 1, then 2, then 4, then 1 again."""

from __future__ import annotations

import json
import os

import pytest
import torch

from flowhooks.cli import main
from flowhooks.config import load_run
from flowhooks.errors import CheckpointError
from flowhooks.kernel.session import Session
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from flowhooks.train.identity import changes, require_same
from flowhooks.train.metrics import MetricWindow, merged_windows
from flowhooks.train.topology import likely_processes
from tests.forked import side_by_side
from tests.golden.record import one_thread
from tests.laws.cases import teacher
from tests.laws.test_composition import LIKE, METHODS
from tests.train.runs import document, history, make_run
from tests.train.test_methods_on_processes import TOLERANCE
from tests.train.test_processes import free_port

pytestmark = pytest.mark.slow

RUNS = tuple(name for name in METHODS if name not in LIKE or name == "kto")
#: Methods whose frozen network is sharded too, in the stages of several processes.
SHARDED = ("flow_dpo", "self_flow", "flow_grpo")
#: Processes of each step of a run.
STAGES = (1, 2, 4, 1)
EVERYONE = 4


def run_of(name, model, data, output, *, size, steps):
    options = {key: value for key, value in METHODS[name].items() if name != "sft"}
    if "teachers" in options:
        options["teachers"] = {"b": teacher()}
    if name == "online_dpo":
        # At a large beta the gradients turn rounding into numbers.
        options["beta"] = 0.5
    training = {
        "max_train_steps": steps,
        "train_batch_size": size,
        "optimizer": "torch.optim:SGD",
        "optimizer_args": {"momentum": 0.5},
        "learning_rate": 0.2,
        "log_every_steps": 1,
        "use_ema": True,
        "checkpoints_total_limit": None,
        "seed": 3,
    }
    found = document(model, data, output, method={name: options}, training=training)
    del found["hooks"]
    if "prompts" in options:
        del found["data"]
    return found


def written(folder, name, model, data, *, count, steps, output=None):
    file = folder / f"{name}-{steps}.json"
    output = folder / (output or name)
    file.write_text(json.dumps(run_of(name, model, data, output, size=EVERYONE // count, steps=steps)))
    return file


def stage(rank, files, port, count, sharded):
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
    for file in files:
        train(load_run(file, allow_imports=True), resume="latest", progress=False)


def mistakes(mine, theirs, place):
    """What differs between two states."""
    if isinstance(mine, torch.Tensor):
        if mine.is_floating_point():
            same = mine.shape == theirs.shape and torch.allclose(theirs, mine, **TOLERANCE)
        else:
            same = torch.equal(mine, theirs)
        return [] if same else [f"{place}: {mine} {theirs}"]
    if isinstance(mine, dict):
        if mine.keys() != theirs.keys():
            return [f"{place}: {sorted(mine.keys() ^ theirs.keys())}"]
        return [found for key in mine for found in mistakes(mine[key], theirs[key], f"{place}.{key}")]
    if isinstance(mine, (list, tuple)):
        pairs = zip(mine, theirs, strict=True)
        return [found for i, both in enumerate(pairs) for found in mistakes(*both, f"{place}[{i}]")]
    if isinstance(mine, float):
        return [] if theirs == pytest.approx(mine, rel=2e-3, abs=1e-4, nan_ok=True) else [f"{place}: {mine} {theirs}"]
    return [] if mine == theirs else [f"{place}: {mine} {theirs}"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("names", "sharded"), [(RUNS, False), (SHARDED, True)], ids=["whole", "sharded"])
def test_a_run_goes_on_with_other_numbers_of_processes(model, data, tmp_path, names, sharded):
    for step, count in enumerate(STAGES, start=1):
        files = [written(tmp_path, name, model, data, count=count, steps=step) for name in names]
        if count == 1:
            with one_thread():
                for file in files:
                    train(load_run(file, allow_imports=True), resume=None if step == 1 else "latest", progress=False)
        else:
            side_by_side(stage, files, free_port(), count, sharded, count=count)
    found = []
    for name in names:
        whole = written(tmp_path, name, model, data, count=1, steps=len(STAGES), output=f"{name}-whole")
        with one_thread():
            train(load_run(whole, allow_imports=True), progress=False)
        both = [tmp_path / f"{name}-whole", tmp_path / name]
        for stem in ("parameters", "optimization", "session", "progress"):
            one, several = (read(folder / f"checkpoint-{len(STAGES)}", stem) for folder in both)
            for each in (one, several):
                if stem == "progress":
                    del each["values"]["seconds_per_step"]
            found += mistakes(one, several, f"{name}: {stem}")
        lines = [[{k: v for k, v in line.items() if k != "seconds_per_step"} for line in history(f)] for f in both]
        found += mistakes(*lines, f"{name}: metrics")
    assert not found, "\n".join(found)


def of(batch, accumulation, processes):
    training = {"train_batch_size": batch, "gradient_accumulation_steps": accumulation, "seed": 3}
    return {"training": training, "processes": processes, "model": {"dtype": "fp32"}}


def test_another_global_batch_is_refused_with_both_products():
    with pytest.raises(CheckpointError) as caught:
        require_same(of(2, 3, 4), of(2, 3, 2), "checkpoint-7")
    said = str(caught.value)
    assert "checkpoint-7 was written with a global batch of 24" in said and "this run has 12" in said
    assert "`training.train_batch_size` 2 x `training.gradient_accumulation_steps` 3 x 2 processes" in said
    require_same(of(2, 3, 4), of(12, 2, 1), "checkpoint-7")
    other = of(12, 2, 1)
    other["training"]["seed"] = 4
    with pytest.raises(CheckpointError, match=r"`training.seed` is 4, the checkpoint has 3\."):
        require_same(of(2, 3, 4), other, "checkpoint-7")


def test_what_does_not_go_on_exactly_is_said():
    assert changes(of(4, 1, 2), of(4, 1, 2)) == []
    (said,) = changes(of(4, 1, 2), of(2, 1, 4))
    assert "written by 2 and goes on with 4 processes: dropout" in said
    (said,) = changes(of(4, 1, 2), of(2, 2, 2))
    assert "`training.gradient_accumulation_steps` 1, and this run has 2" in said
    # Checkpoints of versions that kept less.
    assert changes({"training": {}}, of(2, 1, 1)) == []


@pytest.mark.parametrize(
    ("launched", "batch", "accumulation", "expected"),
    [("", 2, 2, 2), ("", 8, 1, 1), ("", 3, 1, 4), ("8", 1, 1, 8), ("x", 1, 1, 8)],
)
def test_the_processes_of_a_run_are_known_or_follow_from_its_batch(
    monkeypatch, launched, batch, accumulation, expected
):
    monkeypatch.setenv("WORLD_SIZE", launched)
    assert likely_processes(of(2, 1, 4), batch, accumulation) == expected


def test_what_processes_measured_is_taken_together():
    one = {"values": {"losses": torch.tensor([1.0, 2.0]), "metric a": torch.tensor([4.0])}, "steps": 2}
    other = {"values": {"losses": torch.tensor([3.0, float("nan")])}, "steps": 2}
    found = merged_windows([one, other])
    assert found["steps"] == 2
    assert found["values"]["losses"].tolist() == [2.0, 2.0] and found["values"]["metric a"].tolist() == [4.0]
    window = MetricWindow(2, 4)
    window.load_state_dict(found)
    assert window.fetch()["loss"] == 2.0


def test_an_update_has_the_same_samples_with_other_micro_batches(model, data, tmp_path, monkeypatch, capsys):
    """Two steps of a batch of 4, then two of 2 x 2: of each step the samples are those of the undisturbed run."""
    seen = []
    steps = Session.steps

    def noting(self, batch, *, log=True):
        seen.append((self.micro_step, batch.files))
        return steps(self, batch, log=log)

    monkeypatch.setattr(Session, "steps", noting)
    training = {"train_batch_size": 4, "log_every_steps": 1}
    halves = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "log_every_steps": 1}
    sections = {"hooks": [], "method": {"sft": {}}}

    def run(name, steps, section):
        chosen = {**section, "max_train_steps": steps}
        return make_run(model, data, tmp_path / name, cache_dir=str(tmp_path / "cache"), training=chosen, **sections)

    train(run("whole", 4, training), progress=False)
    whole, seen = seen, []
    train(run("out", 2, training), progress=False)
    with pytest.warns(UserWarning, match="`training.gradient_accumulation_steps` 1, and this run has 2"):
        train(run("out", 4, halves), resume="latest", progress=False)
    assert [at for at, _ in seen] == [0, 1, 4, 5, 6, 7]
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document(model, data, tmp_path / "out", training=training, **sections)))
    assert main(["check", str(file), "--resume", "latest"]) == 0
    assert "had `training.gradient_accumulation_steps` 2, and this run has 1" in capsys.readouterr().out
    assert [files for _, files in seen[:2]] == [files for _, files in whole[:2]]
    assert [seen[i][1] + seen[i + 1][1] for i in (2, 4)] == [files for _, files in whole[2:]]
    with pytest.raises(CheckpointError, match="written with a global batch of 4"):
        train(run("out", 4, {**halves, "train_batch_size": 4}), resume="latest", progress=False)

"""``flowhooks check --memory`` and ``--gpu``: what they print and how they end."""

from __future__ import annotations

import pytest
import torch

from flowhooks.cli import main
from flowhooks.commands.arguments import card_size
from flowhooks.memory.shards import Gathered, held_by_one
from flowhooks.testing import tiny
from tests.cli.folders import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that trains on pairs with masks, with a whole tiny pipeline."""
    folder = tmp_path_factory.mktemp("run")
    tiny("sd3").save_pretrained(folder / "tiny")
    model = {
        "pretrained_model_name_or_path": str(folder / "tiny"),
        "pipeline_arguments": {"max_sequence_length": 8},
    }
    return make_run(folder, model=model, adapter={"type": "lora", "rank": 4})


def test_the_parts_the_phase_and_the_card_are_printed(run, capsys):
    assert main(["check", str(run), "--gpu", "24GiB"]) == 0
    out = capsys.readouterr().out
    memory = [line for line in out.splitlines() if line.startswith("memory ")]
    assert [line.split()[1] for line in memory] == [
        *("transformer,", "trained", "gradients", "optimiser", "held", "largest", "weights", "on", "fits")
    ]
    assert "in the backward pass" in memory[5] or "in the forward passes" in memory[5]
    assert "a card of 24.0 GiB, with 23.5 GiB to spare" in memory[-1]
    assert "warning" not in out and out.endswith("ok\n")


def test_what_each_of_several_cards_needs_is_printed_after_what_one_does(run, capsys):
    assert main(["check", str(run), "--memory", "--processes", "4"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory ")]
    assert lines[-2].split()[1:4] == ["on", "a", "card"]
    assert "on each of 4 cards (FSDP2)" in lines[-1] and "512.0 MiB for its context" in lines[-1]
    offloaded = ["--set", "model.offload=blocks", "--set", "model.gradient_checkpointing=true"]
    assert main(["check", str(run), "--processes", "4", *offloaded]) == 0
    assert "memory: not counted: FSDP2 does not go with `model.offload`" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", str(run), "--processes", "1"])


def test_more_processes_need_less_of_a_network_that_is_trained():
    """By the arithmetic of the page: shares of what is sharded, and twice what is gathered."""
    gathered = Gathered(beside=300, block=100)
    assert [held_by_one(8000, count, gathered) for count in (2, 8)] == [4800, 1800]
    assert Gathered.of(torch.nn.Linear(3, 2)) == Gathered(beside=32, block=0)
    blocks = torch.nn.Module()
    blocks.first, blocks.some = torch.nn.Linear(1, 1), torch.nn.ModuleList(torch.nn.Linear(n, 1) for n in (4, 9))
    assert Gathered.of(blocks) == Gathered(beside=8, block=40)


def test_a_run_that_does_not_fit_is_warned_of_and_not_refused(run, capsys):
    assert main(["check", str(run), "--gpu", "500MiB"]) == 0
    out = capsys.readouterr().out
    assert "warning    memory: needs 51" in out and "does not fit a card of 500.0 MiB" in out
    assert out.endswith("ok\n")


def test_a_run_that_is_not_counted_is_told_why(run, capsys):
    own = 'hooks=[{"type": "tests.kernel.toy:Absent"}]'
    assert main(["check", str(run), "--memory", "--allow-imports", "--set", own]) == 0
    out = capsys.readouterr().out
    assert "warning    memory: not counted: $.hooks[0]" in out and "is code of yours" in out
    assert not any(line.startswith("memory ") for line in out.splitlines())


def test_without_being_asked_nothing_is_counted(run, capsys, monkeypatch):
    monkeypatch.setattr("flowhooks.memory.plan.plan_memory", lambda *_: pytest.fail("counted"))
    assert main(["check", str(run)]) == 0
    assert "largest moment" not in capsys.readouterr().out


@pytest.mark.parametrize("size", ["0", "-24", "24 apples", "", "nan"])
def test_what_is_no_size_of_a_card_is_refused(run, capsys, size):
    with pytest.raises(SystemExit) as ended:
        main(["check", str(run), f"--gpu={size}"])
    assert ended.value.code == 2
    assert "expected the memory of a card, such as 24GiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("1TiB", 2**40), ("24", 24 * 2**30), ("24GB", 24 * 2**30), ("500m", 500 * 2**20)]
)
def test_sizes_of_cards_as_people_write_them(text, size):
    assert card_size(text) == size


def test_a_data_set_file_needs_no_card(run, capsys):
    assert main(["check", str(run.parent / "data.json"), "--memory"]) == 2
    assert "--memory and --gpu go with a run file" in capsys.readouterr().err

"""Several data sets, times and wordings through the whole trainer."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from flowhooks.errors import ConfigError
from flowhooks.kernel import Hook
from flowhooks.train import train
from tests.train.runs import history, weights

seen: list[tuple[int, tuple[str, ...], tuple[str, ...]]] = []


class Witness(Hook):
    """Writes down the files and prompts of every micro-step that trains."""

    type = "witness"

    def penalty(self, step):
        if step.training:
            seen.append((step.draws.micro_step, step.batch.files, step.batch.prompts))
        return {}


@pytest.fixture
def drawn(data, tmp_path):
    """`win` from the start, `lose` from step 2 on, with varying captions. Returns the data set file."""
    blocks = [
        {"id": "win", "instance_data_dir": str(data.parent / "win")},
        {
            "id": "lose",
            "instance_data_dir": str(data.parent / "lose"),
            "caption_strategy": "instanceprompt",
            "instance_prompt": "a, b, c, d",
            "caption_shuffle": True,
            "caption_dropout": 0.3,
            "probability": 3,
            "start_step": 2,
        },
    ]
    file = tmp_path / "drawn.json"
    file.write_text(json.dumps(blocks))
    return file


def test_a_resumed_run_draws_what_the_run_draws_with_another_number_of_workers(new_run, drawn):
    hooks = [{"type": f"{__name__}:Witness"}, {"type": "tests.train.toys:SignalAt", "name": "SIGTERM"}]
    training = {"gradient_accumulation_steps": 2, "max_train_steps": 6, "log_every_steps": 1}

    def told(name, workers, micro_step, resume=None):
        seen.clear()
        run = new_run(
            name,
            data=str(drawn),
            hooks=[hooks[0], {**hooks[1], "micro_step": micro_step}],
            training={**training, "dataloader_num_workers": workers},
            validation={"holdout": 2},
        )
        with suppress(SystemExit):
            train(run, resume=resume, progress=False)
        return list(seen), Path(run.output_dir)

    whole, folder = told("whole", 0, 99)
    first, stopped = told("stopped", 2, 7)
    rest, _ = told("stopped", 1, 7, resume="latest")
    assert [step for step, _, _ in whole] == list(range(12)) and len(first) == 8
    assert first + rest == whole
    assert "instance_prompt: a, b, c, d\n" in (folder / "README.md").read_text()
    a, b = (weights(path / "checkpoint-6") for path in (folder, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)

    sets = [{file.split("/")[-2] for file in files} for _, files, _ in whole]
    assert all(len(names) == 1 for names in sets) and sets[:4] == [{"win"}] * 4
    assert sets[4:].count({"lose"}) >= 5
    varied = {prompt for _, files, prompts in whole for prompt in prompts if "/lose/" in files[0]}
    assert "" in varied and len(varied) > 2 and all(sorted(each) == sorted("a, b, c, d") for each in varied - {""})
    # Each epoch is four or five samples of `win`, then as many as are left of both.
    kept = len({file for _, files, _ in whole for file in files if "/win/" in file})
    epochs = [line["epoch"] for line in history(folder) if "epoch" in line]
    assert (epochs[1], epochs[5]) == pytest.approx((8 / kept, 8 / kept + 16 / 10))


def test_holding_out_all_that_is_drawn_at_a_time_is_refused_before_weights_load(new_run, drawn):
    blocks = json.loads(drawn.read_text())
    drawn.write_text(json.dumps([{**blocks[0], "start_step": 1}, {**blocks[1], "start_step": 0, "end_step": 1}]))
    run = new_run(data=str(drawn), hooks=[], validation={"holdout": 11}, model={"pretrained_model_name_or_path": "/no"})
    with pytest.raises(ConfigError, match=r"\$\.validation\.holdout.*from step [01] on are held out"):
        train(run, progress=False)

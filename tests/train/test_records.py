"""What a data set names under `columns` reaches hooks and rewards, in runs and over a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowhooks.errors import ConfigError
from flowhooks.kernel import Hook
from flowhooks.rewards.base import PictureReward
from flowhooks.train import train
from tests.train.runs import NAMES, history

LABELS = dict(zip(NAMES, (1, 0, 1, 1, 0, 1), strict=True))
TASKS = dict(zip(NAMES, ("ink", "base") * 3, strict=True))
seen: list[tuple[int, tuple[tuple[str, dict[str, Any]], ...]]] = []


class Thumbs(Hook):
    """Trains only on what was liked."""

    type = "thumbs"

    @classmethod
    def declaration(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"slots": {"error"}, "needs": {"data:label"}}

    def error(self, step: Any, view: Any, error: Tensor) -> Tensor:
        files = (Path(file).stem for file in step.batch.files)
        seen.append((step.draws.micro_step, tuple(zip(files, map(dict, step.batch.records), strict=True))))
        liked = torch.tensor([float(record["label"]) for record in step.batch.records])
        return error * liked.reshape(-1, *[1] * (error.dim() - 1))


class Liked(PictureReward):
    """Of every image the vote on its record."""

    range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__(name="liked")

    def score(self, pictures: Tensor, prompts: Any, records: Any) -> Tensor:
        assert [record["label"] for record in records] == [LABELS[prompt.split()[-1]] for prompt in prompts]
        return torch.tensor([float(record["label"]) for record in records])


@pytest.fixture(scope="module")
def voted(data, tmp_path_factory):
    """The images of all tests of this folder in a table beside them, a vote and a task each."""
    rows = [
        {"file": f"{name}.png", "words": f"a photo of {name}", "thumbs": LABELS[name], "task": TASKS[name]}
        for name in NAMES
    ]
    table = data.parent / "win" / "metadata.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    columns = {"image": "file", "caption": "words", "label": "thumbs", "task": "task"}
    file = tmp_path_factory.mktemp("voted") / "data.json"
    block = {"id": "votes", "type": "imagefolder", "instance_data_dir": str(table.parent), "columns": columns}
    file.write_text(json.dumps([block]))
    yield file
    table.unlink()


OWN = [{"type": f"{__name__}:Thumbs"}]


def test_a_hook_reads_the_records_with_workers_and_after_a_resume(new_run, voted):
    def told(name: str, workers: int, last: int, resume: str | None = None):
        seen.clear()
        training = {"max_train_steps": last, "dataloader_num_workers": workers, "log_every_steps": 1}
        train(new_run(name, data=str(voted), hooks=OWN, training=training), resume=resume, progress=False)
        return list(seen)

    whole = told("whole", 0, 4)
    assert [step for step, _ in whole] == [0, 1, 2, 3]
    for _, batch in whole:
        assert len(batch) == 2
        assert all(record == {"label": LABELS[file], "task": TASKS[file]} for file, record in batch)
    assert told("stopped", 1, 2) + told("stopped", 0, 4, "latest") == whole


def test_a_need_of_the_data_that_nobody_meets_is_refused_before_weights_load(new_run, voted, tmp_path):
    with pytest.raises(ConfigError, match="needs 'data:label', which nothing in this run gives; name the column"):
        train(new_run(hooks=OWN), progress=False)
    # One image set without it is enough.
    blocks = json.loads(voted.read_text())
    blocks.append({**blocks[0], "id": "unlabelled", "columns": {"image": "file", "caption": "words"}})
    both = tmp_path / "both.json"
    both.write_text(json.dumps(blocks))
    with pytest.raises(ConfigError, match="under 'label' in the `columns` of every image data set"):
        train(new_run(data=str(both), hooks=OWN), progress=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rewards_read_the_columns_of_the_data(new_run, voted):
    grpo = {"rewards": [{"type": f"{__name__}:Liked"}], "group_size": 2, "num_inference_steps": 2, "visits": 1}
    training = {"max_train_steps": 1, "train_batch_size": 6, "log_every_steps": 1}
    run = new_run(data=str(voted), hooks=[], method={"flow_grpo": grpo}, training=training)
    lines = history(train(run, progress=False).output_dir)
    assert lines[0]["flow_grpo_reward_liked"] == pytest.approx(4 / 6)

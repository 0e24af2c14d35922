"""k steps + save + load + (n - k) steps equal n steps, bit for bit, through the whole trainer."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import CheckpointError, ConfigError
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from tests.train.runs import FLOW_DPO, history, make_run, weights, write_model

pytestmark = pytest.mark.slow

TRAINING = {
    "max_train_steps": 4,
    "gradient_accumulation_steps": 2,
    "use_ema": True,
    "lr_scheduler": "cosine",
    "checkpointing_steps": 2,
    "checkpoints_total_limit": None,
}
VALIDATION = {"prompts": ["one"], "num_inference_steps": 1, "every_steps": 3, "holdout": 1, "height": 16, "width": 16}
TIMES = {"type": "timestep_schedule", "flow_custom_timesteps": [900, 600, 300], "flow_timesteps_mode": "round-robin"}
ADAPTERS = [
    {"type": "lora", "rank": 2, "dropout": 0.3},
    {"type": "lora", "use_dora": True, "rank": 2, "dropout": 0.3},
    {"type": "loha", "rank": 2, "dropout": 0.3},
    {"type": "lycoris", "algo": "lokr", "rank": 2, "dropout": 0.3},
]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def killed_at(micro_step):
    """A hook that sends SIGTERM during this micro-step."""
    return {"type": "tests.train.toys:SignalAt", "name": "SIGTERM", "micro_step": micro_step}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: "dora" if "use_dora" in adapter else adapter["type"])
def test_a_resumed_run_is_the_run(new_run, adapter):
    sections = {"adapter": adapter, "training": TRAINING, "validation": VALIDATION}
    whole = train(new_run("whole", hooks=[*FLOW_DPO, TIMES, killed_at(99)], **sections), progress=False)

    stopped = new_run("stopped", hooks=[*FLOW_DPO, TIMES, killed_at(3)], **sections)
    with pytest.raises(SystemExit):
        train(stopped, progress=False)
    assert not (whole.output_dir.parent / "stopped" / "checkpoint-4").exists()
    torch.manual_seed(1234)
    resumed = train(stopped, resume="latest", progress=False)

    a, b = whole.output_dir / "checkpoint-4", resumed.output_dir / "checkpoint-4"
    earlier = weights(whole.output_dir / "checkpoint-2")
    assert all(not torch.equal(value, earlier[name]) for name, value in weights(a).items())
    for stem in ("parameters", "optimization", "session", "process_0"):
        assert equal(read(a, stem), read(b, stem)), stem
    assert read(b, "session")["micro_step"] == 8
    lines = [
        [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in history(r.output_dir)]
        for r in (whole, resumed)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "sections, key",
    [
        ({"adapter": {"rank": 4, "alpha": 2}}, "adapter.rank` is 4, the checkpoint has 2"),
        ({"adapter": {"type": "loha"}}, "adapter.type` is 'loha'"),
        ({"hooks": FLOW_DPO[:2]}, "hooks.anchor_regularizer.weight"),
        (
            {"hooks": [{**FLOW_DPO[0], "beta": 3.0}, *FLOW_DPO[1:]]},
            "hooks.flow_dpo.beta` is 3.0, the checkpoint has 50.0",
        ),
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate"),
        ({"validation": {"holdout": 1}}, "validation.holdout"),
    ],
)
def test_another_run_cannot_be_resumed_and_the_keys_that_differ_are_named(new_run, finished, sections, key):
    sections = {**sections, "training": {"max_train_steps": 2, **sections.get("training", {})}}
    with pytest.raises(CheckpointError) as found:
        train(new_run("other", **sections), resume=str(finished / "checkpoint-1"), progress=False)
    assert key in str(found.value)


def test_hooks_in_another_order_and_a_longer_run_are_the_same_run(new_run, finished):
    run = new_run("longer", hooks=FLOW_DPO[::-1], training={"max_train_steps": 2, "log_every_steps": 7})
    assert train(run, resume=str(finished / "checkpoint-1"), progress=False).step == 2


def test_a_checkpoint_of_another_model_is_refused(new_run, finished, tmp_path, monkeypatch):
    from diffusers import SD3Transformer2DModel

    model = write_model(tmp_path / "sd3")
    wide = SD3Transformer2DModel.from_config(
        {**SD3Transformer2DModel.load_config(model / "transformer"), "num_layers": 3}
    )
    wide.save_pretrained(model / "transformer")
    saved = (finished / "checkpoint-1" / "manifest.json").read_text()
    original = new_run().model["pretrained_model_name_or_path"]
    monkeypatch.setattr("flowhooks.train.setup.require_same", lambda *_: None)
    assert original in saved
    run = new_run("other", model={"pretrained_model_name_or_path": str(model)})
    with pytest.raises(CheckpointError, match="was written for another model"):
        train(run, resume=str(finished / "checkpoint-1"), progress=False)


def test_changed_pictures_are_warned_of(model, cache, finished, tmp_path):
    from tests.train.runs import write_data

    data = write_data(tmp_path / "data", empty_mask=None)
    run = make_run(model, data, tmp_path / "out", cache_dir=str(cache), training={"max_train_steps": 2})
    with pytest.warns(UserWarning, match="data sets have changed"):
        train(run, resume=str(finished / "checkpoint-1"), progress=False)


def test_a_finished_run_is_not_overwritten_by_a_fresh_one(new_run, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    run = new_run()
    object.__setattr__(run, "output_dir", str(finished))
    with pytest.raises(ConfigError, match="holds checkpoint-1 of an earlier run"):
        train(run, progress=False)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_latest_without_a_checkpoint_starts_at_the_beginning(new_run):
    with pytest.warns(UserWarning, match="starting at step 0"):
        assert train(new_run(training={"max_train_steps": 1}), resume="latest", progress=False).step == 1

"""What the first edition wrote is read: run files, data sets, checkpoints, LoRAs, modules of hooks.

`first/` was written by commit 2956373, the last one before the rooms were put in order: two runs of four steps on eight
small images with the tiny SD3, `metrics.jsonl` as it was logged, of the checkpoints the one after step 2. These files
are never written anew.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import flowhooks
from flowhooks.adapters import load_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.file_config import as_trained
from flowhooks.config import load_run
from flowhooks.rewards import build_rewards
from flowhooks.rewards.registry import reward_class
from flowhooks.train import train
from tests.families import tiny
from tests.golden.record import TOLERANCE, one_thread

FIRST = Path(__file__).parent / "first"
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder as its user left it, the model beside it."""
    place = tmp_path / "first"
    shutil.copytree(FIRST, place)
    tiny("sd3").save_pretrained(place / "tiny")
    monkeypatch.chdir(place)
    return place


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Step -> what was measured in it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = ("seconds_per_step", "samples_per_second")
    return {line["step"]: {k: v for k, v in line.items() if k not in times and v is not None} for line in lines}


@pytest.mark.parametrize("name", ["dpo", "anyflow"])
def test_a_checkpoint_goes_on_to_the_same_end(folder, name):
    run = folder / "runs" / name
    # A file holds the strength in its matrices now, and did not then.
    expected, weights = logged(run), as_trained(read_adapter(run / LORA)).tensors
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("error", flowhooks.errors.FlowhooksWarning)
        train(load_run(f"{name}.json"), resume="latest", progress=False)
    found = logged(run)
    assert found.keys() == expected.keys() == {1, 2, 3, 4}
    for step in expected:
        assert found[step] == pytest.approx(expected[step], rel=TOLERANCE["rel_tol"], abs=TOLERANCE["abs_tol"])
    found_weights = as_trained(read_adapter(run / LORA)).tensors
    assert found_weights.keys() == weights.keys()
    for key, value in found_weights.items():
        torch.testing.assert_close(value, weights[key], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("place", ["runs/anyflow", "runs/anyflow/checkpoint-2"])
def test_hooks_of_a_run_are_attached_with_their_modules(folder, place):
    trained = load_file(folder / place / "flowhooks_modules.safetensors")
    with flowhooks.attach(tiny("sd3"), folder / place) as session:
        modules = session.assembly.exported()
        found = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
        assert found.keys() == trained.keys()
        assert all(torch.equal(found[key], trained[key]) for key in found)


@pytest.mark.parametrize("place", ["runs/dpo", "runs/dpo/checkpoint-2"])
def test_a_lora_loads_here_and_in_diffusers(folder, place):
    ours, stock = tiny("sd3"), tiny("sd3")
    adapter = load_adapter(ours.transformer, folder / place)
    stock.load_lora_weights(str(folder / place), weight_name=LORA)
    call = {"prompt": "one", "num_inference_steps": 2, "output_type": "latent", "max_sequence_length": 8}
    images = [pipe(generator=torch.Generator().manual_seed(0), **call).images for pipe in (ours, stock)]
    torch.testing.assert_close(*images)
    adapter.detach()
    base = ours(generator=torch.Generator().manual_seed(0), **call).images
    assert not torch.allclose(base, images[0])


def test_a_resolved_run_is_a_run_file(folder):
    for name in ("dpo", "anyflow"):
        # Its data lies where its user had it.
        overrides = ["data=data.json", f"model.pretrained_model_name_or_path={folder / 'tiny'}"]
        again = load_run(folder / "runs" / name / "run.json", overrides)
        written = load_run(folder / f"{name}.json")
        assert [(hook.type, hook.options) for hook in again.hooks] == [
            (hook.type, hook.options) for hook in written.hooks
        ]
        assert (again.training, again.adapter) == (written.training, written.adapter)


@pytest.mark.parametrize(("file", "name"), [("clip_score", "ClipScore"), ("pickscore", "PickScore")])
def test_a_reward_that_shares_a_file_now_is_found_by_its_old_path(file, name):
    assert reward_class(f"flowhooks.rewards.{file}:{name}", "$").__name__ == name


def test_a_reward_of_the_digits_is_found_by_its_old_path():
    rewards, weights = build_rewards([{"type": "flowhooks.embedded.rewards:Ink", "weight": 2.0}])
    assert [reward.name for reward in rewards] == ["ink"] and weights == [2.0]

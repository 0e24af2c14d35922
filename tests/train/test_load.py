from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from flowhooks.config import resolve_run
from flowhooks.data import audit
from flowhooks.errors import ModelError
from flowhooks.pipeline import attention_backend, load_pipeline
from flowhooks.train import rng
from flowhooks.train.setup import _probed
from tests.families import PIPELINES, tiny


def traces(transformer):
    processors = [m.processor for m in transformer.modules() if hasattr(m, "processor")]
    return [(type(o), sorted(vars(o))) for o in [*transformer.modules(), *processors]]


def test_a_saved_pipeline_without_a_third_encoder_loads(model, new_run):
    pipe = load_pipeline({**new_run().model, "dtype": "bf16"})
    assert pipe.text_encoder_3 is None and pipe.transformer.dtype == torch.bfloat16 and not pipe.transformer.training


def test_pickled_weights_are_refused(model, new_run, tmp_path):
    shutil.copytree(model, tmp_path / "sd3")
    weights = tmp_path / "sd3" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="cannot be loaded as a Diffusers pipeline"):
        load_pipeline({**new_run().model, "pretrained_model_name_or_path": str(tmp_path / "sd3")})


def test_an_attention_backend_is_used_and_put_back(tiny_sd3):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    transformer = tiny_sd3.transformer
    before, active = traces(transformer), registry.get_active_backend()[0]
    with attention_backend([transformer], "_native_math"):
        assert registry.get_active_backend()[0].value == "_native_math"
    assert traces(transformer) == before and registry.get_active_backend()[0] is active
    with pytest.raises(ModelError, match="'flash' cannot be used"), attention_backend([transformer], "flash"):
        pass
    assert traces(transformer) == before and registry.get_active_backend()[0] is active


def test_both_experts_of_a_run_get_the_attention_backend():
    pipe = tiny("wan-two-experts")
    experts = [pipe.transformer, pipe.transformer_2]
    before = [traces(each) for each in experts]
    arguments = {**PIPELINES["wan-two-experts"].arguments}
    size = {key: arguments.pop(key) for key in ("height", "width")}
    model = {"attention_backend": "_native_math", "pipeline_arguments": arguments}
    run = resolve_run({"model": model, "validation": size}, Path("run.json"))
    with ExitStack() as stack:
        _probed(run, pipe, audit(None), stack)
        for expert in experts:
            chosen = {m.processor._attention_backend for m in expert.modules() if hasattr(m, "processor")}
            assert {each.value for each in chosen} == {"_native_math"}
    assert [traces(each) for each in experts] == before


def test_random_states_come_back_and_a_block_leaves_no_trace():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    cpu = torch.device("cpu")
    rng.seed_all(3)
    np.random.randn()
    state = rng.capture(cpu)
    expected = draw()
    rng.restore(state, cpu)
    with rng.preserved(cpu):
        draw()
    assert draw() == expected


@pytest.mark.parametrize(
    ("part", "maker"),
    [
        ("_class_name", ["my_pipeline", "Mine"]),
        ("vae", ["stranger_of_load", "Thing"]),
        ("vae", ["os", "system"]),
        ("scheduler", [3, "Thing"]),
    ],
)
def test_a_pipeline_made_of_other_code_is_refused(new_run, part, maker, tmp_path, monkeypatch):
    """Diffusers would import a package of that name, or a file of the folder."""
    folder = tmp_path / "pipeline"
    shutil.copytree(new_run().model["pretrained_model_name_or_path"], folder)
    for file in (tmp_path / "stranger_of_load.py", folder / "my_pipeline.py", folder / "vae" / "stranger_of_load.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, part: maker}))
    with pytest.raises(ModelError, match=f"model_index.json has '{part}' made by .*no such code is run"):
        load_pipeline({**new_run().model, "pretrained_model_name_or_path": str(folder)})
    assert not (tmp_path / "ran").exists()

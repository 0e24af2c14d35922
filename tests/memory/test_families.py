"""A plan of every kind of network: what is learnt on its twin holds for one of more blocks."""

from __future__ import annotations

import pytest

from benchmarks.memory_plan import planned, run_on, write_folder
from flowhooks.memory.twin import _TEXT
from tests.families import PIPELINES

#: Pipeline -> settings that say how many blocks there are.
DEPTHS = {
    "flux2-klein": {"num_layers": 3, "num_single_layers": 4},
    "qwen-image": {"num_layers": 4},
    "z-image": {"n_layers": 4},
    "wan": {"num_layers": 4},
    "ltx": {"num_layers": 4},
    "lumina2": {"num_layers": 4},
}
RUN = {"adapter": {"type": "lora", "rank": 4}, "method": {"flow_dpo": {}}}


@pytest.mark.parametrize("name", sorted(DEPTHS))
def test_a_deeper_network_needs_more_by_its_blocks(name, tmp_path):
    arguments = PIPELINES[name].arguments
    folder = write_folder(name, {"transformer": DEPTHS[name]}, tmp_path / name)
    run = run_on(name, folder, RUN)
    plan = planned(run, arguments["height"], arguments["width"], arguments.get("num_frames", 1))
    twin = sum(p.numel() for p in plan.model.transformer.parameters())
    needs = plan.needs()
    assert needs.weights >= plan.parts["transformer"].numbers * 4 - needs.trained > twin * 4
    assert needs.activations > 0 and needs.peak > needs.weights + needs.trained + needs.optimizer
    assert plan.encoders(run) > 0


def test_the_second_twin_of_a_text_encoder_is_narrow_and_keeps_its_layers():
    """Some pipelines read the results of several: those of FLUX.2 read the 27th."""
    settings = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "head_dim": 128}
    first, second = (recipe(settings) for recipe in _TEXT[:2])
    assert (first["num_hidden_layers"], second["num_hidden_layers"]) == (2, 36)
    assert first["num_attention_heads"] == second["num_attention_heads"] == 2

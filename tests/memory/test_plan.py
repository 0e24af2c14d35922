"""The plan of a run's memory against what the same update allocates where it is computed, on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from benchmarks.memory_plan import RUNS, measured, planned, run_on, write_folder, write_teacher
from benchmarks.methods import LIKE
from flowhooks.adapters.names import LORA_FILE
from flowhooks.config import resolve_run
from flowhooks.memory import drawing
from flowhooks.memory.plan import NotCounted, changed, plan_memory
from flowhooks.memory.report import candidates, fitting, lines, on_card
from flowhooks.methods import METHODS as METHOD_NAMES

EDGE, BATCH = 16, 2
#: Wide enough that weights outweigh what is not counted, and deep enough for a block between the first and the last.
SMALL = {"num_layers": 1, "num_single_layers": 3, "num_attention_heads": 5, "attention_head_dim": 64}
CASTS = {"sft": "bf16", "self_flow": "bf16"}
#: Every method, some of them with the casts of mixed precision.
METHODS = {
    kind: {**RUNS[kind], "training": {**RUNS[kind].get("training", {}), "mixed_precision": CASTS.get(kind, "no")}}
    for kind in METHOD_NAMES
    if kind not in LIKE
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder("flux", {"transformer": SMALL}, tmp_path_factory.mktemp("model") / "flux")


@pytest.fixture(scope="module")
def learnt(folder):
    """A twin that every run here is counted on."""
    found = planned(run_on("flux", folder, RUNS["sft"]), EDGE)
    write_teacher(found, folder)
    return found


def plan_of(learnt, folder, kind, batch=BATCH, **model):
    return replace(learnt, run=run_on("flux", folder, METHODS[kind], batch, **model))


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_the_plan_is_what_the_cpu_allocates(learnt, folder, kind):
    """On few weights; `python -m benchmarks.memory_plan` has the rows of 100 million."""
    plan = plan_of(learnt, folder, kind, gradient_checkpointing=kind in ("flow_dpo", "sft"))
    needs = plan.needs(rules="cpu")
    counted, allocated = measured(plan)
    assert needs.peak == pytest.approx(counted.peak, rel=0.02)
    assert needs.peak == pytest.approx(allocated, rel=0.05)
    assert needs.weights + needs.trained > 6e6 * 4
    assert (needs.trained, needs.gradients, needs.phase) == (counted.trained, counted.gradients, counted.phase)


LORA = {"type": "lora", "rank": 4}


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"adapter": LORA, "training": {"use_ema": True}}, id="average of the weights"),
        pytest.param({"adapter": LORA, "method": {"anyflow": {"target_mode": "flow_map"}}}, id="flow maps"),
        pytest.param({"adapter": LORA, "hooks": [{"type": "twin_flow"}]}, id="twin_flow"),
        pytest.param({"adapter": {"type": "loha", "rank": 4}}, id="loha"),
        pytest.param({"adapter": {**LORA, "use_dora": True}}, id="dora"),
        pytest.param({"adapter": None, "training": {"trainable": "transformer"}}, id="whole network"),
        pytest.param({"adapter": LORA, "training": {"gradient_accumulation_steps": 2}}, id="accumulation"),
        pytest.param(
            {
                "adapter": LORA,
                "hooks": [
                    {"type": "mask_reducer"},
                    {"type": "flow_dpo", "norm_type": "masked_mean", "auto_beta": True},
                    {"type": "anchor_regularizer", "weight": 0.1},
                ],
            },
            id="masks and an anchor",
        ),
    ],
)
def test_other_runs_are_counted_on_meta_as_on_the_cpu(learnt, folder, sections):
    run = run_on("flux", folder, sections, 1)
    plan = replace(learnt, run=run, provides=learnt.provides | {"mask"})
    needs, real = plan.needs(), plan.needs(device=torch.device("cpu"))
    assert needs.peak == pytest.approx(real.peak, rel=0.02)
    assert needs.trained == needs.gradients and needs.optimizer > 2 * needs.trained - 1
    assert bool(needs.hooks >= needs.trained) == run.training["use_ema"]


@pytest.mark.parametrize(("kind", "copies"), [("int8", True), ("nf4", False)])
def test_quantised_weights_are_held_as_their_backend_holds_them(learnt, folder, kind, copies):
    plan = plan_of(learnt, folder, "flow_dpo", dtype="bf16", quantization=kind)
    needs = plan.needs(rules="cpu")
    _, allocated = measured(plan)
    assert needs.peak == pytest.approx(allocated, rel=0.05)
    plain = plan_of(learnt, folder, "flow_dpo", dtype="bf16").needs()
    assert needs.weights < plain.weights * {"int8": 0.65, "nf4": 0.4}[kind]
    # Every copy of a weight is there when the backward pass begins.
    held = needs.activations - plain.activations
    assert held > plain.weights * 0.5 if copies else held < plain.weights * 0.1


def test_planning_loads_nothing_and_leaves_the_twin_in_place(learnt, folder):
    twin = learnt.model.transformer
    plan_of(learnt, folder, "flow_dpo").needs()
    assert learnt.model.transformer is twin
    assert next(twin.parameters()).device.type == "cpu"
    assert sum(p.numel() for p in twin.parameters()) < learnt.parts["transformer"].numbers / 3


def test_what_a_setting_saves_is_counted(learnt, folder):
    full = plan_of(learnt, folder, "flow_dpo").needs()
    smaller = plan_of(learnt, folder, "flow_dpo", gradient_checkpointing=True).needs()
    half = plan_of(learnt, folder, "flow_dpo", dtype="bf16").needs()
    aside = plan_of(learnt, folder, "flow_dpo", gradient_checkpointing=True, checkpoint_offload=True).needs()
    assert aside.activations < smaller.activations and aside.peak < smaller.peak
    assert smaller.activations < full.activations / 2 and smaller.weights == full.weights
    assert half.weights == pytest.approx(full.weights / 2, rel=0.01) and half.trained == full.trained
    away = plan_of(learnt, folder, "flow_dpo", gradient_checkpointing=True, offload="blocks").needs()
    assert away.weights < smaller.weights / 5 and smaller.peak - away.peak > smaller.weights / 2
    one = plan_of(learnt, folder, "flow_dpo", batch=1).needs()
    assert one.activations == pytest.approx(full.activations / 2, rel=0.1)


def test_a_training_adapter_is_counted(learnt, folder):
    source = folder.parent / "teacher"
    bytes_of = sum(t.nbytes for t in load_file(source / LORA_FILE).values())
    run = run_on("flux", folder, {**RUNS["sft"], "adapter": {**LORA, "training_adapter": str(source)}}, 1)
    plan = replace(learnt, run=run)
    needs, without = plan.needs(), replace(plan, run=changed(run, [("adapter.training_adapter", None)])).needs()
    assert needs.hooks - without.hooks == bytes_of and needs.trained == without.trained
    assert needs.peak >= without.peak + bytes_of
    assert "kept by hooks, training adapter" in "\n".join(lines(plan, needs))


def test_a_report_names_parts_and_the_phase(learnt, folder):
    plan = plan_of(learnt, folder, "flow_dpo")
    needs = plan.needs()
    said = "\n".join(lines(plan, needs))
    for part in ("transformer, frozen", "trained", "gradients", "optimiser", "held between", needs.phase, "allocator"):
        assert part in said


def test_the_cheapest_change_that_fits_is_named(learnt, folder):
    plan = plan_of(learnt, folder, "flow_dpo")
    needs = plan.needs()
    assert fitting(plan, needs, 2**40).fits
    short = fitting(plan, needs, on_card(needs.peak) - 2**20)
    assert not short.fits
    assert "with `training.train_batch_size` 1 and `training.gradient_accumulation_steps` 2 it needs" in short.sentence
    hopeless = fitting(plan, needs, 2**29)
    assert "the weights of one phase alone need" in hopeless.sentence and not hopeless.fits


def test_changes_go_from_those_that_cost_least_to_those_that_change_the_samples(learnt, folder):
    found = list(candidates(plan_of(learnt, folder, "flow_dpo", batch=4)))
    first = (("training.train_batch_size", 2), ("training.gradient_accumulation_steps", 2))
    assert found[0] == (first, 1.0)
    places = [{place for place, _ in changes} for changes, _ in found]
    order = ["training.train_batch_size", "model.gradient_checkpointing", "model.dtype"]
    order += ["model.quantization", "model.offload", "adapter.rank"]
    assert sorted(order, key=lambda each: next(i for i, there in enumerate(places) if each in there)) == order
    assert [scale for _, scale in found[-2:]] == [0.75, 0.5]
    # As many samples go into an update as before.
    for changes, _ in found:
        now = dict(changes)
        batch, times = now.get("training.train_batch_size", 4), now.get("training.gradient_accumulation_steps", 1)
        assert batch * times == 4


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"hooks": [{"type": "tests.hooks.echo:Echo"}]}, "is code of yours, which is not run here"),
        (
            {"hooks": [{"type": "anchor_regularizer", "role": "adapter:a", "adapter": "somebody/absent"}]},
            "'somebody/absent' is not on this disk",
        ),
    ],
)
def test_what_is_not_counted_says_why(folder, sections, reason):
    run = run_on("flux", folder, {**RUNS["sft"], **sections})
    with pytest.raises(NotCounted, match=reason):
        planned(run, EDGE)


def test_configurations_that_are_not_there_are_told():
    run = resolve_run({"model": {"pretrained_model_name_or_path": "somebody/absent"}, "hooks": []}, Path("run.json"))
    with pytest.raises(NotCounted, match="not on this disk"):
        plan_memory(run, None)


def test_a_twin_of_another_family_is_learnt_too(tmp_path):
    small = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 64, "caption_projection_dim": 256}
    folder = write_folder("sd3", {"transformer": small}, tmp_path / "sd3")
    plan = planned(run_on("sd3", folder, RUNS["flow_dpo"], BATCH), EDGE)
    real = plan.needs(device=torch.device("cpu"))
    # Its table of positions is no parameter, and is stored with them.
    half = replace(plan, run=run_on("sd3", folder, RUNS["flow_dpo"], BATCH, dtype="bf16"))
    assert half.needs().weights * 2 == plan.needs().weights == plan.parts["transformer"].numbers * 4
    assert plan.needs().peak == pytest.approx(real.peak, rel=0.02)


def test_a_scheduler_whose_device_comes_by_its_place_sets_its_times_on_the_cpu():
    """Samplers of rollouts hand their own device on in that way."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    drawing._times_on_cpu(type(scheduler).set_timesteps)(scheduler, 4, "meta")
    assert scheduler.timesteps.device == torch.device("cpu")

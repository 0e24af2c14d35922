"""Two sizes in one data set: every sample is told and predicted as in a run that knows its size alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flowhooks
from flowhooks.data import build_cache, collate
from flowhooks.errors import DataError, ModelError
from tests import families
from tests.data.folders import TRIPLE, audit_in, write_image, write_mask
from tests.families import PIPELINES

#: Width and height. Upright and sideways are packed to samples of one shape, so only the size tells them apart.
UPRIGHT, SIDEWAYS, SQUARE = (16, 32), (32, 16), (16, 16)
PACKED = ["flux", "flux2-klein", "qwen-image", "z-image", "ideogram4"]
#: The probe asks for twice the width too, which is more than the tiny SD3 has positions for.
FAMILIES = [("sd3", SQUARE), *((name, SIDEWAYS) for name in PACKED)]
FLOW_DPO = [
    {"type": "flow_dpo", "norm_type": "masked_mean"},
    {"type": "mask_reducer"},
    {"type": "anchor_regularizer", "role": "reference"},
]


def write_two_sizes(root, other=SIDEWAYS, size=UPRIGHT):
    """Pairs with masks, of which the left half is white."""
    for seed, (name, (width, height)) in enumerate({"a": size, "b": other, "c": size, "d": other}.items()):
        write_image(root / "win" / f"{name}.png", (width, height), 2 * seed)
        (root / "win" / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")
        write_image(root / "lose" / f"{name}.png", (width, height), 2 * seed + 1)
        mask = np.zeros((height, width))
        mask[:, : width // 2] = 255
        write_mask(root / "mask" / f"{name}.png", mask)


def learnt(name, size=UPRIGHT):
    sizes = {"height": size[1], "width": size[0]}
    arguments = {k: v for k, v in PIPELINES[name].arguments.items() if k not in sizes}
    return families.learnt(name, arguments=arguments, **sizes)


@pytest.mark.parametrize(("name", "other"), FAMILIES)
def test_a_mixed_run_predicts_as_a_run_of_each_size_alone(tmp_path, name, other):
    write_two_sizes(tmp_path, other)
    audited = audit_in(tmp_path, TRIPLE)
    assert {record.bucket for record in audited.records} == {(*UPRIGHT, 1), (*other, 1)}
    mixed = learnt(name)
    dataset = build_cache(audited, mixed, tmp_path / "cache", progress=False)
    samples = dict(zip("abcd", dataset, strict=True))
    for names, size in (("ac", UPRIGHT), ("bd", other)):
        batch = collate([samples[each] for each in names])
        assert batch.size == (size[1], size[0], 1)
        alone = learnt(name, size)
        # The packed mask is where the picture is white: its two halves are told apart in each size.
        here = mixed.at(*batch.size)
        packed, expected = (model.pack_mask(batch.mask, batch.clean) for model in (here, alone))
        assert torch.equal(packed, expected)
        told = alone.encode_prompts([f"a photo of {each}" for each in names])
        torch.testing.assert_close(batch.condition.flatten(), told.flatten(), rtol=0, atol=1e-6)
        sigma = torch.tensor([0.9, 0.4])
        with torch.no_grad():
            found = here.predict(batch.clean, sigma, batch.condition)
            assert torch.equal(found, alone.predict(batch.clean, sigma, batch.condition))
            assert torch.equal(here.decode(batch.clean), alone.decode(batch.clean))
        assert here.shift(batch.clean) == alone.shift(batch.clean)


@pytest.mark.parametrize(("name", "other"), FAMILIES)
def test_flow_dpo_takes_a_masked_step_at_each_size(tmp_path, name, other):
    write_two_sizes(tmp_path, other)
    model = learnt(name)
    dataset = build_cache(audit_in(tmp_path, TRIPLE), model, tmp_path / "cache", progress=False)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": FLOW_DPO}) as session:
        for rows in ([0, 2], [1, 3]):
            batch = collate([dataset[i] for i in rows])
            result = session.step(batch)
            result.loss.backward()
            assert result.loss.isfinite()
            assert float(result.metrics["mask_coverage"]) == pytest.approx(0.5)
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())


@torch.no_grad()
def test_conditions_without_a_prompt_are_encoded_for_every_size_beforehand(monkeypatch):
    """Ideogram's arguments follow prompt and size both."""
    model = learnt("ideogram4")
    model.layout(*reversed(SIDEWAYS))
    model.encode_null_conditions()
    monkeypatch.setattr(type(model), "encode_prompts", None)
    found = {tuple(each.size.values()): each.null_condition.flatten() for each in model.everywhere()}
    monkeypatch.undo()
    assert list(found) == [(32, 16), (16, 32)]
    for height, width in found:
        alone = learnt("ideogram4", (width, height)).null_condition.flatten()
        torch.testing.assert_close(found[height, width], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "hooks",
    [
        [{"type": "dual_times"}],
        [{"type": "feature_alignment", "source": "layersync", "block_index": 0, "teacher_block_index": 1}],
        [
            {"type": "time_conditioning"},
            {"type": "interval_times"},
            {"type": "target_replacer", "target_mode": "flow_map", "guidance_scale": 2.0},
        ],
    ],
    ids=["times of tokens", "features on a grid", "guidance"],
)
def test_hooks_that_look_at_the_grid_work_at_each_size(tmp_path, hooks):
    write_two_sizes(tmp_path)
    model = learnt("flux")
    dataset = build_cache(audit_in(tmp_path, TRIPLE), model, tmp_path / "cache", progress=False)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": hooks}) as session:
        for row in (0, 1):
            assert session.step(collate([dataset[row]])).loss.isfinite()


def test_samples_of_two_sizes_make_no_batch(tmp_path):
    write_two_sizes(tmp_path)
    dataset = build_cache(audit_in(tmp_path, TRIPLE), learnt("flux"), tmp_path / "cache", progress=False)
    assert dataset[0]["clean"].shape == dataset[1]["clean"].shape
    with pytest.raises(ValueError, match="a batch holds samples of one size"):
        collate([dataset[0], dataset[1]])


def test_a_shape_of_two_sizes_is_not_guessed():
    model = learnt("flux")
    model.layout(16, 32)
    with pytest.raises(ModelError, match="may be of 16x32, 32x16"):
        model.shift(torch.zeros(1, *model.sample_shape))


def test_every_size_the_pipeline_refuses_or_rounds_is_named(tmp_path):
    write_two_sizes(tmp_path, (64, 34), (38, 40))
    with pytest.raises(DataError) as caught:
        build_cache(audit_in(tmp_path, TRIPLE), learnt("flux", (32, 32)), tmp_path / "cache", progress=False)
    assert [problem.message.partition(";")[0] for problem in caught.value.problems] == [
        "the pipeline refuses images of 64x34: FluxPipeline makes 64x32 pixels when asked for 64x34 pixels",
        "the pipeline refuses images of 38x40: FluxPipeline makes 36x40 pixels when asked for 38x40 pixels",
    ]

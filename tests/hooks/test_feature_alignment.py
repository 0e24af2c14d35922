"""Feature alignment as a hook: sessions on tiny pipelines of four kinds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import flowhooks
from flowhooks.adapters.adapter_file import read_tensors
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError, ModelError
from flowhooks.hooks import FeatureAlignment
from flowhooks.manifest import MODULES
from flowhooks.modules_file import save_modules
from flowhooks.probe.streams import learn_streams
from flowhooks.train.report import health_names
from tests.families import learnt
from tests.families.checks import pairs
from tests.hooks.aligned import LAYERSYNC, PIPELINES, PROJECTED, aligned, document, outputs_of, trained


@pytest.mark.parametrize("name", PIPELINES)
def test_the_loss_of_layersync_is_that_of_the_blocks_outputs(name):
    model = learnt(name)
    batch = pairs(model)
    with trained(model, {**LAYERSYNC, "weight": 0.2}) as session:
        streams = learn_streams(model)
        student, teacher = (streams.found[n] for n in streams.names[:2])
        with outputs_of(model, student.name, teacher.name) as seen:
            loss = aligned(session, batch)
        assert session.step(batch, log=False).passes == 1
    tokens = model.anatomy.tokens
    h, z = (torch.cat([s.of(out, tokens) for out in seen[s.name]]) for s in (student, teacher))
    assert float(loss.detach()) == pytest.approx(
        0.2 * float((1 - F.cosine_similarity(h, z, dim=-1).detach()).mean()), rel=1e-4
    )


def test_samples_keep_their_rows_when_prompts_share_no_forward():
    """Rows 0 and 2 go through the network together, row 1 after them; masks show which row is which."""
    model = learnt("qwen-image")
    batch = pairs(model)
    clean = torch.cat([batch.clean, batch.clean[:1] + 1])
    condition = batch.condition.join([batch.condition[:1]])
    assert [rows for rows, _ in condition.groups()] == [[0, 2], [1]]
    document = {"adapter": {"rank": 2}, "hooks": [LAYERSYNC, {"type": "mask_reducer"}]}
    with flowhooks.attach(model, document) as session:
        streams = learn_streams(model)
        for row, (call, place) in enumerate([(0, 0), (1, 0), (0, 1)]):
            mask = torch.zeros(3, 1, 8, 8)
            mask[row] = 1
            with outputs_of(model, *streams.names) as seen:
                found = session.evaluate(flowhooks.Batch(clean=clean, condition=condition, mask=mask)).metrics
            h, z = (seen[name][call][1][place] for name in streams.names)
            expected = float((1 - F.cosine_similarity(h, z, dim=-1)).mean())
            assert float(found["crepa_loss"]) == pytest.approx(expected, rel=1e-4), row


@pytest.mark.parametrize("name", PIPELINES)
def test_gradients_reach_adapter_and_projector_but_not_through_the_teacher(name):
    model = learnt(name)
    with trained(model, {**LAYERSYNC, **PROJECTED}) as session:
        streams = learn_streams(model)
        aligned(session, pairs(model)).backward()
        student, teacher = streams.names[:2]
        for key, p in session.parameters().items():
            if f"{teacher}." in key:
                assert p.grad is None or not p.grad.any(), key
            if key.startswith("feature_alignment."):
                assert p.grad is not None and p.grad.any(), key
        assert any(
            p.grad is not None and p.grad.any() for key, p in session.parameters().items() if f"{student}." in key
        )


@pytest.mark.parametrize("source", ["layersync", "backbone"])
@pytest.mark.parametrize("name", PIPELINES)
def test_gradient_checkpointing_changes_nothing(name, source):
    found = []
    for checkpointing in (False, True):
        model = learnt(name)
        model.transformer.train()
        if checkpointing:
            model.transformer.enable_gradient_checkpointing()
        with trained(model, {**LAYERSYNC, **PROJECTED, "source": source}) as session:
            loss = session.step(pairs(model)).loss
            loss.backward()
            gradients = {name: p.grad for name, p in session.parameters().items() if p.grad is not None}
            found.append({"loss": loss.detach(), **gradients})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-7)


def test_the_frozen_base_teaches_and_its_pass_is_shared():
    model = learnt("sd3")
    batch = pairs(model)
    block = {**LAYERSYNC, "source": "backbone", "projector_depth": 0, "block_index": "transformer_blocks.1"}
    with flowhooks.attach(model, document(block)) as session:
        # A fresh adapter is the base: every cosine is 1.
        assert float(session.evaluate(batch).metrics["crepa_loss"]) == pytest.approx(0, abs=1e-6)
    shared = {"adapter": {"rank": 2}, "hooks": [block, {"type": "flow_dpo"}]}
    with flowhooks.attach(model, shared) as session:
        assert session.step(batch).passes == 2


def test_metrics_and_masks():
    model = learnt("sd3")
    batch = pairs(model)
    mask = torch.ones(2, 1, 8, 8)
    mask[1] = 0
    kept = flowhooks.Batch(clean=batch.clean, condition=batch.condition, mask=mask)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [LAYERSYNC, {"type": "mask_reducer"}]}) as session:
        result = session.evaluate(kept).metrics
        assert float(result["crepa_weight"]) == 0.5
        assert float(result["alignment_loss"]) == pytest.approx(0.5 * float(result["crepa_loss"]))
        assert float(result["crepa_alignment_score"]) == pytest.approx(1 - float(result["crepa_loss"]), abs=1e-6)
        streams = learn_streams(model)
        with outputs_of(model, *streams.names) as seen:
            again = session.evaluate(kept).metrics["crepa_loss"]
        h, z = (seen[name][0][-1] for name in streams.names)
        assert float(again) == pytest.approx(float((1 - F.cosine_similarity(h[0], z[0], dim=-1)).mean()), rel=1e-4)


def test_held_out_data_is_weighed_as_the_step_before():
    model = learnt("sd3")
    batch = pairs(model)
    with flowhooks.attach(model, document({**LAYERSYNC, "warmup_steps": 4})) as session:
        assert "crepa_loss" not in session.step(batch).metrics
        session.step(batch)
        session.step(batch)
        assert float(session.evaluate(batch).metrics["crepa_weight"]) == 0.25
        state = session.state_dict()
    with flowhooks.attach(model, document({**LAYERSYNC, "warmup_steps": 4})) as session:
        session.load_state_dict(state)
        assert float(session.evaluate(batch).metrics["crepa_weight"]) == 0.25


def test_the_projector_is_in_no_exported_file(tmp_path):
    model = learnt("sd3")
    with trained(model, {**LAYERSYNC, **PROJECTED}) as session:
        assert any(name.startswith("feature_alignment.projector.") for name in session.parameters())
        session.adapter.save(tmp_path, {})
        assert save_modules(tmp_path, session.assembly, model, {}) is None
    assert not (tmp_path / MODULES).exists()
    tensors, _ = read_tensors(tmp_path / "pytorch_lora_weights.safetensors")
    assert tensors and not any("projector" in key for key in tensors)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_index": 2}, "`block_index` is 2, but the network has 2 blocks, 0 to 1"),
        ({"teacher_block_index": 7}, "`teacher_block_index` is 7"),
        ({"block_index": 1}, "`teacher_block_index` must be deeper"),
        ({"block_index": "blocks.0"}, "`block_index` is 'blocks.0'.*transformer_blocks.0 to transformer_blocks.1"),
    ],
)
def test_blocks_that_cannot_be_used(changes, message):
    model = learnt("sd3")
    before = [len(m._forward_hooks) for m in model.transformer.modules()]
    with pytest.raises(ModelError, match=message), flowhooks.attach(model, document({**LAYERSYNC, **changes})):
        pass
    assert before == [len(m._forward_hooks) for m in model.transformer.modules()]


def test_a_base_that_is_trained_is_no_reference():
    block = {**LAYERSYNC, "source": "backbone"}
    whole = document(block, adapter=None, training={"trainable": "transformer"})
    with pytest.raises(ConfigError, match="needs a reference"), flowhooks.attach(learnt("sd3"), whole):
        pass


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"source": "self-flow"}, "source"),
        ({"weight": -1.0}, "weight"),
        ({"scheduler": "linear"}, "decay_steps"),
        ({"scheduler": "sine"}, "scheduler"),
        ({"similarity_threshold": 0.0}, "similarity_threshold"),
        ({"projector_depth": -1}, "projector_depth"),
        ({"adjacent_tau": 0.0}, "adjacent_tau"),
    ],
)
def test_bad_options_are_refused(options, name):
    block = {**LAYERSYNC, **options}
    written = {key: value for key, value in block.items() if value is not None}
    with pytest.raises(ConfigError, match=name):
        resolve_run(document(written), Path("run.json"))
    with pytest.raises(ValueError, match=f"`{name}`"):
        FeatureAlignment(**{key: value for key, value in block.items() if key != "type"})


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ({"source": "external", "block_index": 0}, "encoder"),
        ({"source": "backbone", "block_index": 0}, "teacher_block_index"),
        ({"block_index": 0}, "teacher_block_index"),
        ({"weight": 0.2, "teacher_block_index": 1}, "block_index"),
    ],
)
def test_a_teacher_that_nobody_named(block, name):
    with pytest.raises(ConfigError, match=rf"hooks\[0\].{name}: is missing"):
        resolve_run(document({"type": "feature_alignment", **block}), Path("run.json"))
    with (
        pytest.raises(ModelError, match=f"`{name}` is missing"),
        flowhooks.attach(learnt("sd3"), [FeatureAlignment(**block)], adapter={"rank": 2}),
    ):
        pass


def test_one_alignment_a_run():
    twice = {"adapter": {"rank": 2}, "hooks": [LAYERSYNC, {**LAYERSYNC, "source": "backbone"}]}
    with pytest.raises(ConfigError, match="alignment_loss"), flowhooks.attach(learnt("sd3"), twice):
        pass


def test_a_weight_of_zero_attaches_nothing():
    model = learnt("sd3")
    with flowhooks.attach(model, document({**LAYERSYNC, **PROJECTED, "weight": 0})) as session:
        assert not any(key.startswith("feature_alignment") for key in session.parameters())
        assert "alignment_loss" not in session.step(pairs(model)).metrics


def test_the_score_is_called_by_no_method_that_the_run_does_not_name():
    assert health_names([FeatureAlignment.__new__(FeatureAlignment)]) == {"crepa_alignment_score": "alignment score"}

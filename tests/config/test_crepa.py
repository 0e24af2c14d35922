"""The documented top-level keys of Self-Flow: as printed, and each of their mistakes."""

from __future__ import annotations

import json

import pytest

from flowhooks.config import hook_defaults, load_run, resolve_run
from tests.config.writing import only, problems, written

#: As Self-Flow's documentation prints it.
PRINTED = json.loads("""
{
  "use_ema": true,
  "crepa_enabled": true,
  "crepa_feature_source": "self_flow",
  "crepa_block_index": 8,
  "crepa_teacher_block_index": 16,
  "crepa_lambda": 0.5,
  "crepa_self_flow_mask_ratio": 0.25
}
""")


def without(*keys: str) -> dict:
    return {key: value for key, value in PRINTED.items() if key not in keys}


def test_the_printed_block_is_two_hooks_and_an_average(tmp_path):
    run = load_run(written(tmp_path, PRINTED))
    assert run.training["use_ema"] is True
    alignment, times = run.hooks
    assert alignment.type == "feature_alignment"
    assert alignment.options == {
        **hook_defaults("feature_alignment"),
        "source": "self_flow",
        "block_index": 8,
        "teacher_block_index": 16,
    }
    assert (times.type, times.options) == ("dual_times", {"mask_ratio": 0.25, "selection": "exact"})
    again = resolve_run(run.document, tmp_path / "run.json")
    assert again.hooks[0].options == alignment.options
    assert not [key for key in again.document if key.startswith("crepa") or key == "use_ema"]


def test_every_key_reaches_its_option(tmp_path):
    schedule = {
        "crepa_lambda": 0.8,
        "crepa_scheduler": "cosine",
        "crepa_warmup_steps": 5,
        "crepa_decay_steps": 7,
        "crepa_lambda_end": 0.1,
        "crepa_cutoff_step": 90,
    }
    run = load_run(written(tmp_path, {**without("crepa_self_flow_mask_ratio"), **schedule}))
    options = run.hooks[0].options
    names = ("weight", "scheduler", "warmup_steps", "decay_steps", "weight_end", "cutoff_step")
    assert [options[name] for name in names] == list(schedule.values())
    assert run.hooks[1].options["mask_ratio"] is None


def test_the_method_says_the_same(tmp_path):
    block = {"block_index": 8, "teacher_block_index": 16, "mask_ratio": 0.25}
    run = load_run(written(tmp_path, {"method": {"self_flow": block}, "training": {"use_ema": True}}))
    printed = load_run(written(tmp_path, PRINTED))
    assert {h.type: h.options for h in run.hooks} == {h.type: h.options for h in printed.hooks}


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        (without("crepa_teacher_block_index"), "$.crepa_teacher_block_index", "is missing"),
        (without("crepa_block_index"), "$.crepa_block_index", "is missing"),
        ({**PRINTED, "crepa_self_flow_mask_ratio": 0.6}, "$.crepa_self_flow_mask_ratio", "0.5"),
        ({**PRINTED, "crepa_use_backbone_features": True}, "$.crepa_use_backbone_features", "remove one of the two"),
        (without("crepa_feature_source"), "$.crepa_feature_source", "needs to know the teacher"),
        ({**PRINTED, "crepa_feature_source": "self-flow"}, "$.crepa_feature_source", "did you mean 'self_flow'"),
        ({**PRINTED, "training": {"use_ema": False}}, "$.use_ema", "`training.use_ema` is false"),
        ({**PRINTED, "crepa_scheduler": "linear"}, "$.crepa_decay_steps", "is missing"),
        ({**PRINTED, "crepa_feature_source": "layersync"}, "$.crepa_self_flow_mask_ratio", "'self_flow'"),
        (
            {**without("crepa_self_flow_mask_ratio"), "crepa_feature_source": "external"},
            "$.crepa_feature_source",
            "'external' is not one of",
        ),
        ({"crepa_lambda": 0.5}, "$.crepa_lambda", 'has no effect without "crepa_enabled": true'),
        ({**PRINTED, "crepa_lamda": 0.5}, "$.crepa_lamda", "did you mean 'crepa_lambda'"),
    ],
)
def test_mistakes_are_named_where_they_were_made(tmp_path, document, path, message):
    problem = only(tmp_path, document)
    assert (problem.path, message in problem.message) == (path, True), problem


def test_switched_off_keys_are_all_named(tmp_path):
    found = problems(tmp_path, {**PRINTED, "crepa_enabled": False})
    assert len(found) == 5


def test_the_frozen_base_by_its_own_key(tmp_path):
    document = without("crepa_feature_source", "crepa_self_flow_mask_ratio", "use_ema")
    run = load_run(written(tmp_path, {**document, "crepa_use_backbone_features": True}))
    assert [hook.options["source"] for hook in run.hooks] == ["backbone"]

"""What the page of Self-Flow says is what was measured, and its readers can read."""

from __future__ import annotations

import pytest
import torch
from transformers import ViTModel

from benchmarks import representation
from benchmarks.evidence_self_flow import ARMS, ENCODER, STUDENT, TEACHER, Bench
from benchmarks.evidence_self_flow_page import BETTER, FEW, UNCLEAR, WORSE, compared, page, verdicts
from benchmarks.representation import block_features, ensure_encoder, probe_accuracy, split
from flowhooks.digits.model import build
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import load_stock
from flowhooks.digits.scans import write_data


def run(frechet: float, accuracy: float) -> dict:
    return {
        "pictures": {str(stage): {"frechet": frechet, "digit_accuracy": 0.5} for stage in (1, 2)},
        "probe": {"block.0": 0.1, "block.1": accuracy, "block.2": 0.2, "block.3": 0.2},
    }


def facts(**arms: list[dict]) -> dict:
    return {
        "arms": arms,
        "network": {"num_layers": 4},
        "weights": 1_000_000,
        "blocks": {"student": 1, "teacher": 2},
        "seeds": list(range(len(next(iter(arms.values()))))),
        "stages": [1, 2],
        "untrained": [{f"block.{i}": 0.1 for i in range(4)}],
        "scans": 1.0,
        "encoder": {"accuracy": 0.9},
        "cost": {arm: {"seconds": 0.1, "median": 1.5} for arm in arms},
        "sampling": {"count": 10, "first_seed": 7, "steps": 20},
        "probe": {"sigma": 0.3, "held_out": 5},
        "machine": {"threads": 1},
    }


@pytest.mark.parametrize(
    ("values", "others", "below"),
    [
        ((1, 2, 3), (4, 5, 6), BETTER),
        ((4, 5, 6), (1, 2, 3), WORSE),
        ((1, 2, 4), (4, 5, 6), UNCLEAR),
        ((1, 2), (4, 5, 6), FEW),
    ],
)
def test_an_arm_is_better_only_where_every_seed_is(values, others, below):
    assert compared(values, others, lower=True) == below
    assert compared(others, values, lower=False) == below


def test_pictures_are_better_below_and_features_above():
    (sentence,) = verdicts(
        facts(plain=[run(10, 0.5), run(11, 0.6), run(12, 0.7)], other=[run(7, 0.4), run(8, 0.4), run(9, 0.4)])
    )
    assert sentence.startswith(
        "**other**: images better at any number of steps (8.0 against 11.0), features worse (40.0% "
    )


def test_the_page_has_every_arm_and_the_student_block():
    lines = page(facts(plain=[run(10, 0.5)], other=[run(8, 0.4)])).splitlines()
    assert "| other | 8.0 (one seed) | 8.0 (one seed) | 50.0% (one seed) | 100 ms, 1.50 |" in lines
    assert "| other | 40.0% (one seed) | 20.0% (one seed) | 20.0% (one seed) |" in lines


def test_arms_differ_in_their_hooks_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "start", lambda self, seed: tmp_path / str(seed))
    monkeypatch.setattr(Bench, "scans", tmp_path)
    monkeypatch.setattr(Bench, "encoder", {"accuracy": 1.0})
    runs = {arm: Bench(output=tmp_path).run(arm, 3).document for arm in ARMS}
    aligned = {arm: [hook for hook in each["hooks"] if "block_index" in hook] for arm, each in runs.items()}
    assert {arm: [hook["source"] for hook in hooks] for arm, hooks in aligned.items()} == {
        "plain": [],
        "Self-Flow": ["self_flow"],
        "two times alone": [],
        "alignment alone": ["self_flow"],
        "LayerSync": ["layersync"],
        "external": ["external"],
    }
    for hooks in aligned.values():
        assert {hook["block_index"] for hook in hooks} <= {STUDENT}
        assert {hook["teacher_block_index"] for hook in hooks} <= {TEACHER, None}
    assert ENCODER not in str(aligned)
    for each in runs.values():
        del each["hooks"]
    assert all(each == runs["plain"] for each in runs.values())


def test_readers_read_what_is_there_and_not_what_is_held_out(tmp_path):
    labels = torch.arange(200) % 10
    train, held = split(len(labels))
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(200))
    known = torch.nn.functional.one_hot(labels, 10).float()
    assert probe_accuracy(known, labels, train, held) == 1
    assert probe_accuracy(torch.zeros(200, 3), labels, train, held) < 0.3


def test_features_are_of_every_block_and_the_encoder_is_loaded_by_folder(tmp_path, monkeypatch):
    write_data(tmp_path, limit=8)
    pixels = read_pixels(tmp_path / "preferred")
    build(tmp_path / "pipeline", pixels, steps=1, progress=False)
    options = {"prompt": "a handwritten digit", "sigma": 0.3, "seed": 0}
    found = block_features(load_stock(tmp_path / "pipeline"), pixels, **options)
    assert [tuple(features.shape) for features in found.values()] == [(8, 128)] * 4
    monkeypatch.setattr(representation, "CHUNK", 3)
    for whole, parts in zip(
        found.values(), block_features(load_stock(tmp_path / "pipeline"), pixels, **options).values(), strict=True
    ):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)

    monkeypatch.setattr(representation, "STEPS", 2)
    told = ensure_encoder(tmp_path / "encoder", pixels, torch.arange(8))
    assert 0 <= told["accuracy"] <= 1
    network = ViTModel.from_pretrained(tmp_path / "encoder", add_pooling_layer=False)
    assert (network.config.image_size // network.config.patch_size) ** 2 == 16

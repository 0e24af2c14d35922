"""The ruler: its distance, its file, and that it can read at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowhooks.digits.judge import Judge, frechet_distance, gaussian, train_judge
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.scans import load_scans, write_data

COUNT = 200


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_data(folder, limit=COUNT)
    digits = torch.from_numpy(load_scans()[1][:COUNT])
    return read_pixels(folder / "preferred"), read_pixels(folder / "rejected"), digits


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    train_judge(folder, *pairs, steps=60)
    return folder


def random_gaussian(seed, size=6):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    return rng.normal(size=size), root @ root.T


def test_distance_of_a_gaussian_to_itself_is_zero():
    mean, covariance = random_gaussian(0)
    assert frechet_distance(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-9)


def test_distance_of_diagonal_gaussians_has_a_closed_form():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    shift = np.array([1.0, -2.0, 0.5])
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(shift, np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(expected, abs=1e-12)


def test_distance_is_that_of_the_matrix_square_root_and_symmetric():
    from scipy.linalg import sqrtm

    (m, a), (n, b) = random_gaussian(1), random_gaussian(2)
    expected = ((m - n) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(n, b, m, a) == pytest.approx(expected, rel=1e-9)


def test_gaussian_is_that_of_numpy():
    features = torch.randn(50, 4)
    mean, covariance = gaussian(features)
    np.testing.assert_allclose(mean, features.double().mean(0))
    np.testing.assert_allclose(covariance, np.cov(features.double().numpy().T))


def test_a_briefly_trained_judge_finds_blots_it_never_saw(folder):
    held_out = Judge.load(folder).held_out
    assert held_out["pairs"] == COUNT // 5
    assert held_out["blot_accuracy"] > 0.8


def test_blotted_pictures_score_worse_than_clean_ones(folder, pairs):
    clean, blotted, digits = pairs
    judge = Judge.load(folder)
    good, bad = judge.score(clean, digits), judge.score(blotted, digits)
    assert good.count == bad.count == COUNT
    assert good.blot_rate < bad.blot_rate
    assert good.frechet == pytest.approx(0, abs=1e-3)
    assert bad.frechet > 10 * good.frechet + 0.1


def test_a_wrong_digit_counts_against_accuracy(folder, pairs):
    clean, _, digits = pairs
    judge = Judge.load(folder)
    right, wrong = judge.score(clean, digits), judge.score(clean, (digits + 1) % 10)
    assert wrong.digit_accuracy <= 1 - right.digit_accuracy


def test_training_is_deterministic_and_leaves_the_random_state_alone(pairs, tmp_path):
    files = []
    state = torch.random.get_rng_state()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train_judge(tmp_path / name, *pairs, steps=3)
        files.append((tmp_path / name / "judge.safetensors").read_bytes())
    assert files[0] == files[1]
    assert torch.equal(state, torch.random.get_rng_state())

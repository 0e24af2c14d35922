"""The maths of feature alignment and its schedules, against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowhooks.hooks.feature_alignment.alignment import (
    SimilarityCutOff,
    WeightSchedule,
    agreement,
    frame_places,
    projector,
    resampled,
    unit,
    with_neighbours,
)


def test_the_cosine_is_over_channels():
    generator = torch.Generator().manual_seed(0)
    h, z = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    for b in range(2):
        cosines = [
            sum(float(x * y) for x, y in zip(h[b, n], z[b, n], strict=True))
            / math.sqrt(sum(float(x) ** 2 for x in h[b, n]) * sum(float(y) ** 2 for y in z[b, n]))
            for n in range(3)
        ]
        assert float(agreement(h, unit(z))[b]) == pytest.approx(sum(cosines) / 3, rel=1e-5)


def test_neighbours_are_a_weighted_mean_of_cosines():
    generator = torch.Generator().manual_seed(1)
    h, z = torch.randn(1, 4, 2, 6, generator=generator), torch.randn(1, 4, 2, 6, generator=generator)
    towards = with_neighbours(unit(z), distance=1, tau=0.5).flatten(1, 2)
    total = 0.0
    for f in range(4):
        near = [k for k in range(4) if abs(k - f) <= 1]
        weights = [math.exp(-abs(k - f) / 0.5) for k in near]
        cosines = [float(F.cosine_similarity(h[0, f], z[0, k], dim=-1).mean()) for k in near]
        total += sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights)
    assert float(agreement(h.flatten(1, 2), towards)) == pytest.approx(total / 4, rel=1e-5)


def test_frames_do_not_mix_and_a_plane_stays_one_when_resampled():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    planes = torch.stack([rows, columns, rows + 10]).reshape(1, 3, 4, 6)
    features = torch.stack([planes.flatten(1), -planes.flatten(1)], -1)
    halved = resampled(features, (3, 4, 6), (3, 2, 3))
    expected = torch.stack([plane.reshape(2, 2, 3, 2).mean((1, 3)) for plane in planes[0]]).flatten()
    torch.testing.assert_close(halved[0, :, 0], expected)
    torch.testing.assert_close(halved[0, :, 1], -expected)
    assert resampled(features, (3, 4, 6), (3, 4, 6)) is features
    with pytest.raises(ValueError, match="3 frames"):
        resampled(features, (3, 4, 6), (2, 4, 6))


def test_frames_that_stand_for_latent_ones():
    assert frame_places(9, 3) == [0, 4, 8] and frame_places(5, 2) == [0, 4] and frame_places(5, 1) == [0]


def test_projectors():
    layers = list(projector(4, 6, width=8, depth=3))
    assert [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)] == [(4, 8), (8, 8), (8, 6)]
    assert [type(m) for m in layers] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    assert isinstance(projector(4, 4, width=8, depth=0), nn.Identity)


def schedule(**changes) -> WeightSchedule:
    plain = {"weight": 0.8, "scheduler": "constant", "warmup_steps": 0, "decay_steps": 0}
    return WeightSchedule(**{**plain, "weight_end": 0.0, "cutoff_step": 0, **changes})


def test_schedules():
    assert [schedule().at(n) for n in (0, 1000)] == [0.8, 0.8]
    warm = schedule(warmup_steps=4, cutoff_step=10)
    assert [warm.at(n) for n in (0, 1, 4, 9, 10, 11)] == [0, 0.2, 0.8, 0.8, 0, 0]
    linear = schedule(scheduler="linear", warmup_steps=2, decay_steps=4, weight_end=0.4)
    assert [linear.at(n) for n in (1, 2, 4, 6, 9)] == pytest.approx([0.4, 0.8, 0.6, 0.4, 0.4])
    cosine = schedule(scheduler="cosine", decay_steps=4)
    expected = [0.8, 0.8 * (1 + math.cos(math.pi / 4)) / 2, 0.4, 0, 0]
    assert [cosine.at(n) for n in (0, 1, 2, 4, 5)] == pytest.approx(expected)


def test_the_cut_off_holds_once_it_was_reached_and_resumes():
    cut = SimilarityCutOff(0.5, 0.5)
    for score, factor in ((0.2, 1), (0.9, 0), (0.0, 0)):
        cut.update(torch.tensor(score))
        assert float(cut.factor(torch.ones(()))) == factor
    other = SimilarityCutOff(0.5, 0.5)
    other.load_state_dict(cut.state_dict())
    assert float(other.factor(torch.ones(()))) == 0 and float(other.average) == float(cut.average)

"""Sums of low-rank changes against the same sums of whole matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flowhooks.adapters.combine import (
    Factors,
    average,
    concatenate,
    distance,
    hadamard,
    norm,
    padded,
    truncate,
    weighted_sum,
)

OUT, IN = 48, 40


def factors(generator: torch.Generator, rank: int, down: Tensor | None = None, sides=(OUT, IN)) -> Factors:
    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Factors(
        down=noise(rank, sides[1]) if down is None else down + 0.1 * noise(rank, sides[1]), up=noise(sides[0], rank)
    )


def whole(change: Factors) -> Tensor:
    return change.up @ change.down


@pytest.fixture
def three():
    generator = torch.Generator().manual_seed(0)
    changes = [factors(generator, rank) for rank in (4, 2, 7)]
    return list(zip((0.5, -0.2, 1.5), changes, strict=True))


def test_concatenation_is_the_sum(three):
    found = concatenate(three)
    wanted = sum(weight * whole(change) for weight, change in three)
    assert found.rank == 13
    torch.testing.assert_close(whole(found), wanted, rtol=1e-12, atol=1e-12)
    assert norm(found) == pytest.approx(float(wanted.norm()), rel=1e-12)


def test_adapters_of_other_layers_and_ranks_add_up():
    """Names that end each other's, ranks that differ within an adapter, a negative weight, a single adapter."""
    generator = torch.Generator().manual_seed(5)
    one = {"to_q": factors(generator, 4), "block.to_q": factors(generator, 2, sides=(IN, OUT))}
    two = {"block.to_q": factors(generator, 3, sides=(IN, OUT)), "layer0": factors(generator, 5)}
    found = weighted_sum([one, two], [0.7, -0.3])
    assert {name: change.rank for name, change in found.items()} == {"to_q": 4, "block.to_q": 5, "layer0": 5}
    for name, change in found.items():
        parts = [(weight, each[name]) for weight, each in ((0.7, one), (-0.3, two)) if name in each]
        assert change.down.dtype == change.up.dtype == torch.float64
        torch.testing.assert_close(whole(change), whole(concatenate(parts)), rtol=1e-12, atol=1e-12)
    (alone,) = weighted_sum([{"to_q": one["to_q"]}], [-0.3]).values()
    # PEFT keeps the root of a single adapter's weight in fp32.
    torch.testing.assert_close(whole(alone), -0.3 * whole(one["to_q"]), rtol=1e-7, atol=1e-6)


def test_the_same_adapter_twice_is_of_its_own_rank():
    """Whatever the weights round to."""
    adapter = {"to_q": factors(torch.Generator().manual_seed(6), 5)}
    assert truncate(weighted_sum([adapter] * 2, [0.3, 0.7])["to_q"], 10).rank == 5


def test_elementwise_products(three):
    (_, first), (_, second), _ = three
    found = hadamard(first, second)
    assert found.rank == 8
    torch.testing.assert_close(whole(found), whole(first) * whole(second), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 4, 12, 13, 30])
def test_truncation_is_the_best_of_its_rank(three, rank):
    """Eckart and Young: what is left out are the smallest singular values."""
    change = concatenate(three)
    values = np.linalg.svd(whole(change).numpy(), compute_uv=False)
    found = truncate(change, rank)
    assert found.rank == min(rank, 13)
    left = np.sqrt((values[rank:] ** 2).sum())
    assert np.linalg.norm(whole(found).numpy() - whole(change).numpy()) == pytest.approx(left, abs=1e-9)
    assert distance(found, change) == pytest.approx(left, abs=1e-6)
    np.testing.assert_allclose(np.linalg.svd(whole(found).numpy(), compute_uv=False)[:rank], values[:rank], atol=1e-9)
    torch.testing.assert_close(found.down @ found.down.T, found.up.T @ found.up, rtol=1e-9, atol=1e-9)


def test_truncation_of_ranks_beyond_the_sides():
    generator = torch.Generator().manual_seed(1)
    change = concatenate([(0.3, factors(generator, 30)), (0.7, factors(generator, 30))])
    found = truncate(change, 60)
    assert found.rank == IN
    torch.testing.assert_close(whole(found), whole(change), rtol=1e-10, atol=1e-10)
    twice = concatenate([(0.5, factors(torch.Generator().manual_seed(2), 5))] * 2)
    assert truncate(twice, 10).rank == 5


def test_averaged_factors_are_far_from_the_average_unless_they_share_a_start():
    """The two numbers that the documentation gives for three adapters."""
    errors = {}
    for shared in (False, True):
        generator = torch.Generator().manual_seed(3)
        start = torch.randn(8, 512, generator=generator, dtype=torch.float64) if shared else None
        parts = [(1 / 3, factors(generator, 8, start, (512, 512))) for _ in range(3)]
        mean = concatenate(parts)
        found = average(parts)
        wanted = sum(weight * change.up for weight, change in parts) @ sum(w * change.down for w, change in parts)
        torch.testing.assert_close(whole(found), wanted)
        errors[shared] = distance(found, mean) / norm(mean)
        difference = float((whole(found) - whole(mean)).norm() / whole(mean).norm())
        assert errors[shared] == pytest.approx(difference, rel=1e-9)
    assert errors[False] == pytest.approx((2 / 3) ** 0.5, abs=0.01)
    assert errors[True] == pytest.approx(0.08, abs=0.01)


def test_padding_changes_nothing_and_can_be_trained():
    change = factors(torch.Generator().manual_seed(4), 3)
    found = padded(change, 5)
    assert found.rank == 5 and torch.equal(whole(found), whole(change))
    assert found.down[3:].any(dim=1).all() and not found.up[:, 3:].any()
    assert padded(change, 3) is change and padded(change, 2) is change
    empty = truncate(Factors(down=torch.zeros(2, IN), up=torch.zeros(OUT, 2)), 2)
    assert empty.rank == 0 and norm(empty) == 0 and padded(empty, 2).rank == 2

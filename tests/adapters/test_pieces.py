"""Changes that are stacked, cut, swapped and scaled stay the change that they were, whatever their kind."""

from __future__ import annotations

import pytest
import torch

from flowhooks.adapters.pieces import Piece, stacked
from flowhooks.errors import AdapterError


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(name="part", outputs=6, inputs=5, rank=2, scale=1.5, seed=0):
    factors = {"down": numbers(rank, inputs, seed=seed), "up": numbers(outputs, rank, seed=seed + 1)}
    return Piece(name=name, kind="lora", factors=factors, scale=scale)


def loha(name="part", outputs=6, inputs=5, rank=2, scale=1.5, seed=0):
    shapes = {"w1_a": (outputs, rank), "w1_b": (rank, inputs), "w2_a": (outputs, rank), "w2_b": (rank, inputs)}
    factors = {key: numbers(*shape, seed=seed + i) for i, (key, shape) in enumerate(shapes.items())}
    return Piece(name=name, kind="loha", factors=factors, scale=scale)


def lokr(first=(3, 1), second=(2, 5), whole=False, scale=1.5):
    """Outputs are the product of the first sides."""
    factors = {"w1": numbers(*first)}
    if whole:
        factors["w2"] = numbers(*second, seed=1)
    else:
        factors |= {"w2_a": numbers(second[0], 2, seed=1), "w2_b": numbers(2, second[1], seed=2)}
    return Piece(name="part", kind="lokr", factors=factors, scale=scale)


KINDS = {
    "lora": lora(),
    "loha": loha(),
    "lokr": lokr(),
    "whole lokr": lokr(whole=True),
    "lokr of one row": lokr((1, 1), (6, 5)),
}


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_cut_and_turned_into_a_lora(kind):
    piece = KINDS[kind]
    change = piece.change()
    assert piece.shape == tuple(change.shape) == (6, 5)
    close(piece.folded().change(), change)
    assert piece.folded().scale == 1
    close(piece.times(-2.5).change(), -2.5 * change)
    close(piece.rows(2, 4).change(), change[2:4])
    close(piece.as_lora(5).change(), change)
    assert piece.as_lora(1).rank == (1 if kind != "lora" else 2)
    if kind in ("lokr", "whole lokr"):
        with pytest.raises(AdapterError, match="does not split at 3 and 6"):
            piece.swapped()
    else:
        close(piece.swapped().change(), change.roll(3, 0))


@pytest.mark.parametrize("make", [lora, loha])
def test_stacked_parts_of_different_ranks_and_scales_and_a_missing_one(make):
    first, last = make(outputs=4, scale=1.5), make(outputs=3, rank=3, scale=0.25, seed=7)
    whole = stacked("qkv", [first, None, last], [4, 2, 3])
    assert whole.rank == 5
    close(whole.change(), torch.cat([first.change(), torch.zeros(2, 5, dtype=torch.float64), last.change()]))
    again = whole.rows(0, 4).compact()
    close(again.change(), first.change())
    assert again.rank == 2 and whole.rows(4, 6).compact() is None


def test_stacks_that_there_are_not():
    for parts in ([lokr(), lokr()], [lora(), loha()]):
        with pytest.raises(AdapterError, match=r"`qkv` is one layer, of which `part`, `part` are parts"):
            stacked("qkv", parts, [6, 6])


def test_half_precision_is_kept_where_nothing_rounds():
    piece = lora()
    half = Piece(name="x", kind="lora", factors={k: t.bfloat16() for k, t in piece.factors.items()}, scale=2.0)
    assert half.folded().factors["up"].dtype == torch.bfloat16
    assert half.times(0.75).factors["up"].dtype == torch.float32

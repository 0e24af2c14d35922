"""Picked rows times and plus tokens: the numbers, the gradients, and what is kept for them."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

from flowhooks.probe.levels import Levels, Mix
from flowhooks.probe.picking import plus_picked, times_picked
from flowhooks.probe.weight_names import WeightNames

#: Two samples of four tokens, three rows each.
LEVEL = torch.tensor([[0, 2, 2, 1], [1, 0, 1, 1]])
INDEX = torch.tensor([[0, 2, 2, 1], [4, 3, 4, 4]])
PAIRS = [(times_picked, operator.mul), (plus_picked, operator.add)]


def tensors(*rest, rows=torch.float64, tokens=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = {(2, 4, *rest): tokens, (6, *rest): rows}
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(d) for s, d in shapes.items()]


@pytest.mark.parametrize(("found", "expected"), PAIRS)
@pytest.mark.parametrize("rest", [(5,), (2, 3)])
def test_it_is_what_indexing_gives(found, expected, rest):
    tokens, rows = (t.requires_grad_(True) for t in tensors(*rest))
    result, wanted = found(tokens, rows, INDEX), expected(tokens, rows[INDEX])
    assert torch.equal(result, wanted)
    weights = torch.randn_like(wanted)
    for mine, theirs in zip(*(torch.autograd.grad(r, (tokens, rows), weights) for r in (result, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("function", "_"), PAIRS)
def test_gradients_of_gradients(function, _):
    inputs = [t.requires_grad_(True) for t in tensors(2)]
    torch.autograd.gradgradcheck(lambda tokens, rows: function(tokens, rows, INDEX), inputs)


@pytest.mark.parametrize(("function", "expected"), PAIRS)
@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
)
def test_dtypes_are_promoted_as_ever(function, expected, dtypes):
    tokens, rows = (t.requires_grad_(True) for t in tensors(5, rows=dtypes[0], tokens=dtypes[1]))
    found, wanted = function(tokens, rows, INDEX), expected(tokens, rows[INDEX])
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    found.square().sum().backward()
    assert tokens.grad.dtype == tokens.dtype and rows.grad.dtype == rows.dtype


@pytest.mark.parametrize(("function", "_"), PAIRS)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_nothing_that_was_picked_is_kept(function, _, wanted):
    """Of the size of tokens autograd keeps the tokens alone, and them only for the gradient of a factor."""
    tokens, rows = (t.requires_grad_(w) for t, w in zip(tensors(5), wanted, strict=True))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function(tokens, rows, INDEX).sum().backward()
    large = [t.data_ptr() for t in kept if t.dim() == 3 and t.shape[1] == tokens.shape[1]]
    assert large == ([tokens.data_ptr()] if function is times_picked and wanted[1] else [])


@pytest.mark.parametrize("combine", [lambda a, b: a * b, lambda a, b: b * a, lambda a, b: a + b, torch.mul, torch.add])
@pytest.mark.parametrize("tokens", [(4,), (2, 2)])
def test_levels_meet_tokens_that_way(combine, tokens, monkeypatch):
    others, rows = tensors(5)
    others = others.reshape(2, *tokens, 5)
    mix = Mix(index=LEVEL, count=3, places=lambda meeting: "all", names=WeightNames(nn.Identity))
    levels = Levels(rows.reshape(6, *[1] * len(tokens), 5), mix)
    monkeypatch.setattr(Levels, "_pick", None)
    found = combine(others, levels)
    assert torch.equal(found, combine(others, rows[INDEX].reshape(others.shape)))


@pytest.mark.parametrize("others", [torch.ones(1, 4, 5), torch.ones(4, 2, 5), torch.ones(2, 3, 4, 5)])
def test_other_axes_are_picked_too(others):
    """One sample, a batch that moved, axes before the tokens."""
    _, rows = tensors(5)
    size = 1 if len(others) == 1 else 2
    levels = Levels(
        rows[: 3 * size].unsqueeze(1),
        Mix(index=LEVEL[:size], count=3, places=lambda meeting: "all", names=WeightNames(nn.Identity)),
    )
    expected = rows[INDEX[:size]]
    if len(others) == 4:
        levels, expected = levels.transpose(0, 1), expected.transpose(0, 1)
    if others.dim() == 4:
        levels, expected = levels.unsqueeze(1).expand(-1, 3, -1, -1), expected.unsqueeze(1)
    assert torch.equal(others * levels, others * expected)

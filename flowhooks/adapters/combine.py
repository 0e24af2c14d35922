"""Sum LoRA with PEFT's ``add_weighted_adapter``; compute products, best approximations and averaged factors ourselves.

PEFT's ``cat`` is the sum. Its other combinations were tried and do not keep what ``flowhooks merge`` says (PEFT 0.21,
float64, one core):

* ``svd`` forms the whole weight and takes all of its singular values: 20 s and 500 MB for a layer of 3072 x 3072 where
  :func:`truncate` takes 8 ms, for the same change to 1e-14. It gives the singular values to one of the two factors,
  keeps a rank that nothing fills, and does not support Conv3d.
* ``linear`` differs from :func:`average`: it multiplies both factors by the root of the weight, so that two
  independent adapters are 1.00 off their mean instead of 0.71, and N that share their ``down`` come out N times too
  strong.
* It cannot combine LoHa and LoKr at all.

A change of a weight ``[out, in]`` is ``up @ down``. No function here forms a matrix larger than the factors it is
given, and all of them compute in the factors' dtype; float64 is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor

from flowhooks.adapters.outline import meta_layers

METHODS = ("cat", "svd", "factor_average")


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Holds the change ``up @ down`` of one layer, scale included.

    Args:
        down: ``[rank, in]``.
        up: ``[out, rank]``.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@torch.no_grad()
def weighted_sum(adapters: Sequence[Mapping[str, Factors]], weights: Sequence[float]) -> dict[str, Factors]:
    """Add adapters up with PEFT, exactly: in every layer the ranks of those that change it add up.

    Args:
        adapters: layer name -> change, for each adapter. A layer that one lacks counts as 0.
        weights: weights of the adapters.
    """
    sides = {name: (len(change.up), change.down.shape[1]) for each in adapters for name, change in each.items()}
    # Names without dots: PEFT matches a name that is the end of another to both layers.
    places = {name: f"layer{i}" for i, name in enumerate(sides)}
    shell = meta_layers({places[name]: shape for name, shape in sides.items()}, dtype=torch.float64)
    keys = [f"adapter{i}" for i in range(len(adapters))]
    tuner: Any = None
    for key, adapter in zip(keys, adapters, strict=True):
        config = _config({places[name]: change.rank for name, change in adapter.items()})
        if tuner is None:
            tuner = LoraModel(shell, config, key)
        else:
            tuner.peft_config[key] = config
            tuner.inject_adapter(shell, key)
        for name, change in adapter.items():
            layer: Any = shell.get_submodule(places[name])
            layer.lora_A[key].weight.copy_(change.down)
            layer.lora_B[key].weight.copy_(change.up)
    tuner.add_weighted_adapter(keys, list(weights), "sum", combination_type="cat")
    total: dict[str, Factors] = {}
    for name, place in places.items():
        layer = shell.get_submodule(place)
        # PEFT gives every layer the sum of the largest ranks and leaves the rest of both factors zero.
        rank = sum(adapter[name].rank for adapter in adapters if name in adapter)
        total[name] = Factors(
            down=layer.lora_A["sum"].weight.detach()[:rank], up=layer.lora_B["sum"].weight.detach()[:, :rank]
        )
    return total


def _config(ranks: Mapping[str, int]) -> LoraConfig:
    """Return the configuration of a LoRA of scale 1 with these ranks, by layer."""
    largest = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != largest}
    return LoraConfig(
        r=largest,
        lora_alpha=largest,
        target_modules=list(ranks),
        rank_pattern=other,
        alpha_pattern=dict(other),
        init_lora_weights=False,
    )


def concatenate(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Return the exact weighted sum of one layer's changes; ranks add up. It is for kinds that :func:`weighted_sum`
    cannot take, whose factors are as large as the weight: one layer at a time."""
    return Factors(
        down=torch.cat([factors.down for _, factors in parts]),
        up=torch.cat([weight * factors.up for weight, factors in parts], dim=1),
    )


def hadamard(first: Factors, second: Factors) -> Factors:
    """Return the exact elementwise product of two changes; ranks multiply."""
    down = first.down[:, None] * second.down[None]
    up = first.up[:, :, None] * second.up[:, None]
    return Factors(down=down.flatten(0, 1), up=up.flatten(1))


def truncate(change: Factors, rank: int) -> Factors:
    """Return the best change of at most ``rank`` in the Frobenius norm (Eckart and Young): the leading singular values,
    each split evenly between its two factors. The rank is smaller if ``change`` has a smaller rank up to rounding."""
    outer, core_up = torch.linalg.qr(change.up)
    inner, core_down = torch.linalg.qr(change.down.T)
    left, values, right = torch.linalg.svd(core_up @ core_down.T, full_matrices=False)
    smallest = values.amax() * torch.finfo(values.dtype).eps * max(core_up.shape + core_down.shape)
    rank = min(rank, int((values > smallest).sum()))
    root = values[:rank].sqrt()
    return Factors(down=root[:, None] * (right[:rank] @ inner.T), up=(outer @ left[:, :rank]) * root)


def average(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Average the factors separately, as public scripts do. This is not the average of the changes: for N independently
    trained adapters the relative error is ``sqrt((N - 1) / N)``, 0.82 for three; it is small if they share their
    ``down``. Ranks must be equal."""
    return Factors(
        down=sum((weight * factors.down for weight, factors in parts), start=torch.zeros(())),
        up=sum((weight * factors.up for weight, factors in parts), start=torch.zeros(())),
    )


def padded(change: Factors, rank: int) -> Factors:
    """Return the same change with ``rank`` factors. The new ones are zero in ``up`` only, so that they can be
    trained."""
    missing = rank - change.rank
    if missing <= 0:
        return change
    inputs = change.down.shape[1]
    noise = torch.randn(missing, inputs, generator=torch.Generator().manual_seed(0)).to(change.down) / inputs**0.5
    return Factors(
        down=torch.cat([change.down, noise]),
        up=torch.cat([change.up, change.up.new_zeros(change.up.shape[0], missing)], dim=1),
    )


def norm(change: Factors) -> float:
    """Return the Frobenius norm of ``up @ down``."""
    core_up, core_down = torch.linalg.qr(change.up)[1], torch.linalg.qr(change.down.T)[1]
    return float(torch.linalg.matrix_norm(core_up @ core_down.T))


def distance(found: Factors, wanted: Factors) -> float:
    """Return the Frobenius norm of the difference of two changes."""
    return norm(concatenate([(1.0, found), (-1.0, wanted)]))

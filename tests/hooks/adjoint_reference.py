"""What adjoint matching minimises, written out: the reference that its targets are held to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flowhooks.hooks.adjoint_target import maths as adjoint


def regularizer_cost(control: Tensor, powers: Mapping[float, float]) -> Tensor:
    """``[B]`` ``L(u) = n sum_p lambda_p / p * rms(u)^p`` over the n numbers of a sample; with the power 2 alone
    ``lambda / 2 |u|^2``.

    Args:
        powers: p > 1 -> lambda_p > 0. By the root *mean* square, so that lambdas carry over resolutions.
    """
    size = adjoint.rms(control)
    parts = [weight / p * size**p for p, weight in powers.items()]
    return control[0].numel() * torch.stack(parts).sum(0)


def hamiltonian(control: Tensor, costate: Tensor, powers: Mapping[float, float]) -> Tensor:
    """``[B]`` ``L(u_k) - g_{k+1} . u_k``. Its gradient in ``u`` at the co-states of :func:`full`, times ``|D_k|`` and
    summed, is that of the whole cost. With the power 2 alone it is ``lambda / 2`` of the squared distance from the
    target, up to a constant."""
    return regularizer_cost(control, powers) - (control * costate).flatten(1).sum(1)

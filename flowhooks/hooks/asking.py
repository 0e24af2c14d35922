"""Functions by which hooks evaluate the network at states of their own, beside the passes on views. Each call counts as
one of the `queries` that a hook declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View, at_least_fp32


def exact_velocity(
    step: Step, role: str, noisy: Tensor, sigma: Tensor, condition: Any, *, r_sigma: Tensor | None = None
) -> Tensor:
    """``[n, ...]`` fp32 velocity of ``role`` at states ``[n, ...]``, without gradient and without autocast; see
    :func:`seen_part`."""
    times = {} if r_sigma is None else {"r_sigma": r_sigma}
    with step.playing(role, autocast=False) as model:
        return seen_part(step, model.predict(at_least_fp32(noisy), sigma, condition, **times), condition)


def trained_velocity(
    step: Step, noisy: Tensor, sigma: Tensor, condition: Any, *, r_sigma: Tensor | None = None
) -> Tensor:
    """``[n, ...]`` velocity of the policy at states ``[n, ...]``, with gradient; see :func:`seen_part`."""
    times = {} if r_sigma is None else {"r_sigma": r_sigma}
    with step.playing(POLICY, gradient=True) as model:
        return seen_part(step, model.predict(noisy, sigma, condition, **times), condition)


def prepare_guidance(session: Session, who: str) -> None:
    """Encode what :func:`guided_velocity` needs; call it in ``attached`` of a hook.

    Args:
        who: the option, in the message.

    Raises:
        ModelError: prompts of the run's own, whose conditions do not hold what they are without a prompt.
    """
    model: Any = session.model
    if model.contract.entangled and getattr(session.source, "prompt_list", None) is not None:
        raise ModelError(
            f"{model.contract.pipeline} encodes a prompt together with its references, and `prompts` of a run are not "
            f"encoded without their text; set {who} to 1, or leave out `prompts` to sample the captions of the data"
        )
    model.encode_null_conditions()


def guided_velocity(step: Step, view: View, role: str, scale: float) -> Tensor:
    """``[B, ...]`` fp32 velocity of ``role`` on a view, ``v_null + scale (v - v_null)`` with that of an empty prompt,
    without gradient. One forward beside the declared pass, once in a step; none at scale 1."""
    prompted = at_least_fp32(step.predict(view.name, role))
    if scale == 1:
        return prompted
    model: Any = step.model

    def made() -> Tensor:
        without = replace(view, condition=model.null_conditions(view.condition))
        with step.playing(role) as playing:
            (velocity,) = view.state.predict(playing, role, [without])
        return seen_part(step, at_least_fp32(velocity), view.condition)

    unprompted = step.once(("unprompted", view.name, role), made)
    return unprompted + scale * (prompted - unprompted)


def seen_part(step: Step, values: Tensor, condition: Any) -> Tensor:
    """``[n, ...]`` with 0 where the network does not see samples of this condition, such as in a given first frame:
    there nothing may weigh anything."""
    seen = step.model.seen(values, condition)
    return values if seen is None else values * seen


def visited_velocity(step: Step, role: str, visit: Any, *, as_sampled: bool = False) -> Tensor:
    """``[n, ...]`` fp32 velocity of ``role`` at a visited state, guided, without gradient.

    Args:
        as_sampled: as :meth:`flowhooks.kernel.step.Step.playing` takes it.
    """
    with step.playing(role, as_sampled=as_sampled):
        return at_least_fp32(visit.velocity(role))


@contextmanager
def pullback(step: Step, role: str, visit: Any) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """``[n, ...]`` fp32 velocity of ``role`` at a visited state, guided, without gradient, and the product of its
    transposed Jacobian by the state with ``[n, ...]``, which may be computed once.

    Both are those of the steps that were sampled, and so without a training adapter. The graph is kept inside the block
    only.
    """
    released, leaf = visit.with_leaf_state()
    with step.playing(role, as_sampled=True):
        with torch.enable_grad():
            graph = [released.velocity(role)]

        def product(cotangent: Tensor) -> Tensor:
            # Scaled to a mean square of 1, so that half precision does not underflow.
            shape = (-1, *[1] * (cotangent.dim() - 1))
            size = cotangent.flatten(1).square().mean(1).sqrt().reshape(shape)
            unit = cotangent / torch.where(size > 0, size, torch.ones_like(size))
            (found,) = torch.autograd.grad(graph[0], leaf, unit.to(graph[0].dtype))
            return at_least_fp32(found) * size

        try:
            yield at_least_fp32(graph[0].detach()), product
        finally:
            # The graph is freed even if the caller keeps the product: autograd does not free paths to weights that
            # were not walked.
            graph.clear()

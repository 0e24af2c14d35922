"""What is seen of a pipeline before something is attached to it, and after."""

from __future__ import annotations

from typing import Any

import torch

from flowhooks.quantization.plain import plain_parts


def trace(pipe: Any, network: Any = None) -> dict[str, Any]:
    """Whatever a hook or an adapter could leave behind on a pipeline and its network, by default its transformer."""
    network = pipe.transformer if network is None else network
    modules = dict(network.named_modules())
    return {
        "classes": {name: type(m) for name, m in modules.items()},
        "attributes": {name: sorted(vars(m)) for name, m in modules.items()},
        "identities": {name: id(m) for name, m in modules.items()},
        "hooks": {
            name: [len(h) for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
            for name, m in modules.items()
        },
        "keys": list(network.state_dict()),
        "weights": {
            f"{key}, part {i}": part.clone()
            for key, weight in network.state_dict().items()
            for i, part in enumerate(plain_parts(weight))
        },
        "gradients": {name: p.requires_grad for name, p in network.named_parameters()},
        "training": {name: m.training for name, m in modules.items()},
        "pipe": (type(pipe), sorted(vars(pipe))),
        "scheduler": (type(pipe.scheduler), sorted(vars(pipe.scheduler)), dict(pipe.scheduler.config)),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

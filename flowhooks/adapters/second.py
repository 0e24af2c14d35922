"""Add a second trained adapter to the layers of the first: another model of the same kind that costs only its rank."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from flowhooks.adapters.base import AttachedAdapter
from flowhooks.adapters.bypass import Setting
from flowhooks.adapters.outline import grown
from flowhooks.adapters.peft_adapter import PeftAdapter, inject_layers, parameters_of, peft_config
from flowhooks.errors import AdapterError


class SecondAdapter(AttachedAdapter):
    """Adds an adapter beside ``first``, of its kind and on its layers.

    It has no effect outside :meth:`alone`: not in the policy, not in the reference, not in the stock pipeline, and not
    in the first adapter's file. It is switched without PEFT's own calls, which change
    ``requires_grad``.

    Args:
        first: the first adapter, attached.
        name: PEFT's adapter name, other than the first's.
        rank: rank of the update.
        alpha: the update is scaled by ``alpha / rank``.

    Raises:
        AdapterError: the first is detached, the name is taken, or PEFT refuses.
    """

    def __init__(self, first: PeftAdapter, *, name: str, rank: int, alpha: float):
        # Raises for a detached adapter.
        first.state_dict()
        config = {**first.config, "rank": rank, "alpha": alpha, "dropout": 0.0, "init_from": None}
        self.kind, self.name, self._layers = first.kind, name, first.layers
        if name in vars(first.transformer)["peft_config"]:
            raise AdapterError(f"The transformer already has an adapter named {name!r}. Choose another name.")
        super().__init__(first.transformer, config, first.targets, _Seat(first, name))
        try:
            self._inject()
        except BaseException:
            self.detach()
            raise

    def alone(self) -> AbstractContextManager[None]:
        """Let the transformer compute with this adapter in place of the first, inside the block.

        On exit everything is as before. A backward belongs inside too: gradient checkpointing runs the forward again.
        It must not be used while the first adapter is disabled.
        """
        settings: list[Setting] = []
        for layer in self._layers:
            settings += [(layer, "_active_adapter", [self.name]), (layer, "_disable_adapters", False)]
        return self._switched(settings)

    def as_module(self) -> nn.Module:
        """Return a module that holds the live parameters under the names of :meth:`named_parameters`."""
        root = nn.Module()
        for name, parameter in self._parameters.items():
            owner, leaf = grown(root, name)
            owner.register_parameter(leaf, parameter)
        return root

    def _inject(self) -> None:
        peft = peft_config(self.config, self.targets)
        active = [vars(layer)["_active_adapter"] for layer in self._layers]
        flags = [(parameter, parameter.requires_grad) for parameter in self.transformer.parameters()]
        # PEFT leaves an adapter where it was made if another one of its layer has no numbers.
        numberless = any(parameter.is_meta for layer in self._layers for parameter in layer.parameters())
        try:
            with torch.device("meta") if numberless else nullcontext():
                inject_layers(self.transformer, peft, self.kind, self.targets, self.name)
        finally:
            for layer, found in zip(self._layers, active, strict=True):
                vars(layer)["_active_adapter"] = found
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        self._own(parameters_of(self._layers, self.targets, self.name))


class _Seat:
    """Knows where a second adapter is injected, and removes it."""

    def __init__(self, first: PeftAdapter, name: str):
        self._transformer, self._layers, self._name = first.transformer, first.layers, name

    def restore(self) -> None:
        for layer in self._layers:
            layer.delete_adapter(self._name)
        # Removed already if the first adapter was detached before this one.
        vars(self._transformer).get("peft_config", {}).pop(self._name, None)


def build_second(first: Any, *, name: str, rank: int, alpha: float) -> SecondAdapter:
    """Build a fresh adapter beside ``first``; the transformer computes with it as without until it is trained.

    Raises:
        AdapterError: there is no first adapter, or it is not one of PEFT's.
    """
    if first is None:
        raise AdapterError("There is no adapter to add a second one to. Give the run an `adapter` section.")
    if not isinstance(first, PeftAdapter):
        raise AdapterError(
            f"A second adapter needs a first one of PEFT's, and `adapter.type` is {first.kind!r}. Use 'lora', "
            "'loha' or 'lokr'."
        )
    return SecondAdapter(first, name=name, rank=rank, alpha=alpha)

"""Name the weights of a network, whatever adapter wraps their layers, also in compiled code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowhooks.probe.offloading import original

#: Operations on the levels since they last met a weight: its name, then each operation. Adapters leave no
#: entry.
Path = tuple[str, ...]

#: Attribute of a weight that holds its shared name while blocks are compiled.
_ATTRIBUTE = "_flowhooks_name"


class WeightNames:
    """Names the weights of the network that ``network()`` returns, whatever adapter wraps their layer; the network is
    walked only for a new weight."""

    def __init__(self, network: Callable[[], nn.Module]):
        self.network = network
        #: Id of a weight -> its layer, its name there, and its name. Not a weak reference: torch moves no tensor of a
        #: quantised layer to which there is one.
        self._known: dict[int, tuple[nn.Module, str, str]] = {}

    def of(self, tensor: Tensor) -> str | None:
        """Return the name of ``tensor``, None if it is no weight of the network."""
        if not isinstance(tensor, nn.Parameter):
            return None
        if torch.compiler.is_compiling():
            # Identities do not live in a graph.
            return getattr(tensor, _ATTRIBUTE, None)
        tensor = original(tensor)
        known = self._known.get(id(tensor))
        # The id of a freed weight may belong to another tensor by now.
        there = None if known is None else known[0]._parameters.get(known[1])
        if there is None or original(there) is not tensor:
            self._known = {
                id(original(weight)): (layer, key, f"{name}.{key}".lstrip(".").replace(".base_layer", ""))
                for name, layer in self.network().named_modules()
                for key, weight in layer._parameters.items()
                if weight is not None
            }
            known = self._known.get(id(tensor))
        return None if known is None else known[2]

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write their shared names on the weights inside the block, where compiled code finds them."""
        weights = [(p, shared_name(name.replace(".base_layer", ""))) for name, p in self.network().named_parameters()]
        for weight, name in weights:
            setattr(weight, _ATTRIBUTE, name)
        try:
            yield
        finally:
            for weight, _ in weights:
                vars(weight).pop(_ATTRIBUTE, None)


def shared_name(name: str) -> str:
    """Return a weight's name without the numbers of blocks, so that blocks of one class share a graph."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def with_shared_names(places: Mapping[tuple[Path, int], str | None]) -> dict[tuple[Path, int], str | None]:
    """Add places under shared names, where all weights of a name agree."""
    found: dict[tuple[Path, int], set[str | None]] = {}
    for (path, dim), place in places.items():
        if path:
            found.setdefault(((shared_name(path[0]), *path[1:]), dim), set()).add(place)
    return {**{key: kinds.pop() for key, kinds in found.items() if len(kinds) == 1}, **places}

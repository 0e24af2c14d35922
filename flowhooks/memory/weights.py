"""Weights of a pipeline's parts as a run holds them, quantised ones too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowhooks.checks.quantization import gguf_file, quantized
from flowhooks.quantization.layers import quantizable
from flowhooks.quantization.table import FLOAT8, METHOD, Stored, stored, torchao_name

#: Backends whose layers keep their input until the backward pass, which needs it only to train the weight.
_KEEP_INPUTS = ("quanto",)
#: Keys of the settings of a component that name layers which are not quantised.
_KEPT = ("modules_to_not_convert", "llm_int8_skip_modules")


@dataclass(frozen=True, kw_only=True)
class PartWeights:
    """How large the weights of a part of a pipeline are.

    Args:
        numbers: all of them.
        matrices: rows and columns of those that may be quantised.
    """

    numbers: int
    matrices: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> PartWeights:
        layers: list[Any] = [module.get_submodule(name) for name in quantizable(module)]
        matrices = tuple((layer.out_features, layer.in_features) for layer in layers)
        return cls(numbers=sum(each.numel() for each in module.state_dict().values()), matrices=matrices)

    def bytes(self, itemsize: int, held: Stored | int | None = None) -> int:
        """Bytes of the weights.

        Args:
            itemsize: of a number that is not quantised.
            held: how a quantised matrix is, or the bytes of a file that is as large as what is read from it; None where
                nothing is quantised.
        """
        if held is None:
            return self.numbers * itemsize
        if isinstance(held, int):
            return held
        plain = self.numbers - sum(rows * columns for rows, columns in self.matrices)
        return plain * itemsize + sum(held.of(*matrix) for matrix in self.matrices)


def held_as(section: Mapping[str, Any], name: str, itemsize: int) -> Stored | int | None:
    """How a ``model`` section holds the weights of a part; see :meth:`PartWeights.bytes`."""
    settings = quantized(section).get(name)
    if settings is None:
        return None
    return stored(settings, itemsize) or _file_size(gguf_file(section, name, settings))


def _file_size(file: Path | None) -> int:
    return 0 if file is None else file.stat().st_size


def quantize_shapes(network: nn.Module, section: Mapping[str, Any], name: str, dtype: torch.dtype) -> None:
    """Put layers that hold as much as quantised ones in place of those that a ``model`` section quantises.

    Args:
        network: on the meta device.
        name: of this part of the pipeline.
        dtype: in which it computes.
    """
    settings, held = quantized(section).get(name), held_as(section, name, dtype.itemsize)
    if settings is None or held is None:
        return
    layers = quantizable(network, [each for key in _KEPT for each in settings.get(key) or ()])
    if isinstance(held, int):
        # A file holds all weights, each alike.
        held = Stored(weight=held / sum(p.numel() for p in network.parameters()), row=0.0, copies=True)
    for each in layers:
        owner = network.get_submodule(each.rpartition(".")[0])
        layer: Any = network.get_submodule(each)
        owner._modules[each.rpartition(".")[2]] = CountedLinear(layer, held, dtype, settings)


class CountedLinear(nn.Linear):
    """Holds and computes what a quantised layer does, on the meta device.

    Its ``weight`` is a view of one number; ``held`` has the bytes. A backend that keeps copies has autograd keep the
    weight in the precision of the computation until the backward pass; others make it anew there.

    Args:
        layer: the one in whose place it comes.
        how: how its weight is held.
        dtype: the precision of the computation.
        settings: of its backend.
    """

    def __init__(self, layer: nn.Linear, how: Stored, dtype: torch.dtype, settings: Mapping[str, Any]):
        shape = layer.in_features, layer.out_features
        super().__init__(*shape, bias=False, device="meta", dtype=dtype)
        self.weight = nn.Parameter(torch.empty((), device="meta", dtype=dtype).expand(shape[1], shape[0]), False)
        self.held = nn.Parameter(
            torch.empty(how.of(shape[1], shape[0]), dtype=torch.uint8, device="meta"), requires_grad=False
        )
        self.bias = layer.bias
        self.copies, self.inputs = how.copies, settings[METHOD] in _KEEP_INPUTS
        self.full = settings[METHOD] == "torchao" and torchao_name(settings) == FLOAT8
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.copies:
            return F.linear(input, self._plain(input.dtype), self.bias)
        result: Tensor = _MadeAnew.apply(input, self.held, self.weight.shape, self.inputs)
        return result if self.bias is None else result + self.bias

    def _plain(self, dtype: torch.dtype) -> Tensor:
        if self.full:
            # Numbers of 8 bits are multiplied by their scales in fp32.
            return _plain(self.held, self.weight.shape, torch.float32).mul(1.0).to(dtype)
        return _plain(self.held, self.weight.shape, dtype)


class _MadeAnew(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, held: Tensor, shape: Sequence[int], inputs: bool) -> Tensor:
        ctx.held, ctx.shape = held, shape
        if inputs:
            ctx.save_for_backward(input)
        return F.linear(input, _plain(held, shape, input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient @ _plain(ctx.held, ctx.shape, gradient.dtype), None, None, None


def _plain(held: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=held.device)

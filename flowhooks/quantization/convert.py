"""Put quantised layers in the place of a network's own.

Each backend's own layers and functions do it, after the weights are loaded on the host, and to exactly the layers that
:func:`flowhooks.quantization.layers.quantizable` names. Diffusers' loaders name layers by their last parts, so that a
network's last projection cannot stay plain where its blocks have a layer of that name; and bitsandbytes' one puts a
whole component onto the card while others wait there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowhooks.quantization.layers import inside_blocks, quantizable
from flowhooks.quantization.plain import plain_linear, quantized_layers
from flowhooks.quantization.settings import kept


def quantize(component: Any, configuration: Any, device: torch.device) -> Any:
    """Quantise a component of a pipeline that is on the host, layer by layer, and return it.

    Args:
        configuration: of Diffusers or Transformers.
        device: which quantises; the layers come back to the host.
    """
    layers = quantizable(component, kept(configuration))
    method = configuration.quant_method
    _QUANTIZE[str(getattr(method, "value", method))](component, layers, configuration, device)
    component.requires_grad_(False)
    return component


def _torchao(component: nn.Module, layers: Sequence[str], configuration: Any, device: torch.device) -> None:
    from torchao.quantization import quantize_

    wanted = set(layers)
    quantize_(component, configuration.quant_type, lambda module, name: name in wanted)


def _quanto(component: nn.Module, layers: Sequence[str], configuration: Any, device: torch.device) -> None:
    from optimum import quanto

    kind = getattr(configuration, "weights_dtype", None) or configuration.weights
    weights = {"float8": quanto.qfloat8, "int8": quanto.qint8, "int4": quanto.qint4, "int2": quanto.qint2}[kind]
    for name in layers:
        # One at a time, as its weights would else be there twice.
        quanto.quantize(component, weights=weights, include=[name])
        layer: Any = component.get_submodule(name)
        layer.freeze()


def _bitsandbytes(component: nn.Module, layers: Sequence[str], configuration: Any, device: torch.device) -> None:
    import bitsandbytes

    for name in layers:
        layer: Any = component.get_submodule(name)
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        if configuration.load_in_4bit:
            made = bitsandbytes.nn.Linear4bit(
                *shape,
                compute_dtype=configuration.bnb_4bit_compute_dtype,
                compress_statistics=configuration.bnb_4bit_use_double_quant,
                quant_type=configuration.bnb_4bit_quant_type,
                quant_storage=configuration.bnb_4bit_quant_storage,
                device="meta",
            )
            made.weight = bitsandbytes.nn.Params4bit(
                layer.weight.data,
                requires_grad=False,
                compress_statistics=configuration.bnb_4bit_use_double_quant,
                quant_type=configuration.bnb_4bit_quant_type,
                quant_storage=configuration.bnb_4bit_quant_storage,
            )
            # Else an inference on the CPU would repack the weights in place.
            made.support_avx512bf16_for_cpu = False
        else:
            made = bitsandbytes.nn.Linear8bitLt(
                *shape, has_fp16_weights=False, threshold=configuration.llm_int8_threshold, device="meta"
            )
            made.weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        made.bias = layer.bias
        owner = component.get_submodule(name.rpartition(".")[0])
        # Weights are quantised when they come to a device for the first time, the host included.
        owner._modules[name.rpartition(".")[2]] = made.train(layer.training).to(device).to("cpu")


_QUANTIZE = {"torchao": _torchao, "quanto": _quanto, "bitsandbytes": _bitsandbytes}


def read_gguf(kind: Any, file: Path, folder: str, component: str, configuration: Any) -> Any:
    """Read the network of a pipeline from a GGUF file. Layers outside of its repeated blocks are plain ones.

    Args:
        kind: its class in Diffusers.
        folder: of the pipeline or its Hub id, whose configuration of the component is read.
    """
    network = kind.from_single_file(
        str(file),
        config=folder,
        subfolder=component,
        quantization_config=configuration,
        torch_dtype=configuration.compute_dtype,
    )
    wanted = set(name for name, _ in inside_blocks(network))
    for name in quantized_layers(network):
        if name not in wanted:
            owner = network.get_submodule(name.rpartition(".")[0])
            owner._modules[name.rpartition(".")[2]] = plain_linear(network.get_submodule(name))
    return network.requires_grad_(False)

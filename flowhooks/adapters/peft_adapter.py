"""Build LoRA, LoHa and LoKr with PEFT."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import Tensor, nn

from flowhooks.adapters.adapter_file import packed_tensors, write_aside
from flowhooks.adapters.base import AttachedAdapter, base_layer
from flowhooks.adapters.bypass import Snapshot, without_peft
from flowhooks.adapters.dora import magnitude_of, measure, refuse_unmeasurable
from flowhooks.adapters.names import (
    LORA_FILE,
    MAGNITUDE,
    NEED_SHAPE,
    PEFT_CONFIG_FILE,
    PEFT_FILE,
    PEFT_PREFIX,
    TRAINED_KEY,
    USE_DORA,
    diffusers_prefix,
    layer_name,
)
from flowhooks.autocast import autocast_dtype
from flowhooks.errors import AdapterError
from flowhooks.quantization.plain import is_packed_layer
from flowhooks.sharding import whole_shapes

ADAPTER_NAME = "default"
_KEY_PREFIX = {"lora": "lora_A.weight", "loha": "hada_w1_a", "lokr": "lokr_w1"}


def peft_config(config: Mapping[str, Any], targets: tuple[str, ...]) -> PeftConfig:
    """Return the PEFT configuration of an adapter section.

    ``dropout`` is the probability of zeroing an input of a LoRA layer, or (LoHa, LoKr) a row of the weight change.
    """
    names = list(targets)
    if config["type"] == "lora":
        return LoraConfig(
            r=config["rank"],
            lora_alpha=config["alpha"],
            lora_dropout=config["dropout"],
            target_modules=names,
            use_dora=config["use_dora"],
            bias="none",
        )
    kind = {"loha": LoHaConfig, "lokr": LoKrConfig}[config["type"]]
    return kind(r=config["rank"], alpha=config["alpha"], rank_dropout=config["dropout"], target_modules=names)


def _as_autocast(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Give the result autocast's dtype: PEFT's LoHa and LoKr return the input's dtype, where its LoRA and a bare linear
    layer under autocast return autocast's, and later layers would compute differently."""
    dtype = autocast_dtype(output) if isinstance(output, Tensor) else None
    return output if dtype is None else output.to(dtype)


class PeftAdapter(AttachedAdapter):
    """Injects a PEFT adapter into ``transformer`` at exactly ``targets``.

    Args:
        transformer: the model, its layers unchanged so far.
        config: adapter section of the run.
        peft: the PEFT configuration; its ``target_modules`` are changed to select ``targets`` and nothing else.
        targets: names of the layers.
        name: PEFT's adapter name.
    """

    def __init__(
        self,
        transformer: nn.Module,
        config: Mapping[str, Any],
        peft: PeftConfig,
        targets: tuple[str, ...],
        *,
        name: str = ADAPTER_NAME,
    ):
        super().__init__(transformer, config, targets, Snapshot(transformer, targets))
        self.kind = config["type"]
        self.name = name
        try:
            self._inject(peft)
        except BaseException:
            self.detach()
            raise

    def _inject(self, peft: PeftConfig) -> None:
        self.layers = inject_layers(self.transformer, peft, self.kind, self.targets, self.name)
        if hasattr(type(self.transformer), "_hf_peft_config_loaded"):
            # Diffusers' own adapter methods check this flag.
            self.transformer.__dict__["_hf_peft_config_loaded"] = True
        if self.kind != "lora":
            for layer in self.layers:
                layer.register_forward_hook(_as_autocast)
        self.measure()
        names = [name for name, module in self.transformer.named_modules() if not _inside(name, self.targets)]
        if {name for name in names if check_target_module_exists(peft, name)} != set(self.targets):
            # Nested names: `a.to_q` also ends `b.a.to_q`. An expression anchored at both ends cannot select more than
            # it says.
            peft.target_modules = "|".join(target.replace(".", r"\.") for target in self.targets)
        self.peft_config = peft
        self._own(parameters_of(self.layers, self.targets, self.name))

    def measure(self, device: torch.device | None = None) -> None:
        """Set the magnitudes of a DoRA to those that change nothing on ``device``, by default that of each layer."""
        for layer in self.layers:
            if magnitude_of(layer, self.name) is not None:
                measure(layer, self.name, device)

    def disabled(self) -> AbstractContextManager[None]:
        return self._switched([setting for layer in self.layers for setting in without_peft(layer)])

    def written(self) -> dict[str, Tensor]:
        if self.kind != "lora":
            return self.state_dict()
        factors = [vars(layer)["scaling"][self.name] for layer in self.layers]
        scales = dict(zip(self.targets, factors, strict=True))
        return {
            key: tensor * scales[layer_name(key)] if ".lora_B." in key and scales[layer_name(key)] != 1 else tensor
            for key, tensor in self.state_dict().items()
        }

    def save(self, folder: Path, metadata: Mapping[str, str]) -> Path:
        return self.packed(metadata)(Path(folder))

    def packed(self, metadata: Mapping[str, str]) -> Callable[[Path], Path]:
        self._require_attached()
        tensors, header = self.written(), self._header(metadata)
        if self.kind == "lora":
            whole = self._of_scale_one()
            prefix = diffusers_prefix(type(self.transformer).__name__)
            header[LORA_ADAPTER_METADATA_KEY] = diffusers_metadata(whole, prefix)
            if whole is not self.peft_config:
                header[TRAINED_KEY] = diffusers_metadata(self.peft_config, prefix)
            write = packed_tensors(LoraBaseMixin.pack_weights(tensors, prefix), header)
            return lambda folder: write(folder / LORA_FILE)
        write = packed_tensors({PEFT_PREFIX + key: tensor for key, tensor in tensors.items()}, header)
        document = self._peft_document()

        def both(folder: Path) -> Path:
            write_aside(folder / PEFT_CONFIG_FILE, lambda aside: aside.write_text(document, encoding="utf-8"))
            return write(folder / PEFT_FILE)

        return both

    def _of_scale_one(self) -> PeftConfig:
        """Return the configuration of the same LoRA with its strength in the matrices; its own if that is 1."""
        if all(vars(layer)["scaling"][self.name] == 1 for layer in self.layers):
            return self.peft_config
        ranks = dict(self.peft_config.rank_pattern or {})
        return replace(self.peft_config, lora_alpha=self.peft_config.r, alpha_pattern=ranks, use_rslora=False)

    def _peft_document(self) -> str:
        return json.dumps(
            {**self.peft_config.to_dict(), "inference_mode": True}, default=_plain, indent=2, sort_keys=True
        )


def inject_layers(
    transformer: nn.Module, peft: PeftConfig, kind: str, targets: tuple[str, ...], name: str
) -> list[BaseTunerLayer]:
    """Inject the adapter ``name`` at exactly ``targets``, and return the layers. Raises `AdapterError` when PEFT
    cannot.

    PEFT makes it the active one.
    """
    shapes = ((target, base_layer(transformer, target)) for target in targets if kind in NEED_SHAPE)
    packed = next((target for target, layer in shapes if is_packed_layer(layer)), None)
    if packed is not None:
        raise AdapterError(
            f"PEFT's {kind} needs weights in their own shape, and the quantised weight of `{packed}` is packed; use "
            f"`adapter.type` 'lycoris' with `adapter.algo` {kind!r}, or 'lora'"
        )
    if getattr(peft, USE_DORA, False):
        refuse_unmeasurable({target: base_layer(transformer, target) for target in targets})
    keys: dict[str, Any] = {f"{target}.{_KEY_PREFIX[kind]}": None for target in targets}
    try:
        with warnings.catch_warnings():
            # Keys say exactly where to inject; that a suffix in the configuration selects more is corrected by
            # PeftAdapter. A second adapter is added beside an existing one on purpose. Nothing is merged into quantised
            # weights here.
            for message in (
                "While injecting the PEFT adapters",
                "Already found a `peft_config` attribute",
                "TorchaoLoraLinear was instantiated",
            ):
                warnings.filterwarnings("ignore", message=message)
            with whole_shapes(transformer):
                inject_adapter_in_model(peft, transformer, adapter_name=name, state_dict=keys)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"PEFT cannot put a {kind} adapter on {type(transformer).__name__}: {error}") from error
    layers = []
    for target in targets:
        layer = transformer.get_submodule(target)
        if not isinstance(layer, BaseTunerLayer):
            raise AdapterError(f"PEFT left `{target}` without a {kind} adapter.")
        # New modules are created in training mode: on a model in eval mode their dropout would act.
        layers.append(layer.train(layer.base_layer.training))
    return layers


def parameters_of(layers: Sequence[BaseTunerLayer], targets: tuple[str, ...], name: str) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapter ``name`` under the names with which they are saved: PEFT leaves the
    adapter's name out."""
    found = {}
    for target, layer in zip(targets, layers, strict=True):
        for key, parameter in layer.named_parameters():
            if f".{name}" in key and not key.startswith("base_layer."):
                head, _, tail = key.rpartition(f".{name}")
                # PEFT saves magnitudes without the name of the parameter in their layer.
                found[f"{target}.{head}{'' if head == MAGNITUDE else tail}"] = parameter
    return found


def plain_config(ranks: Mapping[str, int], *, use_dora: bool = False) -> LoraConfig:
    """Return the configuration of a LoRA, or a DoRA, of scale 1 with these ranks, by layer."""
    rank = max(ranks.values())
    # Anchored: a layer's whole name can be the end of another's.
    other = {f"^{re.escape(name)}": found for name, found in ranks.items() if found != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(ranks),
        rank_pattern=other,
        alpha_pattern=dict(other),
        use_dora=use_dora,
    )


def diffusers_metadata(peft: PeftConfig, prefix: str) -> str:
    """Return the metadata from which Diffusers reads alpha, rank and dropout; without it a loader uses the rank as
    alpha. ``prefix`` is that of the file's keys, without its dot."""
    document = {f"{prefix}.{key}": value for key, value in peft.to_dict().items()}
    return json.dumps(document, default=_plain, indent=2, sort_keys=True)


def selected_targets(transformer: nn.Module, peft: PeftConfig) -> tuple[str, ...]:
    """Return names of the layers that a PEFT configuration selects."""
    if not peft.target_modules:
        return ()
    return tuple(name for name, _ in transformer.named_modules() if name and check_target_module_exists(peft, name))


def _inside(name: str, targets: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{target}.") for target in targets)


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")

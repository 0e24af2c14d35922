"""Build LyCORIS adapters (LoCon, LoHa, LoKr and relatives) with lycoris-lora's own networks."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from lycoris.logging import logger as lycoris_logger
from torch import Tensor, nn

from flowhooks.adapters.adapter_file import packed_tensors
from flowhooks.adapters.base import AttachedAdapter, check_fit
from flowhooks.adapters.bypass import Snapshot, without_lycoris
from flowhooks.adapters.names import LYCORIS_FILE, first_few
from flowhooks.adapters.names import LYCORIS_PREFIX as PREFIX
from flowhooks.errors import AdapterError
from flowhooks.sharding import whole_shapes

# Each passes the same tests; other networks of the library change a layer in ways that are not checked here.
ALGORITHMS = ("lora", "locon", "loha", "lokr")
# LyCORIS' name of a layer's class, where it is not the algorithm's name.
_LAYER_NAMES = {"kron": "lokr"}
_NETWORK_NAME = "flowhooks_lycoris"
_PRESET_ATTRIBUTES = (
    "ENABLE_CONV",
    "TARGET_REPLACE_MODULE",
    "TARGET_REPLACE_NAME",
    "LORA_PREFIX",
    "MODULE_ALGO_MAP",
    "NAME_ALGO_MAP",
    "USE_FNMATCH",
    "TARGET_EXCLUDE_NAME",
)


class LycorisAdapter(AttachedAdapter):
    """Applies a LyCORIS network to ``transformer``.

    The network is registered as a submodule, so that it follows the transformer's device, its train and eval mode and
    data parallelism. Layers run in LyCORIS' bypass mode: the change is applied to activations. The other mode forms
    (W + change) - W in the base's dtype, where a small change to a bf16 weight rounds away, and it ignores dropout.
    """

    kind = "lycoris"

    def __init__(
        self, transformer: nn.Module, config: Mapping[str, Any], network: LycorisNetwork, targets: tuple[str, ...]
    ):
        super().__init__(transformer, config, targets, Snapshot(transformer, targets))
        self.network = network
        try:
            self._apply()
        except BaseException:
            self.detach()
            raise

    def _apply(self) -> None:
        device = next(self.transformer.parameters()).device
        for parameter in self.transformer.parameters():
            parameter.requires_grad_(False)
        for lora in self.network.loras:
            lora.bypass_mode = True
            _set_dropout(lora, self.config["dropout"])
        self.network.apply_to()
        self.network.to(device).train(self.transformer.training)
        self.transformer.add_module(_NETWORK_NAME, self.network)
        parameters = dict(self.network.named_parameters())
        buffers = {key: tensor for key, tensor in self.network.state_dict().items() if key not in parameters}
        self._own(parameters, buffers)

    def disabled(self) -> AbstractContextManager[None]:
        return self._switched([setting for lora in self.network.loras for setting in without_lycoris(lora)])

    def save(self, folder: Path, metadata: Mapping[str, str]) -> Path:
        return self.packed(metadata)(Path(folder))

    def packed(self, metadata: Mapping[str, str]) -> Callable[[Path], Path]:
        self._require_attached()
        write = packed_tensors(self.state_dict(), self._header(metadata))
        return lambda folder: write(folder / LYCORIS_FILE)


def build_network(transformer: nn.Module, config: Mapping[str, Any], targets: tuple[str, ...]) -> LycorisNetwork:
    """Build a fresh network on exactly ``targets``, not yet applied."""
    if config["algo"] not in ALGORITHMS:
        raise AdapterError(f"`adapter.algo` is {config['algo']!r}; expected one of {', '.join(ALGORITHMS)}.")
    with _preset(targets), _quiet(), whole_shapes(transformer):
        network = create_lycoris(
            transformer,
            1.0,
            linear_dim=config["rank"],
            linear_alpha=config["alpha"],
            algo=config["algo"],
            bypass_mode=True,
        )
    _check_layers(network, targets)
    return network


def network_from_weights(
    transformer: nn.Module, tensors: Mapping[str, Tensor], *, origin: str
) -> tuple[LycorisNetwork, tuple[str, ...]]:
    """Build a network with the shapes and values of ``tensors``, not yet applied, and return it with the names of its
    layers.

    Raises:
        AdapterError: a key has no layer in ``transformer``, a layer lacks a tensor, a shape differs, or the change is
        none of `ALGORITHMS`.
    """
    layers = {f"{PREFIX}_{name}".replace(".", "_"): name for name, _ in transformer.named_modules() if name}
    unknown = [key for key in tensors if key.split(".")[0] not in layers]
    if unknown:
        raise AdapterError(
            f"{origin}: {type(transformer).__name__} has no layer for {first_few(unknown)}. It was made for another "
            "model: use the base model it was trained on."
        )
    try:
        with _preset(()), _quiet(), whole_shapes(transformer):
            network, _ = create_lycoris_from_weights(1.0, "", transformer, weights_sd=dict(tensors))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise AdapterError(f"{origin}: LyCORIS cannot build it on {type(transformer).__name__}: {error}") from error
    for lora in network.loras:
        _check_algorithm(lora, layers[lora.lora_name], origin)
    built = {f"{lora.lora_name}.{key}": tensor for lora in network.loras for key, tensor in lora.state_dict().items()}
    check_fit(built, tensors, kind="lycoris", origin=origin)
    order = {group: place for place, group in enumerate(layers)}
    network.loras.sort(key=lambda lora: order[lora.lora_name])
    return network, tuple(layers[lora.lora_name] for lora in network.loras)


def algorithm_of(lora: Any) -> str:
    return _LAYER_NAMES.get(lora.name, lora.name)


def _check_algorithm(lora: Any, layer: str, origin: str) -> None:
    found = algorithm_of(lora)
    if getattr(lora, "wd", False):
        # Bypass mode would add the change without the scale.
        raise AdapterError(
            f"{origin}: `{layer}` is adapted by a {found} with weight decomposition (DoRA), which scales the base's "
            "weights themselves. Only adapters without it can be loaded."
        )
    if found not in ALGORITHMS:
        raise AdapterError(
            f"{origin}: `{layer}` is adapted by LyCORIS' {found!r}; expected one of {', '.join(ALGORITHMS)}."
        )


def _check_layers(network: LycorisNetwork, targets: tuple[str, ...]) -> None:
    made = {lora.lora_name for lora in network.loras}
    refused = [target for target in targets if f"{PREFIX}_{target}".replace(".", "_") not in made]
    if refused or len(made) != len(targets):
        raise AdapterError(
            f"LyCORIS made no adapter for {first_few(refused)}. Leave these layers out of `adapter.target_modules`."
        )


def _set_dropout(lora: nn.Module, probability: float) -> None:
    """Set dropout on the change, which bypass mode applies. It is set here because the constructors of two of the
    networks warn that they have none."""
    drop = nn.Dropout(probability) if probability else nn.Identity()
    lora.drop = drop
    if isinstance(lora.__dict__.get("dropout"), nn.Module) or "dropout" in lora._modules:
        lora.dropout = drop


@contextmanager
def _preset(targets: tuple[str, ...]) -> Iterator[None]:
    """Select layers by their full names. LyCORIS keeps its preset on the class, shared by all users; it is restored on
    exit."""
    found = {name: getattr(LycorisNetwork, name) for name in _PRESET_ATTRIBUTES}
    pattern = "(?:" + "|".join(re.escape(target) for target in targets) + r")\Z"
    try:
        LycorisNetwork.apply_preset(
            {
                "enable_conv": True,
                "target_module": [],
                "target_name": [pattern] if targets else [],
                "module_algo_map": {},
                "name_algo_map": {},
                "lora_prefix": PREFIX,
                "use_fnmatch": False,
                "exclude_name": [],
            }
        )
        yield
    finally:
        for name, value in found.items():
            setattr(LycorisNetwork, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's output on standard output, which belongs to our commands."""
    level = lycoris_logger.level
    lycoris_logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        lycoris_logger.setLevel(level)

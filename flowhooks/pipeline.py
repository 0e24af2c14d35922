"""Load a stock pipeline from a folder, the Hub, or the embedded one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from transformers import dynamic_module_utils

from flowhooks.checks.library import foreign_parts
from flowhooks.checks.pipeline import INDEX, no_pipeline
from flowhooks.checks.quantization import gguf_file, quantized
from flowhooks.digits.places import NAMES
from flowhooks.errors import ModelError
from flowhooks.pretrained import DTYPES
from flowhooks.quantization.convert import quantize, read_gguf
from flowhooks.quantization.settings import SettingsRefused, configuration
from flowhooks.quantization.table import METHOD
from flowhooks.reading import user_path
from flowhooks.splice import restore_attributes


def load_pipeline(section: Mapping[str, Any]) -> Any:
    """Load the pipeline that the ``model`` section names, on the CPU, with its modules in eval mode.

    Code that comes with a model is never run, no other package than Diffusers and Transformers is imported for it, and
    only safetensors weights are read.

    Raises:
        ModelError: it does not exist, cannot be fetched, or Diffusers cannot load its files.
    """
    name = section["pretrained_model_name_or_path"]
    if name is None:
        raise ModelError(
            "`model.pretrained_model_name_or_path` is not set; name a folder of a Diffusers pipeline, a Hub id, or "
            "'digits'"
        )
    place = _place(name)
    try:
        index = DiffusionPipeline.load_config(place, revision=section["revision"])
        for message in foreign_parts(index):
            raise ModelError(f"{name!r}: {INDEX} {message}")
        # A part that a pipeline was saved without must be passed as None, or Diffusers reports it as missing.
        absent = {part: None for part, found in index.items() if found == [None, None]}
        configurations = _configurations(section, index)
        read = _from_files(section, place, index, configurations)
        with _never_asked():
            pipe = DiffusionPipeline.from_pretrained(
                place,
                dtype=DTYPES[section["dtype"]],
                revision=section["revision"],
                variant=section["variant"],
                use_safetensors=True,
                trust_remote_code=False,
                **absent,
                **read,
            )
        for component in configurations.keys() - read.keys():
            quantize(getattr(pipe, component), configurations[component], best_device())
        return pipe
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name!r} cannot be loaded as a Diffusers pipeline: {_first_lines(error)}; {_remedy(place)}"
        ) from error


def best_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _configurations(section: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """Component -> the configuration of its backend. Raises ModelError."""
    found = {}
    for component, settings in quantized(section).items():
        try:
            library = index[component][0]
            found[component] = configuration(settings, library, DTYPES[section["dtype"]])
        except KeyError:
            raise ModelError(f"`model.quantization` names {component!r}, which this pipeline does not have") from None
        except SettingsRefused as error:
            raise ModelError(f"`model.quantization.{'.'.join((component, *error.keys))}`: {error}") from error
    return found


def _from_files(
    section: Mapping[str, Any], place: str, index: Mapping[str, Any], configurations: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the networks that are read from GGUF files."""
    read = {}
    for component, settings in quantized(section).items():
        if settings[METHOD] != "gguf":
            continue
        file = gguf_file(section, component, settings)
        if file is None:
            raise ModelError(f"`model.quantization` names no GGUF file for {component!r}")
        kind = getattr(diffusers, index[component][1])
        read[component] = read_gguf(kind, file, place, component, configurations[component])
    return read


@contextmanager
def attention_backend(networks: Iterable[Any], name: str) -> Iterator[None]:
    """Compute the attention of these networks with a backend of Diffusers inside the block.

    Raises:
        ModelError: a network has no choice of backends, or this machine cannot run this one.
    """
    # Diffusers keeps the active backend in this registry only, and setting one on a model sets it for all.
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    active, _ = registry.get_active_backend()
    if name == active.value:
        yield
        return
    networks = list(networks)
    modules = (module for network in networks for module in network.modules())
    processors = [module.processor for module in modules if hasattr(module, "processor")]
    try:
        with restore_attributes(*processors):
            try:
                for network in networks:
                    network.set_attention_backend(name)
            except (ValueError, RuntimeError, ImportError, AttributeError) as error:
                message = (
                    f"the attention backend {name!r} cannot be used: {error}; set `model.attention_backend` to 'native'"
                )
                raise ModelError(message) from error
            yield
    finally:
        registry.set_active_backend(active)


def _place(name: str) -> str:
    """Return a local folder, or a Hub id unchanged."""
    if name.partition(":")[0] == NAMES[0]:
        from flowhooks.digits import resolve_model

        return str(resolve_model(name))
    if (refusal := no_pipeline(name, None)) is not None:
        raise ModelError(refusal)
    folder = user_path(name)
    return str(folder) if folder.is_dir() else name


@contextmanager
def _never_asked() -> Iterator[None]:
    """Let Transformers refuse code that comes with a model, where it would otherwise ask at the terminal whether to run
    it, since Diffusers does not pass the setting on."""
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".;, ") or type(error).__name__


def _remedy(place: str) -> str:
    if Path(place).is_dir():
        return "its files are damaged, incomplete, pickled, or of another `model.variant`: use `save_pretrained` again"
    return "check the name, your network, and `hf auth login` for a gated model; a downloaded folder works offline"

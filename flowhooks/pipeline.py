"""Load a stock pipeline from a folder, the Hub, or the embedded one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModularPipeline
from torch import nn
from transformers import dynamic_module_utils

from flowhooks.checks import hub
from flowhooks.checks.library import foreign_parts
from flowhooks.checks.pipeline import INDEX, MODULAR_INDEX, index_of, no_pipeline
from flowhooks.checks.quantization import gguf_file, quantized
from flowhooks.digits.places import NAMES
from flowhooks.errors import ModelError
from flowhooks.pretrained import DTYPES
from flowhooks.probe.modular import faced
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
        modular, index = _index(place, section["revision"])
        for message in foreign_parts(index):
            raise ModelError(f"{name!r}: {MODULAR_INDEX if modular else INDEX} {message}")
        # A part that a pipeline was saved without must be passed as None, or Diffusers reports it as missing.
        absent = {part: None for part, found in index.items() if found == [None, None]}
        configurations = _configurations(section, index)
        read = _from_files(section, place, index, configurations)
        with _never_asked():
            pipe = (
                _of_blocks(section, place, index, read)
                if modular
                else DiffusionPipeline.from_pretrained(
                    place,
                    dtype=DTYPES[section["dtype"]],
                    revision=section["revision"],
                    variant=section["variant"],
                    use_safetensors=True,
                    trust_remote_code=False,
                    **absent,
                    **read,
                )
            )
        for component in configurations.keys() - read.keys():
            quantize(getattr(pipe, component), configurations[component], best_device())
        return pipe
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name!r} cannot be loaded as a Diffusers pipeline: {_first_lines(error)}; {_remedy(place)}"
        ) from error


def tell_place(folder: Path, place: Path) -> None:
    """Let the index of a modular pipeline that was saved in ``folder`` say that its parts are at ``place``, where the
    folder is going to be."""
    file = folder / MODULAR_INDEX
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(json.dumps(str(folder)), json.dumps(str(place.absolute()))), encoding="utf-8")


def best_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _index(place: str, revision: str | None) -> tuple[bool, Mapping[str, Any]]:
    """Return whether a pipeline is modular, and its index. Raises OSError where it has neither index."""
    if Path(place).is_dir() and index_of(Path(place)).name == MODULAR_INDEX:
        return True, ModularPipeline.load_config(place)
    try:
        return False, DiffusionPipeline.load_config(place, revision=revision)
    except OSError:
        try:
            return True, ModularPipeline.load_config(place, revision=revision)
        except OSError:
            pass
        raise


def _of_blocks(section: Mapping[str, Any], place: str, index: Mapping[str, Any], read: Mapping[str, Any]) -> Any:
    """Load a modular pipeline with its parts. Those that have a folder in its own are read from there, wherever its
    index says they were saved.

    Raises:
        ModelError: a part is in no folder and no repository, or could not be loaded.
    """
    pipe = ModularPipeline.from_pretrained(place, trust_remote_code=False, revision=section["revision"])
    told = {name: found for name, found in index.items() if isinstance(found, (list, tuple)) and len(found) == 3}
    wanted = [name for name, found in told.items() if found[1] is not None and name not in read]
    here = [name for name in wanted if (Path(place) / name).is_dir()]
    for name in wanted:
        source = told[name][2].get("pretrained_model_name_or_path")
        if name not in here and not (isinstance(source, str) and hub.is_hub_id(source)):
            raise ModelError(
                f"{place!r}: {MODULAR_INDEX} says that {name!r} is in {source!r}, which is neither a folder {name!r} "
                "beside it nor a Hub id; save the pipeline again with save_pretrained"
            )
    homes = {"diffusers": diffusers, "transformers": transformers}
    kinds = {name: getattr(homes.get(told[name][0]), told[name][1], object) for name in wanted}
    weighty = [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
    pipe.load_components(
        names=wanted,
        pretrained_model_name_or_path=dict.fromkeys(here, place),
        subfolder={name: name for name in here},
        revision=dict.fromkeys(here, section["revision"]),
        variant=dict.fromkeys(weighty, section["variant"]),
        dtype=dict.fromkeys(weighty, DTYPES[section["dtype"]]),
        use_safetensors=dict.fromkeys(weighty, True),
        trust_remote_code={name: False for name in wanted if told[name][0] == "transformers"},
    )
    pipe.update_components(**read)
    absent = [repr(name) for name in wanted if getattr(pipe, name, None) is None]
    if absent:
        raise ModelError(f"{place!r}: the warning above says why {', '.join(absent)} did not load; {_remedy(place)}")
    return faced(pipe)


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

"""Check how a run quantises its frozen weights. Free of torch, but for settings that are written out, which their own
classes check, and for warnings with a number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowhooks.adapters.names import NEED_SHAPE, USE_DORA
from flowhooks.checks.library import reads_single_files
from flowhooks.checks.machine import has_apple
from flowhooks.checks.pipeline import NETWORKS, pipeline_folder, read_index, trained_network
from flowhooks.config import Run
from flowhooks.documents.document import read_settings
from flowhooks.documents.suggest import hint, listed
from flowhooks.errors import ConfigError, Problem
from flowhooks.quantization.table import (
    BACKENDS,
    FILE,
    FLOAT8,
    METHOD,
    SHORT,
    by_component,
    is_packed,
    torchao_name,
)
from flowhooks.reading import user_path

_PLACE = "$.model.quantization"
#: The first bytes of every GGUF file.
_MAGIC = b"GGUF"
#: Type of the hook that gives tokens times of their own.
_BY_TOKEN = "dual_times"
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_GIB = 2**30


def quantized(section: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Component -> settings of its backend, as a ``model`` section asks for them."""
    parts = _parts(section)
    return by_component(section.get("quantization"), [name for name in NETWORKS if name in parts] or NETWORKS[:1])


def describe_quantization(section: Mapping[str, Any]) -> str | None:
    """What is quantised, in words; None if nothing is."""
    words = [f"{name} {_called(settings)}" for name, settings in quantized(section).items()]
    return ", ".join(words) or None


def quantization_problems(run: Run) -> Iterator[Problem]:
    """Yield why weights of a run cannot be quantised as it says, here or at all."""
    section, file, parts = run.model, str(run.source), _parts(run.model)
    for name, settings in quantized(section).items():
        short = not isinstance(section["quantization"], Mapping)
        place = _PLACE if short else f"{_PLACE}.{name}"
        message = _unfit(name, parts) or _not_installed(settings) or _not_here(settings) or _stored(section, name)
        if message is None and settings[METHOD] == "gguf":
            message = _no_file(section, name, settings, parts)
        if message is not None:
            yield Problem(message, file, place)
        elif settings not in SHORT.values():
            yield from _wrong_settings(settings, parts.get(name), section["dtype"], file, place)
    trained = quantized(section).get(trained_network(section))
    if run.adapter is not None and run.adapter["type"] in NEED_SHAPE and trained is not None and is_packed(trained):
        kind = run.adapter["type"]
        message = (
            f"PEFT's {kind!r} needs weights in their own shape, and {_called(trained)} packs them; use type 'lycoris' "
            f"with algo {kind!r}, or 'lora'"
        )
        yield Problem(message, file, "$.adapter.type")
    if run.adapter is not None and run.adapter[USE_DORA] and trained is not None and trained[METHOD] == "gguf":
        message = (
            "PEFT's DoRA needs the norms of the base's weights, and does not read those of a GGUF file; set this to "
            "false, or use another backend in `model.quantization`"
        )
        yield Problem(message, file, "$.adapter.use_dora")
    if trained is not None and trained.get("load_in_8bit"):
        message = (
            "bitsandbytes' 8 bits round activations by the largest of the batch, so the prediction for one sample "
            "depends on the others; use 'int8', which is torchao's"
        )
        yield Problem(message, file, _PLACE)
    if trained is not None and trained[METHOD] == "bitsandbytes" and any(h.type == _BY_TOKEN for h in run.every_hook):
        message = (
            f"`{_BY_TOKEN}` gives each token a time of its own, which layers of {_called(trained)} cannot take; use "
            "'int8', 'fp8' or 'int4'"
        )
        yield Problem(message, file, _PLACE)
    if trained is not None and trained[METHOD] == "bitsandbytes" and section["offload"] != "none":
        message = (
            f"blocks whose layers are {_called(trained)} stay on the device, as each layer holds its weight until its "
            "backward pass; set this to 'none', or `model.quantization` to 'int8', 'fp8' or 'int4'"
        )
        yield Problem(message, file, "$.model.offload")


def quantization_warnings(run: Run) -> Iterator[str]:
    """Yield a warning where a backend keeps copies of weights until the backward pass, with their size."""
    checkpointing = run.model["gradient_checkpointing"]
    network = trained_network(run.model)
    settings = quantized(run.model).get(network)
    if settings is None or not BACKENDS[settings[METHOD]].copies or checkpointing is True or checkpointing == 1:
        return
    mixed = run.training["mixed_precision"]
    precision = run.model["dtype"] if mixed == "no" else mixed
    without = "without `model.gradient_checkpointing`" if not checkpointing else "in the blocks that keep activations"
    share = 1 - 1 / checkpointing if checkpointing else 1
    numbers = _numbers(run.model, network, settings)
    size = "" if numbers is None else f", about {numbers * share * _BYTES[precision] / _GIB:.2g} GiB"
    yield (
        f"layers of {_called(settings)} keep a copy of their weight in {precision} until the backward pass: {without} "
        f"all of them are there at once{size}. Set it to true, or use 'nf4' or 'int4', which keep none"
    )


def gguf_file(section: Mapping[str, Any], component: str, settings: Mapping[str, Any]) -> Path | None:
    """The GGUF file of a component: the one that is named, or the only one in the component's folder or the pipeline's;
    None if there is none, or more than one."""
    if FILE in settings:
        return user_path(str(settings[FILE]))
    folder = pipeline_folder(section)
    found = [] if folder is None else [*folder.glob("*.gguf"), *(folder / component).glob("*.gguf")]
    return found[0] if len(found) == 1 else None


def _parts(section: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Parts of the pipeline; none where nothing is known of it."""
    folder = pipeline_folder(section)
    try:
        return {} if folder is None else read_index(folder)[0]
    except ConfigError:
        return {}


def _called(settings: Mapping[str, Any]) -> str:
    return next((f"{name} ({settings[METHOD]})" for name, each in SHORT.items() if each == settings), settings[METHOD])


def _unfit(name: str, parts: Mapping[str, tuple[str, str]]) -> str | None:
    fit = [each for each, (library, kind) in parts.items() if _has_layers(each, library, kind)]
    if not parts or name in fit:
        return None
    what = "is no network or text encoder of this pipeline" if name in parts else f"is not there{hint(name, fit)}"
    return f"{name!r} {what}; it has {listed(fit)}"


def _has_layers(name: str, library: str, kind: str) -> bool:
    """Whether a part is a network or a text encoder; other parts are small, and what they compute is kept."""
    return name in NETWORKS or (library == "transformers" and name.startswith("text_encoder"))


def _not_installed(settings: Mapping[str, Any]) -> str | None:
    backend = BACKENDS[settings[METHOD]]
    try:
        found = find_spec(backend.module)
    except ModuleNotFoundError:
        # A package above it is not there.
        found = None
    if found is not None:
        return None
    return f"{_called(settings)} needs the package {backend.module!r}; run `pip install 'flowhooks[{backend.extra}]'`"


def _not_here(settings: Mapping[str, Any]) -> str | None:
    if settings[METHOD] == "torchao" and torchao_name(settings) == FLOAT8 and has_apple():
        return f"{_called(settings)} needs numbers of 8 bits that Apple's GPUs do not have; use 'int8'"
    return None


def _stored(section: Mapping[str, Any], name: str) -> str | None:
    folder = pipeline_folder(section)
    file = None if folder is None else folder / name / "config.json"
    try:
        if file is None or not file.is_file() or not read_settings(file).get("quantization_config"):
            return None
    except ConfigError:
        return None
    return f"{name!r} is quantised in its files already, as its config.json says; leave it out"


def _no_file(
    section: Mapping[str, Any], name: str, settings: Mapping[str, Any], parts: Mapping[str, tuple[str, str]]
) -> str | None:
    if name not in NETWORKS:
        return f"{name!r} is a text encoder, and GGUF files are read for networks only; use another backend for it"
    known = reads_single_files()
    if name in parts and known is not None and parts[name][1] not in known:
        return f"Diffusers reads no GGUF file of a {parts[name][1]}; use 'int8' or 'nf4'"
    file = gguf_file(section, name, settings)
    example = f'{{"{name}": {{"{METHOD}": "gguf", "{FILE}": "my-Q8_0.gguf"}}}}'
    if file is None:
        return f"there is not exactly one .gguf file in the pipeline's folder; name it, as in {example}"
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        return f"{str(file)!r} cannot be read: {error.strerror}; name a file, as in {example}"
    return None if magic == _MAGIC else f"{str(file)!r} is no GGUF file; name one, as in {example}"


def _wrong_settings(
    settings: Mapping[str, Any], part: tuple[str, str] | None, dtype: str, file: str, place: str
) -> Iterator[Problem]:
    import torch

    from flowhooks.quantization.settings import SettingsRefused, configuration

    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    try:
        configuration(settings, "diffusers" if part is None else part[0], precision)
    except SettingsRefused as refused:
        yield Problem(str(refused), file, ".".join((place, *refused.keys)))


def _numbers(section: Mapping[str, Any], network: str, settings: Mapping[str, Any]) -> int | None:
    """How many numbers the quantised weights of a network are; None where its configuration is not here, or builds
    none."""
    folder, part = pipeline_folder(section), _parts(section).get(network)
    if folder is None or part is None:
        return None
    import diffusers
    import torch

    from flowhooks.quantization.layers import quantizable

    kind: Any = getattr(diffusers, part[1], None)
    try:
        with torch.device("meta"):
            built = kind.from_config(kind.load_config(folder / network))
    except Exception:  # a configuration that builds no network is reported when its weights load
        return None
    return sum(built.get_submodule(name).weight.numel() for name in quantizable(built))

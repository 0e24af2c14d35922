"""A small pipeline of the same classes as a big one, from the configurations in its folder.

The probe learns from it what it would learn from the real one: what text encoders and autoencoder hand over has its
real shape, and what is inside them, and inside the network, is as narrow and shallow as their classes allow. Which
settings may shrink is told by their names, as Diffusers and Transformers use them; no model is named here.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from flowhooks.checks.library import foreign_parts
from flowhooks.checks.pipeline import NETWORKS, index_of, read_index
from flowhooks.documents.document import read_settings
from flowhooks.errors import ModelError
from flowhooks.probe.modular import faced

Settings = dict[str, Any]
_DEPTH = re.compile(r"(^|_)(num_(\w+_)?layers|n_(\w+_)?layers|num_layers|layers_per_block|num_res_blocks|depth)$")
_HEADS = re.compile(r"^(num_attention_heads|num_heads|n_heads)$")
_KEY_HEADS = re.compile(r"^(num_key_value_heads|num_kv_heads|n_kv_heads)$")
_HEAD_WIDTH = re.compile(r"^(attention_head_dim|head_dim|d_kv)$")
_INSIDE = re.compile(r"transformer_layers_per_block$")
_INNER = re.compile(r"^(hidden_size|dim|inner_dim|d_model)$")
#: Settings that say how wide something else is, which the network meets.
_OTHERS = re.compile(r"^(in|out|joint|cross|pooled|text|cap|caption_channels|encoder|context|sample|image)(_|$)")
_FEED = re.compile(r"(^|_)(ffn_dim|d_ff|intermediate_size|ffn_hidden_size|mlp_dim)$")
_LAYERS, _NUMBER_OF_HEADS, _FEED_WIDTH, _CHANNELS = 2, 2, 64, 8
#: Words of a text encoder: with all of them the table would be most of a twin.
_VOCABULARY = 4096
#: A twin with more weights than this would take minutes.
MOST_WEIGHTS = 600_000_000


def twins(folder: Path) -> Iterator[Any]:
    """Small pipelines, the smallest first. A class may refuse one, or be led astray by it; then the next is to be
    tried.

    Raises:
        ModelError: a part cannot be built from what is in the folder, with the reason.
    """
    parts, pipeline = read_index(folder)
    index = read_settings(index_of(folder))
    for message in foreign_parts(index):
        raise ModelError(f"{index_of(folder)}: {message}")
    flags = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    absent: Settings = {name: None for name, found in index.items() if found == [None, None]}
    for stage in range(len(_NARROW)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = {name: _part(folder / name, *where, name, stage) for name, where in parts.items()}
        pipe = _assembled(getattr(diffusers, pipeline), built, {**absent, **flags})
        pipe.set_progress_bar_config(disable=True)
        yield pipe


def _assembled(kind: Any, built: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    if not issubclass(kind, diffusers.ModularPipeline):
        return kind(**built, **more)
    pipe = kind()
    pipe.update_components(**built)
    return faced(pipe)


def _part(folder: Path, library: str, kind: str, name: str, stage: int) -> Any:
    # Parts that only one pipeline has are in its own package.
    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    home = home or getattr(diffusers.pipelines, library, diffusers)
    cls = getattr(home, kind, None)
    if cls is None:
        raise ModelError(f"{folder}: {library} has no {kind} here, so it cannot be built")
    try:
        if library == "transformers" and issubclass(cls, transformers.PreTrainedModel):
            settings = cls.config_class.from_pretrained(folder).to_dict()
            return _folded(_built(lambda small: cls(cls.config_class.from_dict(small)), settings, _TEXT, stage, folder))
        if issubclass(cls, nn.Module):
            # A setting that its file leaves out has the default of the class.
            settings = {**_defaults(cls), **cls.load_config(folder)}
            recipes = _NARROW if name in NETWORKS else _AUTOENCODER
            return _built(cls.from_config, settings, recipes, stage, folder)
        return cls.from_pretrained(folder)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: no {kind} can be built from its configuration: {reason}") from error


def _defaults(cls: type) -> Settings:
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _built(
    build: Callable[[Settings], Any],
    settings: Settings,
    recipes: tuple[Callable[[Settings], Settings], ...],
    stage: int,
    folder: Path,
) -> nn.Module:
    """The module by the recipe of this stage, or by the first after it that its class takes."""
    reason: Exception | None = None
    for recipe in recipes[stage:] or recipes[-1:]:
        small = recipe(settings)
        try:
            with torch.device("meta"):
                # Whether it is small is known before it is computed.
                weights = sum(p.numel() for p in build(small).parameters())
            if weights > MOST_WEIGHTS:
                raise ValueError(f"the smallest one that can be built has {weights:,} weights")
            module: nn.Module = build(small)
        except Exception as error:  # whatever a class makes of settings that nobody gave it before
            reason = reason or error
            continue
        _fill(module)
        return module.eval().requires_grad_(False)
    raise ModelError(f"{folder}: no small copy can be built from its configuration: {reason}")


def _folded(module: nn.Module) -> nn.Module:
    """Let tables of few words take every word that the tokenizer knows."""
    for layer in module.modules():
        if isinstance(layer, nn.Embedding) and layer.num_embeddings == _VOCABULARY:
            layer.register_forward_pre_hook(lambda table, args: (args[0] % table.num_embeddings, *args[1:]))
    return module


def _fill(module: nn.Module) -> None:
    """Make what starts at zero random: a network that answers zeros teaches nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _shallow(settings: Settings) -> Settings:
    """Two layers of each kind, in nested settings too, and the lists that have an entry for each layer as short."""
    small: Settings = {}
    if not all(isinstance(key, str) for key in settings):
        return settings
    counts = {value for key, value in settings.items() if _DEPTH.search(key) and _is_number(value)}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = _shallow(dict(value))
        elif _is_number(value) and _DEPTH.search(key):
            value = min(value, _LAYERS)
        elif isinstance(value, list) and len(value) in counts and len(value) > _LAYERS and "layer" in key:
            value = value[:_LAYERS]
        small[key] = value
    return small


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _setting(settings: Settings, named: re.Pattern[str]) -> int | None:
    return next((value for key, value in settings.items() if named.search(key) and _is_number(value)), None)


def _narrow(settings: Settings, *, equal: bool = True) -> Settings:
    """Two layers with two heads of their own width.

    Args:
        equal: scale every setting that equals the width of all heads together, whatever it is called.
    """
    small = _shallow(settings)
    heads = _setting(settings, _HEADS)
    width = _setting(settings, _HEAD_WIDTH)
    inner = _setting(settings, _INNER)
    if not heads or not (width or inner):
        return small
    width = width or (inner or 0) // heads
    wide, fewer = heads * width, min(heads, _NUMBER_OF_HEADS)
    for key, value in small.items():
        if not _is_number(value) or _OTHERS.search(key):
            continue
        if _HEADS.search(key):
            small[key] = fewer
        elif _KEY_HEADS.search(key):
            small[key] = min(value, fewer)
        elif _FEED.search(key):
            small[key] = min(value, 4 * fewer * width)
        elif value == wide and (equal or _INNER.search(key)):
            small[key] = fewer * width
    return small


def _text(settings: Settings, *, deep: bool = False) -> Settings:
    """Two layers whose results are as wide as they were. Where the settings state the width of a head, two heads are
    enough.

    Args:
        deep: keep all layers, for pipelines that read the results of several.
    """
    small = dict(settings) if deep else _shallow(settings)
    for key, value in small.items():
        if isinstance(value, Mapping):
            small[key] = _text(dict(value), deep=deep) if "hidden_size" in value else value
        elif not _is_number(value):
            continue
        elif key == "vocab_size":
            small[key] = min(value, _VOCABULARY)
        elif key == "pad_token_id" and value >= _VOCABULARY:
            small[key] = 0
        elif _FEED.search(key):
            small[key] = min(value, _FEED_WIDTH)
        elif any(_HEAD_WIDTH.search(each) for each in settings) and (_HEADS.search(key) or _KEY_HEADS.search(key)):
            small[key] = min(value, _NUMBER_OF_HEADS)
    return small


def _thin(settings: Settings) -> Settings:
    """An autoencoder with as many halvings and latent channels, and few channels between them."""
    small = _shallow(settings)
    for key, value in small.items():
        if key == "norm_num_groups" and isinstance(value, int):
            small[key] = math.gcd(value, _CHANNELS)
        elif key.endswith("block_out_channels") and isinstance(value, list):
            small[key] = [min(each, _CHANNELS) for each in value]
        elif key in ("base_dim", "decoder_base_dim") and isinstance(value, int):
            small[key] = min(value, _CHANNELS)
    return small


def _thin_levels(settings: Settings) -> Settings:
    """A U-Net with as many levels and layers between them, of few channels, and one attention block wherever it has
    some."""
    small = _thin(settings)
    if not isinstance(small.get("block_out_channels"), list):
        return small
    for key, value in small.items():
        if value is not None and (_HEAD_WIDTH.search(key) or _HEADS.search(key) or _INSIDE.search(key)):
            small[key] = [1] * len(value) if isinstance(value, list) else 1
    return small


def _same(settings: Settings) -> Settings:
    return dict(settings)


#: From the smallest to the most cautious.
_NARROW = (_narrow, lambda settings: _narrow(settings, equal=False), _shallow, _thin_levels)
_TEXT = (_text, lambda settings: _text(settings, deep=True), _shallow, _same)
_AUTOENCODER = (_thin, _shallow, _same)

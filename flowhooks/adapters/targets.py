"""Find the layers of a transformer that get an adapter, from its module tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from flowhooks.adapters.names import PROJECTIONS, named_by
from flowhooks.errors import AdapterError

_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_bare(transformer: nn.Module) -> None:
    """Refuse a transformer with an adapter on it: the reference would then not be the base model."""
    for name, module in transformer.named_modules():
        if isinstance(module, BaseTunerLayer) or "_lycoris_wrappers" in module.__dict__:
            raise AdapterError(
                f"The transformer already has an adapter (on `{name}`). Detach it, or call "
                "`pipe.unload_lora_weights()`, or fuse it first."
            )


def is_adapted(transformer: nn.Module) -> bool:
    """Return whether an adapter is on it."""
    try:
        check_bare(transformer)
    except AdapterError:
        return True
    return False


def find_targets(transformer: nn.Module, target_modules: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the layers to adapt, in the order of the module tree.

    With ``target_modules`` None these are the attention projections: every Linear layer of a Diffusers attention
    module, and every Linear layer with an attention projection's name. A list selects as PEFT does: a layer whose name
    is an entry or ends with ``.`` and the entry. Convolutions are adapted only when such an entry names them.

    Raises:
        AdapterError: nothing matches, an entry matches nothing, or an entry matches a module that is not Linear or a
        convolution.
    """
    if target_modules is None:
        targets = tuple(_attention_projections(transformer))
        if not targets:
            raise AdapterError(
                f"No attention projections found in {type(transformer).__name__}. Name the layers in "
                f"`adapter.target_modules`; it has {_endings(transformer)}."
            )
        return targets
    matches = {
        entry: [name for name, _ in transformer.named_modules() if named_by(name, entry)] for entry in target_modules
    }
    empty = [entry for entry, names in matches.items() if not names]
    if empty or not matches:
        raise AdapterError(
            f"`adapter.target_modules`: no layer of {type(transformer).__name__} is named "
            f"{', '.join(map(repr, empty)) or 'by an empty list'}. It has {_endings(transformer)}."
        )
    selected = {name for names in matches.values() for name in names}
    for entry, names in matches.items():
        for name in names:
            module = transformer.get_submodule(name)
            if not isinstance(module, _ADAPTABLE):
                raise AdapterError(
                    f"`adapter.target_modules`: {entry!r} names `{name}`, a {type(module).__name__}; adapters go on "
                    f"Linear and convolution layers. {type(transformer).__name__} has {_endings(transformer)}."
                )
    return tuple(name for name, _ in transformer.named_modules() if name in selected)


def _attention_projections(transformer: nn.Module) -> Iterator[str]:
    attention = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, (Attention, AttentionModuleMixin))
    }
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        owner = next((parent for parent in _parents(name) if parent in attention), None)
        if owner is None and not any(named_by(name, projection) for projection in PROJECTIONS):
            continue
        # The text side of a last joint block is computed and discarded; its query has no effect, so it would
        # never get a gradient.
        if (
            owner is not None
            and name.endswith(".add_q_proj")
            and getattr(attention[owner], "context_pre_only", False) is True
        ):
            continue
        yield name


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _endings(transformer: nn.Module) -> str:
    """Describe the distinct last name parts of the layers that could be adapted."""
    endings: dict[str, None] = {}
    for name, module in transformer.named_modules():
        if name and isinstance(module, _ADAPTABLE):
            parts = name.split(".")
            endings[".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]] = None
    return "layers named " + ", ".join(endings) if endings else "no Linear or convolution layer at all"

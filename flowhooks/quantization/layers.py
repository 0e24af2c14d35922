"""Choose the layers of a network that are quantised, by its structure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

#: A member of a list with so many Linear layers is a block, whoever wrote its attention.
_LAYERS_OF_A_BLOCK = 4


def quantizable(network: Any, kept: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the layers of a network, or of a text encoder, that are quantised: the Linear layers inside
    its repeated blocks.

    What maps times, prompts and samples before the blocks, and what follows them, is small, is what hooks copy, and
    stays as it is; so does what its class keeps in 32 bits. Lists of projections are no blocks: they have no attention.

    Args:
        kept: names of layers or parts of them that stay too: a whole name, its first parts, or its last.
    """
    stays = [*kept, *(getattr(network, "_keep_in_fp32_modules", None) or ())]
    # Subclasses compute otherwise than with their weight alone.
    return tuple(
        name
        for name, layer in inside_blocks(network)
        if type(layer) is nn.Linear and not any(f".{each}." in f".{name}." for each in stays)
    )


def inside_blocks(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and layer of the Linear layers inside the repeated blocks of a network, quantised ones too."""
    names = {module: name for name, module in network.named_modules()}
    for block in _blocks(network):
        for inner, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                yield f"{names[block]}.{inner}", layer


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList) else []
        blocks = [member for member in members if _is_block(member)]
        yield from blocks
        if not blocks:
            yield from _blocks(child)


def _is_block(member: nn.Module) -> bool:
    modules = list(member.modules())
    if any(isinstance(each, (Attention, AttentionModuleMixin)) for each in modules):
        return True
    return sum(isinstance(each, nn.Linear) for each in modules) >= _LAYERS_OF_A_BLOCK

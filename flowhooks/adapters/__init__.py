"""Give all adapters one interface: PEFT LoRA, LoHa and LoKr, and LyCORIS, on any Diffusers transformer.

``build_adapter`` injects one, ``build_second`` another beside it, ``load_adapter`` restores what ``Adapter.save``
wrote, ``Adapter.detach`` removes it without a trace. ``FrozenAdapter`` is a teacher: a file that computes beside
the trained adapter.
"""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {
    "Adapter": "flowhooks.adapters.base",
    "FrozenAdapter": "flowhooks.adapters.frozen",
    "build_adapter": "flowhooks.adapters.load",
    "build_second": "flowhooks.adapters.second",
    "load_adapter": "flowhooks.adapters.load",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)

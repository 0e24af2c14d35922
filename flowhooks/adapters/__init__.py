"""Adapters behind one face: PEFT LoRA, LoHa and LoKr, and LyCORIS, on any Diffusers transformer.

``build_adapter`` injects one, ``load_adapter`` brings back what ``Adapter.save`` wrote, ``Adapter.detach`` takes it
off without a trace.
"""

from __future__ import annotations

from flowhooks.adapters.base import Adapter
from flowhooks.adapters.build import build_adapter
from flowhooks.adapters.load import load_adapter

__all__ = ["Adapter", "build_adapter", "load_adapter"]

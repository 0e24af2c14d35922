"""Export runs: adapters in the names of other programs, the model card, uploads to the Hub."""

from __future__ import annotations

from flowhooks.export.card import CardPicture, write_card
from flowhooks.export.dialects import DIALECTS, Exported, export_adapter, export_lora
from flowhooks.export.upload import push

__all__ = ["DIALECTS", "CardPicture", "Exported", "export_adapter", "export_lora", "push", "write_card"]

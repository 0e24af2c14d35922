"""One data set, after every file of it has been looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flowhooks.data.inspection import Picture


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set block and the images it holds.

    Args:
        block: the validated block.
        path: its JSON path, `$[1]`.
        images: stem -> every readable image; empty when the set cannot be used.
        captions: stem -> prompt, of an image set; a stem without one was reported as a fault.
        records: stem -> name -> cell, of an image set, for every name under `columns` that its row fills.
        unusable: stems whose image is there and was reported as a fault.
        usable: whether it could be opened.
        columns: partners from columns or members of the set itself, each like a linked conditioning set.
        place: key of the block that says where the images are.
    """

    block: dict[str, Any]
    path: str
    images: dict[str, Picture]
    captions: dict[str, str] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    unusable: frozenset[str] = frozenset()
    usable: bool = True
    columns: tuple[DataSet, ...] = ()
    place: str = "instance_data_dir"

    @property
    def id(self) -> str:
        return self.block["id"]

    @property
    def where(self) -> str:
        """JSON path of what says where the images are."""
        return f"{self.path}.{self.place}"

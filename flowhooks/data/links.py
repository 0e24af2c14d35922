"""Find out which conditioning data sets belong to which image data set."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from flowhooks.data.blocks import TRAINED
from flowhooks.data.findings import Findings

Blocks = tuple[dict[str, Any], ...]


def link(blocks: Blocks, found: Findings) -> dict[int, tuple[int, ...]]:
    """Return the index of each image block -> indices of all conditioning blocks that apply to it, in file order.

    A link is stated by the image set's `conditioning_data`, by the conditioning set's `source_dataset_id`, or by both.
    Disabled blocks, and links to them, do not count.
    """
    return _Linker(blocks, found).link()


class _Linker:
    def __init__(self, blocks: Blocks, found: Findings):
        self.blocks = blocks
        self.found = found
        self.links: dict[int, set[int]] = {}
        self.excused: set[int] = set()  # sets whose link leads nowhere: reported already, or disabled
        self.named = self._index_by_id()

    def link(self) -> dict[int, tuple[int, ...]]:
        active = [i for i, block in enumerate(self.blocks) if not block["disabled"]]
        images = [i for i in active if self.blocks[i]["dataset_type"] in TRAINED]
        conditioning = [i for i in active if self.blocks[i]["dataset_type"] == "conditioning"]
        if not images:
            off = [block["id"] for block in self.blocks if block["disabled"] and block["dataset_type"] in TRAINED]
            if off:
                named = ", ".join(map(repr, off))
                message = (
                    f"has no data set to train on: `disabled` is true for {named}; set it to false for one of them"
                )
            else:
                message = (
                    "has no data set with `dataset_type` 'image' or 'audio'; add the one that holds what is trained on"
                )
            self.found.problem(self.found.root, message)
        self.links = {i: set() for i in images}
        for i in images:
            self._check_image(i)
            self._link_listed(i)
        for j in conditioning:
            self._check_conditioning(j)
            self._link_source(j)
        self._report_unlinked(conditioning)
        return {i: tuple(sorted(linked)) for i, linked in self.links.items()}

    def _index_by_id(self) -> dict[str, int]:
        named: dict[str, int] = {}
        for i, block in enumerate(self.blocks):
            if block["id"] in named:
                other = self.found.at(named[block["id"]])
                message = f"{block['id']!r} is the id of {other} too; give each data set its own"
                self.found.problem(f"{self.found.at(i)}.id", message)
            named.setdefault(block["id"], i)
        return named

    def _check_image(self, i: int) -> None:
        for key in ("conditioning_type", "source_dataset_id"):
            if self.blocks[i][key] is not None:
                message = f"belongs to a conditioning set; set `dataset_type` to 'conditioning', or remove `{key}`"
                self.found.problem(f"{self.found.at(i)}.{key}", message)

    def _check_conditioning(self, j: int) -> None:
        if self.blocks[j]["conditioning_type"] is None:
            kinds = "'reference_strict', 'reference_loose', 'reference_image', 'mask' or 'segmentation'"
            message = f"is missing; say what the set holds: {kinds}"
            self.found.problem(f"{self.found.at(j)}.conditioning_type", message)
        if self.blocks[j]["conditioning_data"] is not None:
            message = "belongs to an image set; name the image set in `source_dataset_id` instead"
            self.found.problem(f"{self.found.at(j)}.conditioning_data", message)

    def _link_listed(self, i: int) -> None:
        path = f"{self.found.at(i)}.conditioning_data"
        alone = isinstance(self.blocks[i]["conditioning_data"], str)
        for k, name in enumerate(self._names(i)):
            j = self._look_up(name, "conditioning", path if alone else f"{path}[{k}]")
            if j is not None:
                self.links[i].add(j)

    def _link_source(self, j: int) -> None:
        name = self.blocks[j]["source_dataset_id"]
        if name is None:
            return
        path = f"{self.found.at(j)}.source_dataset_id"
        source = self._look_up(name, "image", path)
        if source is None:
            self.excused.add(j)
            return
        for i, linked in self.links.items():
            if j in linked and i != source:
                self.found.problem(
                    path,
                    f"is {name!r}, but {self.found.at(i)}.conditioning_data of {self.blocks[i]['id']!r} names "
                    f"{self.blocks[j]['id']!r} as well; remove one of the two, or remove `source_dataset_id` and name "
                    "the set in both",
                )
        self.links[source].add(j)

    def _look_up(self, name: str, kind: str, path: str) -> int | None:
        """Return the index of the block of this id and `dataset_type`; None if it is disabled, or missing (a
        problem)."""
        kinds = TRAINED if kind in TRAINED else (kind,)
        known = [other for other, i in self.named.items() if self.blocks[i]["dataset_type"] in kinds]
        if name in known:
            index = self.named[name]
            return None if self.blocks[index]["disabled"] else index
        if name in self.named:
            other = self.blocks[self.named[name]]["dataset_type"]
            self.found.problem(path, f"{name!r} is a data set of type {other!r}; expected one of type {kind!r}")
            return None
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the {kind} data sets are: {', '.join(known) or 'none'}"
        self.found.problem(path, f"no data set has the id {name!r}; {hint}")
        return None

    def _report_unlinked(self, conditioning: list[int]) -> None:
        linked = set().union(*self.links.values()) | self.excused
        off = [i for i, block in enumerate(self.blocks) if block["disabled"] and block["dataset_type"] in TRAINED]
        linked |= {self.named[name] for i in off for name in self._names(i) if name in self.named}
        for j in conditioning:
            if j not in linked:
                what = f"{self.blocks[j]['id']!r} belongs to no image data set"
                remedy = "name it in that set's `conditioning_data`, or name that set in its `source_dataset_id`"
                self.found.problem(self.found.at(j), f"{what}; {remedy}")

    def _names(self, i: int) -> list[str]:
        listed = self.blocks[i]["conditioning_data"]
        return [listed] if isinstance(listed, str) else list(listed or ())

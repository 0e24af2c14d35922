"""Encode references, each apart from the caption where the pipeline allows it, and with it where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowhooks.arguments import OWN_TEXTS
from flowhooks.data.encode import COLORS, FORMAT, REMEDY, TEXT_FORMAT, Size, decoded, made_by
from flowhooks.data.findings import count, some
from flowhooks.data.records import Record, Reference, distinct_captions
from flowhooks.data.store import is_finite
from flowhooks.data.transform import load_picture
from flowhooks.errors import ModelError, Problem

if TYPE_CHECKING:
    from flowhooks.data.shards import ShardEntry
    from flowhooks.data.store import Entries
    from flowhooks.probe import FlowModel

#: A caption where the pipeline encodes it with the references, else None; the references; the size of the sample.
Shown = tuple[str | None, tuple[Reference, ...], Size]


class ReferenceEncoder:
    """Encodes the references of samples to the tensors of a condition, or of the part that depends on them.

    Args:
        unprompted: encode each with an empty caption too, where captions are encoded with references.
    """

    def __init__(self, model: FlowModel, unprompted: bool = False):
        from flowhooks.probe.encoding import prompted_arguments
        from flowhooks.probe.references import picture_argument

        self.model = model
        #: The arguments that are wanted without captions too.
        self.unprompted = prompted_arguments(model) if unprompted and model.contract.entangled else ()
        self._undecoded: list[Problem] = []
        #: Reason without its numbers, which are of one sample -> the first reason, and the references of each sample.
        self._refused: dict[str, tuple[str, dict[str, None]]] = {}
        self.entangled = model.contract.entangled
        self.kind = "conditions" if self.entangled else "references"
        self.title = "Encoding captions with references" if self.entangled else "Encoding references"
        self._made_by = made_by(model)
        named = model.contract.references
        shown = [name for name in named if name not in OWN_TEXTS]
        self.argument = shown[0] if len(shown) == 1 else picture_argument(model.pipe) if shown else ""

    @property
    def problems(self) -> list[Problem]:
        """Return what is wrong with files, and one problem for each reason why the pipeline refuses references: it is
        mostly the same for all samples."""
        refused = (
            f"{reason} ({count(len(samples), 'sample')}: {some(samples)})" for reason, samples in self._refused.values()
        )
        return [*self._undecoded, *map(Problem, refused)]

    def items(self, records: Sequence[Record]) -> list[Shown]:
        """Return everything that a draw of the records may use."""
        found: dict[Shown, None] = {}
        for record in records:
            written = {*distinct_captions([record]), *([""] if self.unprompted else [])}
            captions = sorted(written) if self.entangled else (None,)
            for caption in captions:
                for references in record.drawn_references:
                    found[caption, references, record.geometry.size] = None
        return list(found)

    def about(self, item: Shown) -> dict[str, Any]:
        caption, references, size = item
        given: dict[str, Any] = {} if caption is None else {"caption": caption}
        given |= {"given": True} if self.model.tells_given else {}
        return {
            "format": FORMAT,
            **({} if caption is None else {"texts": TEXT_FORMAT}),
            "references": [self._about(each) for each in references],
            "size": list(size),
            **given,
            **self._made_by,
        }

    def encode(self, items: Sequence[Shown]) -> Iterator[tuple[Shown, dict[str, Tensor]]]:
        from flowhooks.probe.failures import PipelineFailed

        for item in items:
            caption, references, size = item
            images = self.images(references)
            if images is None:
                continue
            model = self.model.at(*size)
            try:
                if caption is None:
                    condition = model.encode_references([images])
                else:
                    condition = model.encode_conditions([caption], [images])
            except ModelError as error:
                reason = error.reason if isinstance(error, PipelineFailed) else str(error)
                self._refuse(f"the pipeline refuses references: {reason}", references)
                continue
            tensors = condition.to("cpu").flatten()
            if all(map(is_finite, tensors.values())):
                yield item, tensors
            else:
                self._refuse(f"the model turns references into NaN or infinity; {REMEDY}", references)

    def images(self, references: Sequence[Reference]) -> dict[str, Any] | None:
        """Return pipeline argument -> image, or a list of several; None where one cannot be decoded, which is a
        problem."""
        from flowhooks.probe.references import as_argument

        found: dict[str, list[Any]] = {}
        for each in references:
            if each.image is None:
                found[str(each.argument)] = [each.text]
                continue
            image = decoded(each.image, self._undecoded, partial(load_picture, geometry=each.geometry))
            if image is None:
                return None
            found.setdefault(each.argument or self.argument, []).append(image)
        return {argument: as_argument(images) for argument, images in found.items()}

    def learn_layouts(self, keys: Mapping[Shown, str], places: Mapping[str, ShardEntry], entries: Entries) -> None:
        """Let the model know the layout of every shape of references, also of those that were found in the cache: it
        takes one sample of each. Encoders are needed for that, and not later."""
        from flowhooks.probe import Condition

        known: set[tuple[bytes, Size]] = set()
        for item, key in keys.items():
            # Entries of one head hold tensors of the same shapes.
            head = places[key].head
            if (head, item[2]) in known:
                continue
            known.add((head, item[2]))
            model = self.model.at(*item[2])
            argument = model.layout(**model.size).sample_argument
            (sample,) = Condition.unflatten(entries.read(self.kind, key)).samples
            images = None if model.knows_layout(sample) else self.images(item[1])
            if images is not None:
                model.layout_with(tuple(sample[argument].shape[1:]), images)

    def _refuse(self, reason: str, references: Sequence[Reference]) -> None:
        _, samples = self._refused.setdefault(re.sub(r"\d+", "", reason), (reason, {}))
        samples[_names(references)] = None

    def _about(self, reference: Reference) -> dict[str, Any]:
        from dataclasses import asdict

        if reference.image is None:
            return {"argument": reference.argument, "text": reference.text}
        cut = {} if reference.geometry is None else {"geometry": asdict(reference.geometry)}
        colours = {"colors": COLORS} if reference.image.profiled else {}
        return {"argument": reference.argument or self.argument, "file": reference.image.digest, **cut, **colours}


def _names(references: Sequence[Reference]) -> str:
    return " + ".join(each.image.asset.name if each.image is not None else repr(each.text) for each in references)

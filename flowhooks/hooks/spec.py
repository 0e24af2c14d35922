"""The spec of a hook, which is read before torch is imported: options, slots, needs, papers, a recipe for the laws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from flowhooks.documents.spec import Spec
from flowhooks.kernel.plan import SLOTS

#: Why hooks that read pairs, or learn flow maps, cannot be beside one that generates its samples.
PAIRS = "pairs come from the data, and {other} trains on samples that it generates"
FLOW_MAP = (
    "a flow map is learned on intervals between noise and an image of the data, and {other} trains on samples that it "
    "generates, step by step"
)
#: JSON Schema of a shift of times: a number above 0, or the value of the pipeline's scheduler.
SHIFT: Mapping[str, Any] = {
    "maximum": 1_000_000,
    "if": {"type": "string"},
    "then": {"enum": ["scheduler"]},
    "else": {"exclusiveMinimum": 0},
}
#: Names (see :class:`flowhooks.kernel.plan.Declaration`) that a hook may set as class attributes or return from
#: ``declares``.
DECLARED = ("slots", "needs", "wants", "gives", "excludes", "passes", "queries", "chunks")


class HookSpec(Spec):
    """Base of the spec of a hook; ``class SigmaWeightSpec(HookSpec, type="sigma_weight", title="Sigma weight")``.

    The class of the hook, ``SigmaWeight(SigmaWeightSpec, Hook)``, is in the module ``hook`` beside the spec. Class
    attributes are its declaration (see :class:`flowhooks.kernel.plan.Declaration`); :meth:`declares` returns the parts
    that depend on options.
    """

    kind: ClassVar[str] = "hook"
    #: A class that is spec and hook in one may leave them out: they are those whose methods it defines.
    slots: ClassVar[Iterable[str]] = ()
    needs: ClassVar[Iterable[str]] = ()
    wants: ClassVar[Iterable[str]] = ()
    gives: ClassVar[Iterable[str]] = ()
    excludes: ClassVar[Mapping[str, str]] = {}
    passes: ClassVar[tuple[tuple[str, str], ...]] = ()
    queries: ClassVar[int] = 0
    chunks: ClassVar[int] = 1
    #: Needs of a run that this hook, with its defaults, is added for.
    implied_by: ClassVar[tuple[str, ...]] = ()
    #: Keys of ``papers.bib``, for the citation of the model card.
    papers: ClassVar[tuple[str, ...]] = ()
    #: Options under which the laws of the house are tested over this hook alone; None: a recipe of theirs names it.
    law: ClassVar[Mapping[str, Any] | None] = None
    #: The option whose weight switches on a hook that calls the network from pure noise to data.
    whole_path: ClassVar[str] = ""
    #: Page in ``docs/`` that explains it.
    page: ClassVar[str] = "hooks.md"
    #: Needs and gives in words, for the table in the docs, where they depend on options.
    words: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def cites(cls, block: Mapping[str, Any]) -> tuple[str, ...]:
        """Return which of its papers are behind a block, which may leave options out."""
        return cls.papers

    def declares(self) -> Mapping[str, Any]:
        """Return the parts of the declaration that depend on options; they replace the class attributes."""
        return {}

    @classmethod
    def settled(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Return complete options, with those filled in that follow from others."""
        return options

    def unprompted(self) -> bool:
        """Return whether the hook predicts on the samples of a batch without their prompts too, as guidance in a step
        does."""
        return False

    def refusal(self) -> str | None:
        """Return why a run cannot train with these options, or None where it can. This is for checks that read a file
        or compare several options."""
        return None

    def __post_init__(self) -> None:
        super().__post_init__()
        if message := self.refusal():
            raise ValueError(message)

    @classmethod
    def declaration(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """All of :data:`DECLARED` under these (complete) options."""
        said = cls.unchecked(options).declares()
        own = {slot for slot in SLOTS if callable(getattr(cls, slot, None))}
        return {"slots": cls.slots or own, **{name: getattr(cls, name) for name in DECLARED[1:]}, **said}

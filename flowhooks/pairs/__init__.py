"""Make data sets of pairs: from good images by degrading them, or from images with scores. Free of torch."""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {
    "Made": "flowhooks.pairs.folder",
    "make_pairs": "flowhooks.pairs.make",
    "pairs_from_scores": "flowhooks.pairs.choose",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)

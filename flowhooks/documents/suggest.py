"""Suggests known words that are close to an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

#: Words that people bring from elsewhere and that no measure of spelling would find.
_ELSEWHERE = {
    "adam": "adamw",
    "average": "mean",
    "avg": "mean",
    "bfloat16": "bf16",
    "caption": "textfile",
    "float16": "fp16",
    "float32": "fp32",
    "half": "fp16",
    "lr": "learning_rate",
    "batch_size": "train_batch_size",
    "path": "instance_data_dir",
    "dataset_name": "instance_data_dir",
    "repo_id": "instance_data_dir",
    "sdpa": "native",
}


#: Shares of letters in common from which on a word is close: one that begins alike, and any. `height` was not meant to
#: be `weighting`.
_ALIKE, _NEAR = 0.6, 0.75
#: Letters of a word that is compared; comparing longer ones takes time and finds nothing.
_LONGEST = 100


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that ``word`` was most likely meant to be, or None."""
    if len(word) > _LONGEST:
        return None
    names = {name.lower().replace("-", "_"): name for name in known}
    plain = word.lower().replace("-", "_")
    if plain in names:
        return names[plain]
    if _ELSEWHERE.get(plain) in names:
        return names[_ELSEWHERE[plain]]
    close = get_close_matches(plain, names, n=1, cutoff=_NEAR) or get_close_matches(
        plain, [name for name in names if name[:1] == plain[:1]], n=1, cutoff=_ALIKE
    )
    return names[close[0]] if close else None


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known words that look most like ``word``, best first, even where none is close."""
    plain = word[:_LONGEST].lower()
    return sorted(known, key=lambda name: -SequenceMatcher(None, plain, name.lower()).ratio())[:most]


def hint(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'mean'?``, or nothing."""
    close = closest(word, known)
    return f"; did you mean {close!r}?" if close else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """``'a', 'b', 'c' and 14 more``."""
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(repr(name) for name in every[:most]) + rest

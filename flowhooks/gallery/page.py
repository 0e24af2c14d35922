"""Write one self-contained HTML page: images are `data:` URLs, and its policy forbids fetching and all scripts but
ours."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from io import BytesIO
from itertools import zip_longest

from PIL import Image

from flowhooks.data.findings import count
from flowhooks.errors import Problem
from flowhooks.gallery.cards import Card
from flowhooks.gallery.originals import WHOLE, Original
from flowhooks.gallery.thumbs import SIDE, Thumbs, is_grey, overlay, weights_in_words

MARK = "<!-- flowhooks inspect -->"
STATES = {"problem": "with problems", "warning": "with warnings", "fine": "fine"}


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Counts the samples of a data set that are trained at one size.

    Args:
        samples: how many there are.
        draws: how many an epoch has, with repeats.
        shown: how many of them are on the page.
    """

    samples: int = 0
    draws: int = 0
    shown: int = 0


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Holds what is shown above the cards.

    Args:
        title: name of the file.
        facts: label -> number.
        problems: why a run refuses the data.
        warnings: what is probably not meant.
        notes: what else is remarkable.
        buckets: (data set, size) -> how many samples.
        of: total number of cards.
    """

    title: str
    facts: Mapping[str, int]
    problems: Sequence[Problem]
    warnings: Sequence[str]
    notes: Sequence[str]
    buckets: Mapping[tuple[str, str], Bucket]
    of: int


def page(found: Overview, cards: Sequence[tuple[Card, Thumbs]]) -> str:
    """Return the whole page."""
    script, style = _own("page.js"), _own("page.css")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    body = [*_head(found), *_filters(found, [card for card, _ in cards]), '<section id="cards" aria-label="samples">']
    several = len({card.dataset for card, _ in cards}) > 1
    body += [_card(card, thumbs, several) for card, thumbs in cards]
    body += ["</section>", *_foot(found, len(cards))]
    return (
        f'<!doctype html>{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(found.title)}</title><style>{style}</style></head>\n<body>"
        + "\n".join(body)
        + f"\n<script>{script}</script></body></html>\n"
    )


@cache
def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _head(found: Overview) -> Iterator[str]:
    facts = "".join(f"<li><b>{number:,}</b> {escape(word)}</li>" for word, number in found.facts.items())
    yield f'<header><h1>{escape(found.title)}</h1><ul class="facts">{facts}</ul></header><main>'
    problems = [(" ".join(filter(None, (each.file, each.path))), each.message) for each in found.problems]
    yield _section("problem", "A run would refuse this", problems)
    yield _section("warning", "Warnings", [("", each) for each in found.warnings])
    if found.buckets:
        yield '<section aria-label="buckets"><h2>Buckets</h2><ul class="buckets">'
        largest = max(each.samples for each in found.buckets.values())
        for (dataset, size), bucket in found.buckets.items():
            yield (
                f'<li><button type="button" data-bucket="{escape(size)}" aria-pressed="false"><b>{escape(size)}</b>'
                f"<span>{count(bucket.samples, 'sample')}</span>"
                f'<progress max="{largest}" value="{bucket.samples}" aria-hidden="true"></progress>'
                f'<span class="set">{escape(", ".join((dataset, *_beside(bucket))))}</span></button></li>'
            )
        yield "</ul></section>"


def _beside(bucket: Bucket) -> Iterator[str]:
    """Yield what else is counted of a bucket, where it is another number."""
    if bucket.draws != bucket.samples:
        yield f"{bucket.draws:,} in an epoch"
    if bucket.shown != bucket.samples:
        yield f"{bucket.shown:,} on this page"


def _section(kind: str, title: str, lines: Sequence[tuple[str, str]]) -> str:
    if not lines:
        return ""
    rows = "".join(
        "<li>" + (f'<code class="where">{escape(place)}</code>' if place else "") + f"{escape(message)}</li>"
        for place, message in lines
    )
    return f'<section><h2 class="{kind}">{escape(title)}</h2><ul class="told {kind}">{rows}</ul></section>'


def _filters(found: Overview, cards: Sequence[Card]) -> Iterator[str]:
    yield '<div id="bar"><form id="filters" role="search" hidden>'
    yield '<input type="search" name="search" placeholder="Search captions and names" aria-label="Search">'
    sets = Counter(card.dataset for card in cards)
    buckets = Counter(card.bucket for card in cards if card.bucket)
    states = Counter(card.state for card in cards)
    yield _select("dataset", "All data sets", [(name, name, number) for name, number in sets.items()])
    yield _select("bucket", "All sizes", [(name, name, number) for name, number in sorted(buckets.items())])
    known = [(state, words, states[state]) for state, words in STATES.items() if states[state]]
    yield _select("state", "All samples", known)
    yield (
        '<select name="size" aria-label="Size of the images"><option value="small">small</option>'
        '<option value="medium" selected>medium</option><option value="large">large</option></select>'
    )
    masked = any(card.masks for card in cards)
    yield f'<label class="check"{"" if masked else " hidden"}><input type="checkbox" name="mask" checked> Masks</label>'
    yield '<button type="button" class="clear">Clear</button>'
    yield f'<output id="shown" data-of="{found.of}"></output></form></div>'
    yield "<noscript><p>Searching and filtering need JavaScript; all samples are below.</p></noscript>"


def _select(name: str, title: str, options: Sequence[tuple[str, str, int]]) -> str:
    """Return a selection, hidden if there is nothing to choose."""
    rows = "".join(
        f'<option value="{escape(value)}">{escape(words)} ({number:,})</option>' for value, words, number in options
    )
    hidden = "" if len(options) > 1 else " hidden"
    return f'<select name="{name}" aria-label="{title}"{hidden}><option value="">{title}</option>{rows}</select>'


def _card(card: Card, thumbs: Thumbs, several: bool) -> str:
    text = escape("\n".join((card.key, card.caption or "", *card.wordings)).lower())
    whole = {each.side: each for each in thumbs.originals}
    sides = [_figure(card, "preferred" if card.paired else "image", thumbs.image, thumbs.mask, whole.get("image"))]
    if card.paired:
        sides.append(_figure(card, "rejected", thumbs.rejected, thumbs.mask, whole.get("rejected")))
    if thumbs.mask is not None and is_grey(thumbs.mask):
        sides.append(_figure(card, "mask", thumbs.mask, None, None))
    beside = [each for side, each in whole.items() if side not in ("image", "rejected")]
    sides += [
        _figure(card, "reference", picture, None, original)
        for picture, original in zip_longest(thumbs.references, beside[: len(thumbs.references)])
    ]
    chips = _chips(card, thumbs, several)
    missing = card.caption is None
    caption = "no caption" if missing else card.caption or ""
    return (
        f'<article aria-label="{escape(card.key)}" data-text="{text}"'
        f' data-dataset="{escape(card.dataset)}" data-bucket="{escape(card.bucket)}" data-state="{card.state}">'
        f'<div class="sides">{"".join(sides)}</div><div class="words">{chips}'
        f'<p class="caption{" none" if missing else ""}" dir="auto">{escape(caption)}</p>{_others(card.wordings)}'
        f"<h3>{escape(card.key)}</h3></div></article>"
    )


def _chips(card: Card, thumbs: Thumbs, several: bool) -> str:
    chips = [("problem", each) for each in card.problems] + [("warning", each) for each in card.warnings]
    if several:
        chips.append(("", card.dataset))
    if card.image is not None:
        cut = f"{card.image.size} \N{RIGHTWARDS ARROW} {card.bucket}"
        chips.append(("", cut if card.bucket and card.bucket != card.image.size else card.image.size))
    if thumbs.everywhere:
        chips.append(("", "mask is white all over"))
    elif thumbs.mask is not None:
        chips.append(("", weights_in_words(thumbs.mask)))
    if card.times > 1:
        chips.append(("", f"{card.times} times an epoch"))
    rows = "".join(f'<li class="{kind}">{escape(words)}</li>' for kind, words in chips)
    return f'<ul class="chips">{rows}</ul>'


def _others(wordings: Sequence[str]) -> str:
    if not wordings:
        return ""
    rows = "".join(f'<li dir="auto">{escape(each)}</li>' for each in wordings)
    return f"<details><summary>or one of {count(len(wordings), 'other wording')}</summary><ul>{rows}</ul></details>"


def _figure(
    card: Card, side: str, picture: Image.Image | None, mask: Image.Image | None, original: Original | None
) -> str:
    if picture is None:
        gone = '<div class="frame"><span class="gone">missing</span></div>'
        return f"<figure>{gone}<figcaption>{side}</figcaption></figure>"
    shown = _img(picture, f"{side}: {card.key}")
    if mask is not None:
        # Enlarged first where images are tiny, or its line would be as wide as their pixels.
        factor = max(1, SIDE // max(mask.size))
        enlarged = mask.resize((mask.width * factor, mask.height * factor), Image.Resampling.NEAREST)
        shown += _img(overlay(enlarged), "", "mask")
    attributes = "" if original is None else _original(original, picture)
    label = escape(f"enlarge {side}: {card.key}")
    return (
        f'<figure><button type="button" class="frame" aria-label="{label}"{attributes}>{shown}</button>'
        f"<figcaption>{side}</figcaption></figure>"
    )


def _original(original: Original, small: Image.Image) -> str:
    """Return the attributes of a button that shows a file whole; its pixels only where the small image lacks some."""
    box = " ".join(f"{each:.5g}" for each in original.box)
    attributes = f' data-about="{escape(original.about)}" data-box="{box}"'
    if original.box == WHOLE and max(original.picture.size) <= max(small.size):
        return attributes
    return f'{attributes} data-whole="{_data(original.picture, quality=70)}"'


def _img(picture: Image.Image, alt: str, kind: str = "") -> str:
    tiny = max(picture.size) < SIDE // 2
    data = _data(picture, lossless=tiny or picture.mode == "RGBA")
    classes = " ".join(filter(None, (kind, "tiny" if tiny else "")))
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img class="{classes}" {size} alt="{escape(alt)}" src="{data}">'


def _data(picture: Image.Image, *, lossless: bool = False, quality: int = 78) -> str:
    """Return an image as a `data:` URL."""
    file = BytesIO()
    picture.save(file, "WEBP", lossless=lossless, quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _foot(found: Overview, shown: int) -> Iterator[str]:
    yield '<p id="nothing" hidden>Nothing matches. <button type="button" class="clear">Clear the filters</button></p>'
    if not shown:
        yield "<p>No sample could be read.</p>"
    yield _section("note", "Notes", [("", each) for each in found.notes])
    yield (
        '</main><dialog id="zoom" aria-label="The whole file"><div class="view"><div class="box"></div></div>'
        '<p class="about"></p>'
        '<p class="keys"><kbd>\N{LEFTWARDS ARROW}</kbd> <kbd>\N{RIGHTWARDS ARROW}</kbd> the one before, the next. '
        'The line shows what is cut out for training. <button type="button" class="close">Close</button></p></dialog>'
    )
    yield "<footer><p>"
    if shown < found.of:
        yield f"{shown:,} of {found.of:,} samples are on this page; <code>--sample</code> takes more. "
    yield "Tint: where the mask is not black, so where it trains, denser where it is brighter, dashes around all of it "
    yield "and a line around what is bright; point at an image to see it without, click on it for the whole file. "
    yield "<kbd>/</kbd> searches, <kbd>m</kbd> shows or hides masks, <kbd>Esc</kbd> clears.</p></footer>"

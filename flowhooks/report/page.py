"""Write the page: one HTML file without any address in it, whose policy lets nothing run but its own script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from flowhooks.data.findings import count
from flowhooks.data.shards import human_bytes
from flowhooks.manifest import REPORT_MARK
from flowhooks.report import content
from flowhooks.report.advice import next_steps
from flowhooks.report.figures import HELD_OUT, METHOD, OPTIMISER, OTHER
from flowhooks.report.pictures import DrawnImages
from flowhooks.report.record import RunRecord
from flowhooks.report.sections import (
    data_part,
    figures_part,
    images_part,
    median_pace,
    settings_part,
    sounds_part,
    speed_part,
    warnings_part,
    words,
)


def page(records: Sequence[RunRecord], drawn: Sequence[DrawnImages], *, watched: str = "") -> str:
    """Return the whole page of one run, or of several that are compared.

    Args:
        drawn: the images of each run.
        watched: state of the runs' folders, if a server renews the page; empty for a file.
    """
    script, style = _own("page.js"), _own("page.css")
    # Only a page that a server renews may ask for anything, and that server alone.
    asks = "; connect-src 'self'" if watched else ""
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        f"base-uri 'none'; form-action 'none'{asks}"
    )
    shown = content.figures(records)
    warned = content.warnings(records)
    data = {
        "runs": [{"name": record.name, "last": record.last} for record in records],
        "figures": shown,
        "warnings": warned,
        "images": content.images(drawn),
        "watched": watched,
    }
    title = " and ".join(record.name for record in records)
    body = [*_head(records), '<main id="main">', *_notices(records)]
    body += [*_glance(records), *figures_part(shown, METHOD, HELD_OUT), *warnings_part(records, warned)]
    body += [*images_part(records, drawn), *sounds_part(records), *data_part(records), *settings_part(records)]
    body += [
        *speed_part(records, shown),
        *figures_part(shown, OPTIMISER, OTHER),
        *_next(records),
        "</main>",
        *_foot(records),
    ]
    return (
        f'{REPORT_MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>"
        + "\n".join(body)
        + f'\n<script type="application/json" id="data">{_json(data)}</script>'
        + f"\n<script>{script}</script></body></html>\n"
    )


def _json(data: Any) -> str:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _head(records: Sequence[RunRecord]) -> Iterator[str]:
    yield '<a class="skip" href="#main">Skip to the curves</a><header>'
    if len(records) > 1:
        yield f"<h1>{count(len(records), 'run')} compared</h1>"
    for i, record in enumerate(records):
        model = str(record.section("model").get("pretrained_model_name_or_path", ""))
        facts = [", ".join(record.methods), model.rstrip("/").rpartition("/")[2]]
        state = (
            "finished"
            if record.finished
            else f"step {record.last:,}" + (f" of {record.steps:,}" if record.steps else "")
        )
        heading = "h1" if len(records) == 1 else "h2"
        swatch = f'<i class="swatch run-{i}"></i>' if len(records) > 1 else ""
        yield (
            f'<div class="run"><{heading}>{swatch}{words(record.name)}</{heading}>'
            f'<p class="about"><span class="state {"done" if record.finished else "open"}">{escape(state)}</span>'
            + "".join(f"<span>{words(fact)}</span>" for fact in facts if fact)
            + (f"<span>last logged {record.logged:%Y-%m-%d %H:%M} UTC</span>" if record.logged else "")
            + "</p></div>"
        )
    links = [("method", "Method"), ("images", "Images"), ("data-audit", "Data"), ("settings", "Settings")]
    links += [("speed", "Memory and speed"), ("next", "What next")]
    yield '<nav aria-label="Parts of the page">' + "".join(f'<a href="#{at}">{name}</a>' for at, name in links)
    yield "</nav></header><noscript><p>Curves and images need JavaScript; the text below does not.</p></noscript>"


def _notices(records: Sequence[RunRecord]) -> Iterator[str]:
    rows = [(record, notice) for record in records for notice in record.notices]
    if rows:
        names = [f"<b>{words(record.name)}</b> " if len(records) > 1 else "" for record, _ in rows]
        lines = "".join(f"<li>{name}{words(notice)}</li>" for name, (_, notice) in zip(names, rows, strict=True))
        yield f'<ul class="notices">{lines}</ul>'


def _glance(records: Sequence[RunRecord]) -> Iterator[str]:
    """Show the few numbers by which a run is judged first."""
    for record in records:
        facts = []
        for name, short in _judged(record):
            values = record.metrics.columns[name].values
            late = list(values[-10:])
            began = f"{values[0]:.3g} at step {int(record.metrics.columns[name].steps[0]):,}"
            told = f"mean of the last {len(late)}; {began}" if len(values) > 1 else f"at step {record.last:,}"
            facts.append((f"{sum(late) / len(late):.3g}", short, told))
        of = f"of {record.steps:,}" if record.steps else ""
        facts.append((f"{record.last:,}", "steps", of))
        if pace := median_pace(record):
            facts.append((f"{pace:.3g} s", "a step", "median"))
        if peak := _peak(record):
            facts.append((human_bytes(peak[1]), "memory", peak[0]))
        if record.events.known:
            facts.append((str(len(record.events.warnings)), "warnings", ""))
        cells = "".join(
            f"<div><dt>{escape(name)}<span>{escape(more)}</span></dt><dd>{escape(value)}</dd></div>"
            for value, name, more in facts
        )
        title = f"<h3>{words(record.name)}</h3>" if len(records) > 1 else ""
        yield f'<section class="glance" aria-label="At a glance">{title}<dl>{cells}</dl></section>'


def _judged(record: RunRecord) -> list[tuple[str, str]]:
    """Return the metrics by which a run is judged first, with their names."""
    columns = record.metrics.columns
    known = [(name, short) for name, short in record.health.items() if name in columns and len(columns[name].values)]
    if not known:
        found = [each for each in content.figures([record]) if each["group"] in (METHOD, HELD_OUT)][:1]
        known = [(each["series"][0]["metric"], str(each["title"]).lower()) for each in found]
    if "loss" in columns and len(columns["loss"].values):
        known.append(("loss", "loss"))
    return known


def _peak(record: RunRecord) -> tuple[str, int] | None:
    """Return the most memory that was seen, of the device where there is one."""
    for key, what in (("device", "most, on the device"), ("process", "most seen, of the process")):
        found = [held[key] for _, held in record.events.memory if key in held]
        if found:
            return what, max(found)
    return None


def _next(records: Sequence[RunRecord]) -> Iterator[str]:
    yield '<section id="next"><h2>What to do next</h2>'
    for record in records:
        if len(records) > 1:
            yield f"<h3>{words(record.name)}</h3>"
        rows = "".join(
            f"<li>{words(each.text)}" + (f"<pre>{words(each.command)}</pre>" if each.command else "") + "</li>"
            for each in next_steps(record)
        )
        yield f'<ol class="next">{rows}</ol>'
        if record.folder.is_absolute():
            yield '<p class="soft">Type the commands in the folder of the run.</p>'
    yield "</section>"


def _foot(records: Sequence[RunRecord]) -> Iterator[str]:
    yield (
        "<footer><p>Where a curve has more points than fit, its line is the mean of each bin, with a band from the "
        "least to the largest; else it is the mean of the eleven logged steps around, with the logged values behind "
        "it.</p>"
        "<p><kbd>Tab</kbd> reaches every curve, <kbd>←</kbd> <kbd>→</kbd> read it, <kbd>w</kbd> wipes, "
        "<kbd>[</kbd> <kbd>]</kbd> change the step of the images. Written by flowhooks.</p>"
        '</footer><p id="told" aria-live="polite"></p>'
    )

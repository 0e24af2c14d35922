"""Write the page: one HTML file without any address in it, whose policy lets nothing run but its own script."""

from __future__ import annotations

import base64
import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from flowhooks.data.findings import count
from flowhooks.data.shards import human_bytes
from flowhooks.documents.privacy import text_without_local_paths
from flowhooks.manifest import REPORT_MARK
from flowhooks.report import content
from flowhooks.report.advice import next_steps
from flowhooks.report.figures import HELD_OUT, METHOD, OPTIMISER, OTHER, SPEED
from flowhooks.report.pictures import DrawnImages
from flowhooks.report.record import RunRecord
from flowhooks.report.settings import Setting, differing, settings

#: Values of a setting longer than this are cut on the page.
LONG = 400
_TITLES = {
    METHOD: ("method", "What the method says about itself"),
    HELD_OUT: ("validation", "In validation"),
    OPTIMISER: ("optimiser", "Loss and optimiser"),
    OTHER: ("other", "Everything else that was logged"),
}


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
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; "
        f"form-action 'none'{asks}"
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
    body += [*_glance(records), *_figures(shown, METHOD, HELD_OUT), *_warnings(records, warned)]
    body += [*_images(records, drawn), *_data(records), *_settings(records)]
    body += [*_speed(records, shown), *_figures(shown, OPTIMISER, OTHER), *_next(records), "</main>", *_foot(records)]
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


def _words(text: str) -> str:
    """Return a text for the page, without absolute paths: a page is passed on."""
    return escape(text_without_local_paths(text))


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
            f'<div class="run"><{heading}>{swatch}{_words(record.name)}</{heading}>'
            f'<p class="about"><span class="state {"done" if record.finished else "open"}">{escape(state)}</span>'
            + "".join(f"<span>{_words(fact)}</span>" for fact in facts if fact)
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
        names = [f"<b>{_words(record.name)}</b> " if len(records) > 1 else "" for record, _ in rows]
        lines = "".join(f"<li>{name}{_words(notice)}</li>" for name, (_, notice) in zip(names, rows, strict=True))
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
        if pace := _pace(record):
            facts.append((f"{pace:.3g} s", "a step", "median"))
        if peak := _peak(record):
            facts.append((human_bytes(peak[1]), "memory", peak[0]))
        if record.events.known:
            facts.append((str(len(record.events.warnings)), "warnings", ""))
        cells = "".join(
            f"<div><dt>{escape(name)}<span>{escape(more)}</span></dt><dd>{escape(value)}</dd></div>"
            for value, name, more in facts
        )
        title = f"<h3>{_words(record.name)}</h3>" if len(records) > 1 else ""
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


def _pace(record: RunRecord) -> float | None:
    column = record.metrics.columns.get("seconds_per_step")
    return statistics.median(column.values) if column is not None and len(column.values) else None


def _peak(record: RunRecord) -> tuple[str, int] | None:
    """Return the most memory that was seen, of the device where there is one."""
    for key, words in (("device", "most, on the device"), ("process", "most seen, of the process")):
        found = [held[key] for _, held in record.events.memory if key in held]
        if found:
            return words, max(found)
    return None


def _figures(shown: Sequence[Mapping[str, Any]], *groups: str) -> Iterator[str]:
    for group in groups:
        here = [each for each in shown if each["group"] == group]
        anchor, title = _TITLES[group]
        if not here and group != METHOD:
            continue
        if group == METHOD and not here:
            yield f'<section id="{anchor}"><h2>{title}</h2>'
            yield '<p class="soft">No metric of a method was logged.</p></section>'
            continue
        places = "".join(_place(each) for each in here)
        if group == OTHER:
            yield (
                f'<section id="{anchor}"><details><summary><h2>{title}</h2><span class="soft">'
                f'{count(len(here), "metric")}</span></summary><div class="figures">{places}</div></details></section>'
            )
            continue
        yield f'<section id="{anchor}"><h2>{title}</h2><div class="figures">{places}</div></section>'


def _place(figure: Mapping[str, Any]) -> str:
    return (
        f'<figure class="chart" id="{figure["id"]}"><figcaption><h3>{escape(figure["title"])}</h3>'
        f'<button type="button" class="save" aria-label="Save {escape(figure["title"])} as PNG">PNG</button>'
        f'<p>{escape(figure["note"])}</p></figcaption><div class="plot"></div></figure>'
    )


def _warnings(records: Sequence[RunRecord], told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not told:
        return
    rows = []
    for i, each in enumerate(told):
        place = f"step {each['step']:,}" if each["step"] else "before the first step"
        name = f"<em>{_words(records[each['run']].name)}</em> " if len(records) > 1 else ""
        rows.append(f'<li id="warning-{i + 1}"><b>{place}</b> {name}{escape(each["text"])}</li>')
    yield (
        f'<section id="warnings"><h2>Warnings <span class="soft">marked on the time axis of each curve</span></h2>'
        f'<ol class="warnings">{"".join(rows)}</ol></section>'
    )


def _images(records: Sequence[RunRecord], drawn: Sequence[DrawnImages]) -> Iterator[str]:
    yield '<section id="images"><h2>Images</h2>'
    for record, pictures in zip(records, drawn, strict=True):
        name = f"{_words(record.name)}: " if len(records) > 1 else ""
        shown = len(pictures.grids)
        if pictures.of > shown + len(pictures.damaged):
            yield f'<p class="soft">{name}{shown} of {pictures.of} validations, evenly spread.</p>'
        if pictures.damaged:
            yield f'<p class="soft">{name}cannot be read: {escape(", ".join(pictures.damaged))}.</p>'
        left = max((grid.left_out for _, grid in pictures.grids), default=0)
        if left:
            yield f'<p class="soft">{name}{count(left, "image")} of each validation: only in the grids.</p>'
    if not any(pictures.grids for pictures in drawn):
        yield '<p class="soft">There are no validation images.</p></section>'
        return
    yield """<form id="viewer" hidden>
<div class="bar"><label for="step">Step</label><input type="range" id="step" min="0" max="0" step="1" value="0">
<output id="at" for="step"></output>
<span class="modes" role="group" aria-label="How to compare">
<button type="button" id="side" aria-pressed="true">Side by side</button>
<button type="button" id="wipe" aria-pressed="false">Wipe</button></span></div>
<div id="stage"></div>
<label id="divide" hidden><span>Wipe</span>
<input type="range" id="divider" min="0" max="100" step="1" value="50"></label>
<p id="prompt" dir="auto"></p><div id="thumbs" role="group" aria-label="Images"></div></form></section>"""


def _data(records: Sequence[RunRecord]) -> Iterator[str]:
    yield '<section id="data-audit"><h2>Data</h2>'
    for record in records:
        if len(records) > 1:
            yield f"<h3>{_words(record.name)}</h3>"
        counts, lines = record.events.started.get("counts"), record.lines("audit")
        if isinstance(counts, dict) and any(counts.values()):
            facts = "".join(
                f"<li><b>{number:,}</b> {_words(str(word))}</li>"
                for word, number in counts.items()
                if isinstance(number, int) and number
            )
            yield f'<ul class="facts">{facts}</ul>'
        if lines:
            yield '<ul class="lines">' + "".join(f"<li>{_words(line)}</li>" for line in lines) + "</ul>"
        if not record.events.known:
            yield '<p class="soft">Its audit is not known; <code>flowhooks inspect</code> shows its data.</p>'
        elif not lines:
            yield '<p class="soft">This run trained on no data set: it samples its own.</p>'
    yield "</section>"


def _settings(records: Sequence[RunRecord]) -> Iterator[str]:
    yield '<section id="settings"><h2>Settings</h2>'
    if len(records) > 1:
        rows = differing(records)
        head = "".join(f"<th scope='col'>{_words(record.name)}</th>" for record in records)
        body = "".join(
            f"<tr><th scope='row'><code>{_words(path)}</code></th>"
            + "".join(f"<td><code>{_value(value)}</code></td>" for value in values)
            + "</tr>"
            for path, values in rows
        )
        if rows:
            yield '<p class="soft">Keys that differ between the runs.</p><div class="scroll"><table><thead><tr>'
            yield f"<th scope='col'>key</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        else:
            yield '<p class="soft">The runs have the same settings.</p>'
    for record in records:
        every = settings(record)
        if not every:
            yield f'<p class="soft">{_words(record.name)}: not known.</p>'
            continue
        changed = [each for each in every if each.differs]
        name = f"{_words(record.name)}: " if len(records) > 1 else ""
        if len(records) == 1:
            yield '<p class="soft">What differs from the defaults.</p>'
            yield _table(changed)
        yield f"<details><summary>{name}all {count(len(every), 'key')}</summary>{_table(every)}</details>"
    yield "</section>"


def _table(rows: Sequence[Setting]) -> str:
    body = "".join(
        f'<tr{" class=changed" if each.differs else ""}><th scope="row"><code>{_words(each.path)}</code></th>'
        f"<td><code>{_value(each.value)}</code></td>"
        f"<td class='soft'><code>{'' if each.default is None else _value(each.default)}</code></td></tr>"
        for each in rows
    )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">key</th><th scope="col">here</th>'
        f'<th scope="col">default</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _value(text: str) -> str:
    return escape(text if len(text) <= LONG else f"{text[:LONG]}…")


def _speed(records: Sequence[RunRecord], shown: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield '<section id="speed"><h2>Memory and speed</h2>'
    for record in records:
        if len(records) > 1:
            yield f"<h3>{_words(record.name)}</h3>"
        lines = record.lines("summary")
        facts = []
        if pace := _pace(record):
            values = record.metrics.columns["seconds_per_step"].values
            facts.append(
                f"{pace:.3g} s a step in the median, {min(values):.3g} s at best and {max(values):.3g} s at worst"
            )
        for step, held in record.events.memory[-1:]:
            told = [
                f"{human_bytes(number)} {'on the device' if key == 'device' else 'of host memory'}"
                for key, number in held.items()
            ]
            facts.append(f"at step {step:,} it held {' and '.join(told)}")
        if facts or lines:
            yield '<ul class="lines">' + "".join(f"<li>{_words(line)}</li>" for line in (*facts, *lines)) + "</ul>"
        if not record.events.memory:
            yield '<p class="soft">Its memory is not known.</p>'
    places = "".join(_place(each) for each in shown if each["group"] == SPEED)
    yield f'<div class="figures">{places}</div></section>'


def _next(records: Sequence[RunRecord]) -> Iterator[str]:
    yield '<section id="next"><h2>What to do next</h2>'
    for record in records:
        if len(records) > 1:
            yield f"<h3>{_words(record.name)}</h3>"
        rows = "".join(
            f"<li>{_words(each.text)}" + (f"<pre>{_words(each.command)}</pre>" if each.command else "") + "</li>"
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

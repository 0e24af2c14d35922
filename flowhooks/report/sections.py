"""Write the parts of the page: figures, warnings, images, data, settings, memory and speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from flowhooks.data.findings import count
from flowhooks.data.shards import human_bytes
from flowhooks.documents.privacy import text_without_local_paths
from flowhooks.manifest import VALIDATION
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


def words(text: str) -> str:
    """Return a text for the page, without absolute paths: a page is passed on."""
    return escape(text_without_local_paths(text))


def median_pace(record: RunRecord) -> float | None:
    """Return the seconds of a step in the median; None where none was logged."""
    column = record.metrics.columns.get("seconds_per_step")
    return statistics.median(column.values) if column is not None and len(column.values) else None


def figures_part(shown: Sequence[Mapping[str, Any]], *groups: str) -> Iterator[str]:
    """Yield the places of the figures of these groups; the script draws into them."""
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


def warnings_part(records: Sequence[RunRecord], told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the list of warnings; nothing without any."""
    if not told:
        return
    rows = []
    for i, each in enumerate(told):
        place = f"step {each['step']:,}" if each["step"] else "before the first step"
        name = f"<em>{words(records[each['run']].name)}</em> " if len(records) > 1 else ""
        rows.append(f'<li id="warning-{i + 1}"><b>{place}</b> {name}{escape(each["text"])}</li>')
    yield (
        f'<section id="warnings"><h2>Warnings <span class="soft">marked on the time axis of each curve</span></h2>'
        f'<ol class="warnings">{"".join(rows)}</ol></section>'
    )


def images_part(records: Sequence[RunRecord], drawn: Sequence[DrawnImages]) -> Iterator[str]:
    """Yield what is said of the images, and the controls with which the script shows them."""
    yield '<section id="images"><h2>Images</h2>'
    for record, pictures in zip(records, drawn, strict=True):
        name = f"{words(record.name)}: " if len(records) > 1 else ""
        shown = len(pictures.grids)
        if pictures.of > shown + len(pictures.damaged):
            yield f'<p class="soft">{name}{shown} of {pictures.of} validations, evenly spread.</p>'
        if pictures.damaged:
            yield f'<p class="soft">{name}cannot be read: {escape(", ".join(pictures.damaged))}.</p>'
        left = max((grid.left_out for _, grid in pictures.grids), default=0)
        if left:
            yield f'<p class="soft">{name}{count(left, "image")} of each validation: only in the grids.</p>'
    if not any(pictures.grids for pictures in drawn):
        if any(record.sounds.of for record in records):
            yield '<p class="soft">What was generated is sound, below.</p></section>'
            return
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


def sounds_part(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield players for the sound of the first and the last validation, prompt by prompt; nothing without any."""
    if not any(record.sounds.of for record in records):
        return
    yield '<section id="sounds"><h2>Sound <span class="soft">of the first and the last validation</span></h2>'
    for record in records:
        name = f"{words(record.name)}: " if len(records) > 1 else ""
        if record.sounds.damaged:
            yield f'<p class="soft">{name}cannot be read: {escape(", ".join(record.sounds.damaged))}.</p>'
        if record.sounds.left_out:
            clips = count(record.sounds.left_out, "clip")
            yield f'<p class="soft">{name}{clips} too large for this page: in <code>{VALIDATION}</code>.</p>'
        for clip in record.sounds.clips:
            seed = "" if clip.seed is None else f", seed {clip.seed}"
            label = f"{name}{words(clip.prompt)} <span class='soft'>step {clip.step:,}{seed}</span>"
            yield f'<figure class="sound"><figcaption dir="auto">{label}</figcaption>'
            yield f'<audio controls preload="metadata" src="{clip.url}"></audio></figure>'
    yield "</section>"


def data_part(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield the data audit of each run."""
    yield '<section id="data-audit"><h2>Data</h2>'
    for record in records:
        if len(records) > 1:
            yield f"<h3>{words(record.name)}</h3>"
        counts, lines = record.events.started.get("counts"), record.lines("audit")
        if isinstance(counts, dict) and any(counts.values()):
            facts = "".join(
                f"<li><b>{number:,}</b> {words(str(word))}</li>"
                for word, number in counts.items()
                if isinstance(number, int) and number
            )
            yield f'<ul class="facts">{facts}</ul>'
        if lines:
            yield '<ul class="lines">' + "".join(f"<li>{words(line)}</li>" for line in lines) + "</ul>"
        if not record.events.known:
            yield '<p class="soft">Its audit is not known; <code>flowhooks inspect</code> shows its data.</p>'
        elif not lines:
            yield '<p class="soft">This run trained on no data set: it samples its own.</p>'
    yield "</section>"


def settings_part(records: Sequence[RunRecord]) -> Iterator[str]:
    """Yield the settings: of one run what differs from the defaults, of several what differs between them."""
    yield '<section id="settings"><h2>Settings</h2>'
    if len(records) > 1:
        rows = differing(records)
        head = "".join(f"<th scope='col'>{words(record.name)}</th>" for record in records)
        body = "".join(
            f"<tr><th scope='row'><code>{words(path)}</code></th>"
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
            yield f'<p class="soft">{words(record.name)}: not known.</p>'
            continue
        changed = [each for each in every if each.differs]
        name = f"{words(record.name)}: " if len(records) > 1 else ""
        if len(records) == 1:
            yield '<p class="soft">What differs from the defaults.</p>'
            yield _table(changed)
        yield f"<details><summary>{name}all {count(len(every), 'key')}</summary>{_table(every)}</details>"
    yield "</section>"


def _table(rows: Sequence[Setting]) -> str:
    body = "".join(
        f'<tr{" class=changed" if each.differs else ""}><th scope="row"><code>{words(each.path)}</code></th>'
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


def speed_part(records: Sequence[RunRecord], shown: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield memory and speed, and what each run printed before its first step."""
    yield '<section id="speed"><h2>Memory and speed</h2>'
    for record in records:
        if len(records) > 1:
            yield f"<h3>{words(record.name)}</h3>"
        lines = record.lines("summary")
        facts = []
        if pace := median_pace(record):
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
            yield '<ul class="lines">' + "".join(f"<li>{words(line)}</li>" for line in (*facts, *lines)) + "</ul>"
        if not record.events.memory:
            yield '<p class="soft">Its memory is not known.</p>'
    places = "".join(_place(each) for each in shown if each["group"] == SPEED)
    yield f'<div class="figures">{places}</div></section>'

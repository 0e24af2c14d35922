"""Collect what the script of the page draws: curves, warnings and images of all its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flowhooks.documents.privacy import text_without_local_paths
from flowhooks.report.curves import curve
from flowhooks.report.figures import SPEED, VAL, Figure, figures_for, label
from flowhooks.report.pictures import TINY, DrawnImages, Grid
from flowhooks.report.record import WARNINGS, RunRecord


def figures(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the figures of a page: of one run as they belong together, of several runs one for each metric, with a
    line for each run."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics.columns if _has(record, name)))
    health = {name: short for record in records for name, short in record.health.items()}
    found = []
    for figure, metrics in figures_for(names, health):
        if len(records) == 1:
            labels = {name: label(figure, name, metrics) for name in metrics}
            plain = {VAL + name for name in metrics}
            series = [_series(records[0], 0, figure, name, labels[name], held_out=name in plain) for name in metrics]
            found.append(_figure(figure, figure.title, series))
            continue
        for name in metrics:
            runs = [(i, record) for i, record in enumerate(records) if _has(record, name)]
            series = [_series(record, i, figure, name, record.name) for i, record in runs]
            # A figure of one metric has said enough by its title.
            part = "" if len(metrics) == 1 else f": {label(figure, name, metrics)}"
            found.append(_figure(figure, figure.title + part, series))
    for number, each in enumerate(found):
        each["id"] = f"figure-{number + 1}"
    return found


def warnings(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return what the runs warned of, in the order of their steps."""
    found = [
        {"run": i, "step": step, "text": text_without_local_paths(text)}
        for i, record in enumerate(records)
        for step, text in record.events.warnings[:WARNINGS]
    ]
    return sorted(found, key=lambda each: each["step"])


def images(drawn: Sequence[DrawnImages]) -> dict[str, Any]:
    """Return the images of all runs: what each shows, and for each run its steps and their images.

    An image of one run stands beside those of the others with the same prompt, seed and sampling steps.
    """
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    for pictures in drawn:
        for _, grid in pictures.grids:
            for key, told in zip(_keys(grid), _told(grid), strict=True):
                cells.setdefault(key, told)
    places = list(cells)
    runs = []
    for i, pictures in enumerate(drawn):
        shown = [dict(zip(_keys(grid), grid.images, strict=True)) for _, grid in pictures.grids]
        runs.append(
            {
                "run": i,
                "steps": [step for step, _ in pictures.grids],
                "images": [[each.get(place) for place in places] for each in shown],
            }
        )
    return {"cells": list(cells.values()), "runs": runs}


def _has(record: RunRecord, name: str) -> bool:
    column = record.metrics.columns.get(name)
    return column is not None and len(column.values) > 0


def _figure(figure: Figure, title: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": title,
        "note": figure.note,
        "group": figure.group,
        "reference": figure.reference,
        "log": figure.log,
        "ordered": figure.ordered,
        "series": series,
    }


def _series(
    record: RunRecord, run: int, figure: Figure, name: str, words: str, *, held_out: bool = False
) -> dict[str, Any]:
    """Return one line.

    Args:
        held_out: whether it stands beside the same metric in training, and is dashed.
    """
    column = record.metrics.columns[name]
    smooth = figure.smooth and not name.startswith(VAL) and figure.group != SPEED
    found = curve(column.steps, column.values, smooth=smooth)
    held: dict[str, Any] = {"label": words, "metric": name, "run": run, "held": held_out}
    held |= {"x": found.x, "y": found.y, "count": found.count}
    if found.bins:
        held |= {"low": found.low, "high": found.high, "bins": found.bins}
    elif found.low != found.y:
        held["raw"] = found.low
    return held


def _keys(grid: Grid) -> list[tuple[Any, ...]]:
    return [(cell.prompt, cell.seed, cell.steps) for cell in grid.cells] or [("", -1, 0)]


def _told(grid: Grid) -> Iterator[dict[str, Any]]:
    for i, (width, height) in enumerate(grid.sizes):
        cell = grid.cells[i] if grid.cells else None
        yield {
            "prompt": None if cell is None else cell.prompt,
            "seed": None if cell is None else cell.seed,
            "steps": None if cell is None else cell.steps,
            "width": width,
            "height": height,
            "tiny": max(width, height) <= TINY,
        }

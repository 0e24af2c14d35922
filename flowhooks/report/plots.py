"""Draw each figure of the page as a PNG file with matplotlib."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowhooks.errors import ConfigError, Problem
from flowhooks.files import write_aside
from flowhooks.report import content
from flowhooks.report.record import RunRecord

#: What the files of an earlier call say of themselves.
SOFTWARE = "flowhooks report"


def write_plots(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write a PNG of every figure into a folder, in the order of the page.

    Raises:
        ConfigError: matplotlib is not installed, or a file of that name is not one of an earlier call.
        OSError: the disk refuses.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        message = "--png draws with matplotlib, which is not installed; pip install 'flowhooks[report]'"
        raise ConfigError(Problem(message)) from error
    warned = sorted({each["step"] for each in content.warnings(records)})
    shown = {
        folder / f"{i + 1:02d}_{_slug(each['title'])}.png": each for i, each in enumerate(content.figures(records))
    }
    foreign = [file for file in shown if not _is_ours(file)]
    if foreign:
        message = "this file exists and was not written by `flowhooks report`; name another folder"
        raise ConfigError([Problem(message, str(file)) for file in foreign])
    for file, figure in shown.items():
        canvas = Canvas(figsize=(6.4, 3.4), dpi=160, layout="constrained")
        FigureCanvasAgg(canvas)
        _draw(canvas, figure, warned, several=len(records) > 1)
        save = partial(canvas.savefig, format="png", metadata={"Software": SOFTWARE})
        write_aside(file, save)
    return list(shown)


def _draw(canvas: Any, figure: Mapping[str, Any], warned: Sequence[int], *, several: bool) -> None:
    ink, soft, grid = (_colours()[name] for name in ("ink", "soft", "grid"))
    axes = canvas.add_subplot()
    axes.set_title(figure["title"], loc="left", fontsize=11, fontweight="bold", color=ink, pad=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(grid)
    axes.grid(axis="y", color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=soft, labelsize=8, length=0)
    axes.set_xlabel("step", fontsize=8, color=soft)
    lowest = min(min(line.get("low") or line["y"]) for line in figure["series"])
    highest = max(max(line.get("high") or line["y"]) for line in figure["series"])
    if figure["log"] and lowest > 0 and highest / lowest > 10:
        axes.set_yscale("log")
    elif figure["reference"] is not None:
        axes.axhline(figure["reference"], color=soft, linewidth=0.8, linestyle=(0, (2, 3)))
    ends = []
    for i, line in enumerate(figure["series"]):
        colour, alpha = _paint(figure, line, i, several)
        if "low" in line:
            axes.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.16 * alpha, linewidth=0)
        if "raw" in line:
            axes.plot(line["x"], line["raw"], color=colour, alpha=0.28 * alpha, linewidth=0.7)
        style = "--" if line["held"] else "-"
        marker = "o" if len(line["x"]) < 12 else None
        axes.plot(line["x"], line["y"], style, color=colour, alpha=alpha, linewidth=1.6, marker=marker, markersize=3)
        ends.append((line["x"][-1], line["y"][-1], f"{line['label']} " if len(figure["series"]) > 1 else "", colour))
    for step in warned:
        axes.axvline(step, color=_colours()["warn"], linewidth=0.8, linestyle=(0, (1, 3)))
    _label(axes, ends)


def _label(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the last value of each line beside its end, apart from each other."""
    # The scales are made only when a figure is drawn, or now.
    axes.autoscale_view()
    height = axes.bbox.height / axes.figure.dpi * 72
    placed: list[float] = []
    for x, y, words, colour in sorted(ends, key=lambda end: end[1]):
        at = float(axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1]) * height
        placed.append(max(at, placed[-1] + 11) if placed else at)
        axes.annotate(
            f"{words}{y:.3g}",
            (1.0, at / height),
            xycoords="axes fraction",
            xytext=(6, placed[-1] - at),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour if words else _colours()["ink"],
            annotation_clip=False,
        )


def _paint(figure: Mapping[str, Any], line: Mapping[str, Any], i: int, several: bool) -> tuple[str, float]:
    if several:
        return _colours()[f"r{line['run'] % 6}"], 1.0
    if figure["ordered"]:
        return _colours()["accent"], 0.3 + 0.7 * (i + 1) / len(figure["series"])
    lines = [each["metric"] for each in figure["series"] if not each["held"]]
    name = line["metric"].removeprefix("val/") if line["held"] else line["metric"]
    return _colours()[f"s{(lines.index(name) if name in lines else 0) % 4 + 1}"], 1.0


@cache
def _colours() -> Mapping[str, str]:
    """Return name -> colour of the page in daylight, as its style sheet has them."""
    sheet = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    daylight = sheet.partition("}")[0]
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", daylight))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "figure"


def _is_ours(file: Path) -> bool:
    if not file.exists() and not file.is_symlink():
        return True
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as opened:
        return SOFTWARE.encode() in opened.read(400)

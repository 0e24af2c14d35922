"""``flowhooks demo``: train from nothing a LoRA that stops a pipeline from spilling ink, and print the numbers."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.adapters.names import LORA_FILE
from flowhooks.commands.arguments import add_quiet
from flowhooks.printing import say, say_lines

if TYPE_CHECKING:
    from flowhooks.config import Run

NAME = "demo"
HELP = "train masked Flow-DPO on the embedded digits and show what changed"


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("runs/demo"),
        help="where results are written (default: %(default)s)",
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    return run_demo(args.output, args.progress)


def run_demo(output: Path, progress: bool, rebuild: bool = False) -> int:
    """Build what is missing, train `examples/flow_dpo/digits.json`, and compare 500 images before and after.

    Data, pipeline and judge are kept in the home of flowhooks, the LoRA under `output`; a second call reuses them.

    Args:
        output: folder for the images, the LoRA and the report.
        progress: show bars.
        rebuild: train the LoRA again even if one of this very run exists.

    Returns:
        The exit code, 0.
    """
    from flowhooks.quiet import quiet_libraries

    with quiet_libraries():
        return _run(output, progress, rebuild)


def _run(output: Path, progress: bool, rebuild: bool) -> int:
    from flowhooks.digits.judge import ensure_judge
    from flowhooks.digits.model import ensure_model
    from flowhooks.digits.picture import save_comparison
    from flowhooks.digits.report import (
        FIRST_SEED,
        SAMPLES,
        as_text,
        asked_digits,
        draw,
        load_stock,
        table,
        write_report,
    )
    from flowhooks.digits.scans import ensure_data
    from flowhooks.report import ReportWriter

    began = time.monotonic()
    say("1/5 Digit scans, clean and with ink spilled on them", flush=True)
    data = ensure_data()
    say("2/5 A judge that reads digits and finds blots", flush=True)
    judge = ensure_judge(progress)
    say("3/5 A StableDiffusion3Pipeline that has learned to draw both (minutes, the first time)", flush=True)
    base = ensure_model(progress)
    say("4/5 Masked Flow-DPO", flush=True)
    lora, run = trained_lora(output, base, progress, rebuild)
    say(f"5/5 {SAMPLES} images before and {SAMPLES} after", flush=True)
    digits = asked_digits(SAMPLES)
    drawn_before = draw(load_stock(base), title="Before", progress=progress)
    drawn_after = draw(load_stock(base, lora), title="After", progress=progress)
    before, after = judge.score(drawn_before, digits), judge.score(drawn_after, digits)
    picture = save_comparison(
        drawn_before,
        drawn_after,
        (before, after),
        output / "before_after.png",
        first_seed=FIRST_SEED,
        steps=run.training["max_train_steps"],
    )
    page = ReportWriter(lora).write()
    report = write_report(output, judge, before, after, run.document, page.relative_to(output))
    say()
    say_lines(as_text(table(before, after)).split("\n"))
    say()
    for what, where in (
        ("Pictures", picture),
        ("Page", page),
        ("LoRA", lora / LORA_FILE),
        ("Report", report),
        ("Data", data),
        ("Pipeline", base),
    ):
        say(f"  {what:<10}{where}")
    say()
    say(f"Done in {time.monotonic() - began:.0f} s.")
    return 0


def planned_lora(output: Path, base: Path, overrides: tuple[str, ...], recipe: str) -> tuple[Path, Run]:
    """Return the folder under `output` that belongs only to this recipe of `examples/` under these overrides, and the
    run."""
    from flowhooks.config import load_run
    from flowhooks.digits.model import example

    source = example(recipe)
    written = load_run(source, overrides)
    mark = hashlib.sha256(json.dumps([written.document, base.name], sort_keys=True).encode()).hexdigest()[:8]
    folder = output / f"{recipe.partition('/')[0]}-{mark}"
    return folder, load_run(source, [*overrides, f"output_dir={folder}"])


def trained_lora(
    output: Path,
    base: Path,
    progress: bool,
    rebuild: bool = False,
    overrides: tuple[str, ...] = (),
    recipe: str = "flow_dpo/digits.json",
) -> tuple[Path, Run]:
    """Train the LoRA of a recipe in `examples/`, unless `output` has one of the same run.

    An interrupted run is resumed. Returns the folder and the run.
    """
    from flowhooks.checks.output import LATEST, holds_results
    from flowhooks.train import train

    folder, run = planned_lora(output, base, overrides, recipe)
    if rebuild and folder.exists():
        shutil.rmtree(folder)
    if (folder / LORA_FILE).is_file():
        say(f"    {folder} exists already")
    else:
        train(run, resume=LATEST if holds_results(folder) else None, progress=progress)
    return folder, run

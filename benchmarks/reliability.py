"""Write ``docs/reliability.md`` from what ``benchmarks.faults`` and ``benchmarks.soak`` found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Columns of the table of a long run.
_COLUMNS = ("what", "first", "last", "slope", "reading")
_HEAD = """# Reliability

Written by `python -m benchmarks.faults` and `python -m benchmarks.soak`; do not edit it.

## A run that hangs

A run on which nothing gets done for `training.watchdog_seconds` (default: 1,800; `null` watches nothing) ends, on
all of its processes, with exit code 1 and a message that says at which step, in which line of the code, in which
process, and names the last checkpoint and the command that resumes it. A thread of each process watches. What
counts is every call of a part of the pipeline: a step, a step of a rollout or of a validation image, an entry of
the cache; and checkpoints. A long phase that goes on is none that hangs, nor is a process that waits for another
one that goes on. Loading the pipeline, which may fetch it, is not watched. Time in which the process was stopped or
the machine slept does not count.

With several processes, each hears of the others through the store at which torch's processes met. A process that is
lost ends the others: at once where its connection breaks, as under gloo, else after `watchdog_seconds`; a stopped
one on the same machine is then killed. torch's own limit on a collective, which knows nothing of a long phase in
another process, is set to a day. A call that never returns and lets no other thread of Python run is not found in a
run of one process; the other processes of a larger one find it.

| message | remedy |
|---|---|
| `nothing got done for` (exit 1) | look at what that place reads or waits for; resume, or raise the limit first |
| `is gone: it was killed, or has failed` (exit 1) | see that process' own message; memory may have run out; resume |
| `processes that read batches is gone` (exit 1) | resume, with fewer `training.dataloader_num_workers` |
| `one did not start` (exit 1) | put the tracker right, or leave it out of `logging.trackers` |
"""


def write_page(page: Path, folder: Path) -> None:
    """Write the page from the files in a folder."""
    text = _HEAD
    if (folder / "faults.json").is_file():
        text += _faults(json.loads((folder / "faults.json").read_text(encoding="utf-8")))
    if (folder / "soak.json").is_file():
        text += _soak(json.loads((folder / "soak.json").read_text(encoding="utf-8")))
    page.write_text(text, encoding="utf-8")


def _faults(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    tried, survived = (sum(row[key] for row in rows) for key in ("tried", "survived"))
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(row["command"] for row in rows))
    lines = [
        f"| {row['fault']}{'' if row['whole'] else ' (a part, at random)'} | {row['tried']:,} | {row['survived']:,} | "
        f"{_outcomes(row)} | {_seconds(row)} |"
        for row in rows
    ]
    failed = [f"* {row['name']}: {each['what']}" for row in rows for each in row["failures"]]
    missed = ["", "Not survived:", "", *failed] if failed else []
    where = f"{found['machine']['processor']}, torch {found['machine']['torch']}"
    return f"""
## Faults

{tried:,} faults were tried on short runs on the digits, and {survived:,} survived, on {found["date"]}, on two cores
that other programs shared ({where}), by

{commands}

The whole, 25 kills of each method and every write, is `python -m benchmarks.faults`; what is below is what these
commands ran. Survived: the run, resumed, ends bit for bit as one that nobody disturbed (weights, optimiser, hooks,
random generators, logged metrics); or goes on and ends so. A run that ends by itself does so within 60 s of its start
(where a process is lost: of that), with a message that says what is wrong and what to do. Seconds are those of the run
with the fault, where it was not killed from outside. A full disk is the system's error, returned by the n-th call that
writes and all after it: the calls are wrapped, the program is as it is.

The rows were not all run on one state of the code: a first run found that a dead or stopped process that reads batches
(4 of 4) and a tracker that fails at its start or with images (3 of 5) were not survived, which was mended and run
again. That of a stopped process was judged wrongly once (of 3), where the other one had ended before, and was run again
too.

| fault | tried | survived | how | seconds: median, longest |
|---|---|---|---|---|
{chr(10).join([*lines, *missed])}
"""


def _outcomes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in row["outcomes"].items())


def _seconds(row: Mapping[str, Any]) -> str:
    return "" if row["median_seconds"] is None else f"{row['median_seconds']:g}, {row['longest_seconds']:g}"


def _soak(found: Mapping[str, Any]) -> str:
    lines = [f"| {' | '.join(row[name] for name in _COLUMNS)} |" for row in found["rows"]]
    every = f"{found['checkpointing_steps']:,} ({found['checkpoints_total_limit']} are kept)"
    return f"""
## Long runs

One run of {found["steps"]:,} steps on the digits, on {found["date"]}, in {found["seconds"] / 60:.1f} minutes, by

    {found["command"]}

with metrics logged every {found["log_every_steps"]:,} steps, a checkpoint every {every}, validation images,
{found["holdout"]} held-out samples and a page every {found["every_steps"]:,}, and TensorBoard. A look every
{found["every"]:g} s; the first fifth of the steps is left out,
in which memory is taken for good. The slope is that of a line through the rest, with
its 95 % interval from twenty blocks drawn anew.

| | at the start of the rest | at the end | slope | |
|---|---|---|---|---|
{chr(10).join(lines)}
"""

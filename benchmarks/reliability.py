"""Write ``docs/reliability.md`` from what ``benchmarks.faults`` and ``benchmarks.soak`` found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEAD = """# Reliability

Written by `python -m benchmarks.faults` and `python -m benchmarks.soak`; do not edit it.

## A run that hangs

A run on which nothing gets done for `training.watchdog_seconds` (default: 1,800; `null` watches nothing) ends, on all of its processes, with exit code 1 and a message that says at
which step, in which line of the code, in which process, and names the last checkpoint and the command that resumes it. A thread of each process watches. What counts is every call of a
part of the pipeline: a step, a step of a rollout or of a validation image, an entry of the cache; and checkpoints. A long phase that goes on is none that hangs, nor is a process that waits
for another one that goes on. Loading the pipeline, which may fetch it, is not watched. Time in which the process was stopped or the machine slept does not count.

With several processes, each hears of the others through the store at which torch's processes met. A process that is lost ends the others: at once where its connection breaks, as
under gloo, else after `watchdog_seconds`; a stopped one on the same machine is then killed. torch's own limit on a collective, which knows nothing of a long phase in another process, is set to a day.
A call that never returns and lets no other thread of Python run is not found in a run of one process; the other processes of a larger one find it.

| message | remedy |
|---|---|
| `nothing got done for` (exit 1) | look at what the place that it names reads or waits for, then the command that it names; raise `training.watchdog_seconds` where that was no fault |
| `is gone: it was killed, or has failed` (exit 1) | the message of that process says more, if it left one; the machine may be out of memory. Then the command that it names |
| `processes that read batches is gone` (exit 1) | `--resume latest`, with fewer `training.dataloader_num_workers` |
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
        f"| {row['fault']} | {row['tried']:,} | {row['survived']:,} | {_outcomes(row)} | {_seconds(row)} |"
        for row in rows
    ]
    failed = [f"* {row['name']}: {each['what']}" for row in rows for each in row["failures"]]
    return f"""
## Faults

{tried:,} faults were tried on short runs on the digits, and {survived:,} survived, on {found["date"]}, on two shared cores ({found["machine"]["processor"]}, torch {found["machine"]["torch"]}), by

{commands}

Survived: the run, resumed, ends bit for bit as one that nobody disturbed (weights, optimiser, hooks, random generators, logged metrics); or goes on and ends so without. A run that ends by itself does so
within {60} s of its start (of the loss of a process: since then), with a message that names what is wrong and what to do. Seconds are those of the run with the fault, where it was not killed from outside. A
full disk is an error that the system's calls return, from the n-th write on; the calls are wrapped, the program is as it is.

| fault | tried | survived | how | seconds: median, longest |
|---|---|---|---|---|
{chr(10).join(lines)}
{chr(10).join(["", "Not survived:", "", *failed, ""]) if failed else ""}"""


def _outcomes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in row["outcomes"].items())


def _seconds(row: Mapping[str, Any]) -> str:
    return "" if row["median_seconds"] is None else f"{row['median_seconds']:g}, {row['longest_seconds']:g}"


def _soak(found: Mapping[str, Any]) -> str:
    lines = [
        f"| {row['what']} | {row['first']} | {row['last']} | {row['slope']} | {row['reading']} |"
        for row in found["rows"]
    ]
    return f"""
## Long runs

One run of {found["steps"]:,} steps on the digits, on {found["date"]}, in {found["seconds"] / 60:.1f} minutes, by

    {found["command"]}

with a logged step every {found["log_every_steps"]:,}, a checkpoint every {found["checkpointing_steps"]:,} ({found["checkpoints_total_limit"]} are kept), validation images and {found["holdout"]}
held-out samples every {found["every_steps"]:,}, and a page each time. Measured every {found["every"]:g} s; the first fifth is left out, as caches fill and memory is taken for
good. The slope is that of a line through the rest, with its 95 % interval from twenty blocks of it drawn anew.

| | at the start of the rest | at the end | slope | |
|---|---|---|---|---|
{chr(10).join(lines)}
"""

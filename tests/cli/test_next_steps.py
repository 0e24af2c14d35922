"""Every command that a finished run prints can be pasted into a shell."""

from __future__ import annotations

import shlex

import pytest

from flowhooks.cli import parser
from flowhooks.commands.next_steps import what_next
from flowhooks.config import resolve_run

PROMPTED = {"type": "on_policy_rollout", "prompts": ["drawn 'so'"]}


@pytest.mark.parametrize(
    ("sections", "captions", "prompt"),
    [
        ({"validation": {"prompts": ["it's $HOME"]}}, ["a"], "it's $HOME"),
        ({"hooks": [PROMPTED]}, [], "drawn 'so'"),
        ({}, ["", "-- a dash first"], "-- a dash first"),
        ({}, [], "an image"),
    ],
)
@pytest.mark.parametrize("imports", [False, True])
def test_the_command_for_pictures_parses(sections, captions, prompt, imports, tmp_path):
    folder = tmp_path / "with spaces"
    run = resolve_run({"hooks": [], **sections, "output_dir": str(folder)}, tmp_path / "run.json")
    [line] = [line for line in what_next(run, captions, imports=imports) if "flowhooks " in line]
    program, *argv = shlex.split(line)[1:]
    args = parser().parse_args(argv)
    assert (program, args.model, args.prompt, args.allow_imports) == ("flowhooks", str(folder), [prompt], imports)

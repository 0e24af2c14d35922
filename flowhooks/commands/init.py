"""``flowhooks init``: write the first run for a folder of images and a model."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.commands.arguments import card_size, path
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.config import Run
    from flowhooks.data import Audit
    from flowhooks.starter.draft import Fitted

NAME = "init"
HELP = "look at a folder of images and a model, and write run.json and data.json to begin with"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder of a Diffusers pipeline, or its Hub id")
    parser.add_argument(
        "--data", required=True, type=path, metavar="FOLDER", help="folder of images or videos, or a data set file"
    )
    parser.add_argument("--method", help="method of the run (default: flow_dpo for pairs, kto for labels, else sft)")
    parser.add_argument(
        "--gpu",
        metavar="SIZE",
        type=card_size,
        help="memory of the card, such as 24; the run is made to fit it (default: the smallest NVIDIA GPU here)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the caption of all images, in place of text files")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=path,
        default=Path(),
        help="where run.json and data.json are written (default: here)",
    )


def run(args: Namespace) -> int:
    from flowhooks.checks.machine import cuda_memory
    from flowhooks.reading import user_path
    from flowhooks.starter import draft, refuse_existing, write_draft

    output, data = user_path(args.output), user_path(args.data)
    refuse_existing(output)
    card: int | None = args.gpu or min(cuda_memory(), default=None)

    def fitted(run: Run, audited: Audit) -> Fitted:
        from flowhooks.starter.card import fit_card

        say("counting the memory of an update, a minute or so for a large model", flush=True)
        assert card is not None
        return fit_card(run, audited, card)

    made = draft(
        args.model,
        data,
        args.method,
        prompt=args.prompt,
        output=output,
        fitted=None if card is None else fitted,
    )
    for label, line in made.lines:
        say(f"{label:<10} {line}")
    if card is None:
        say(f"{'card':<10} not known: with --gpu 24 the options are those that fit a card of 24 GiB")
    files = write_draft(made)
    for file in files:
        say(f"{'wrote':<10} {file}")
    written = str(files[0])
    for label, command in (("next", "inspect"), ("", "check"), ("", "train")):
        say(f"{label:<10} {shlex.join(['flowhooks', command, written])}")
    return 0

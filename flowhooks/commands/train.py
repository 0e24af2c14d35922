"""``flowhooks train``: train a run."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from flowhooks.commands.arguments import add_quiet, add_resume, add_run
from flowhooks.commands.next_steps import again, how_to_go_on, what_next
from flowhooks.printing import say

NAME = "train"
HELP = "train a run; also under accelerate launch"


def add(parser: ArgumentParser) -> None:
    add_run(parser)
    add_resume(parser)
    parser.add_argument(
        "--rebuild-cache", action="store_true", help="make the cached latents, masks and texts of this run again"
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    from flowhooks.checks import examine
    from flowhooks.checks.pipeline import model_notices
    from flowhooks.config import load_run, plain

    configured = load_run(args.run, args.overrides, complete=True, allow_imports=args.allow_imports)
    examined = examine(configured, args.resume)
    if args.resume is not None:
        from flowhooks.train.identity import refuse_other_run

        refuse_other_run(configured, examined.audit, args.resume)
    if sentence := plain(configured.hooks):
        say(sentence, flush=True)
    for sentence in model_notices(configured):
        say(sentence, flush=True)
    # Only now: these imports take seconds, and a mistake should be reported at once.
    from flowhooks.train import train

    with how_to_go_on(args, configured):
        result = train(
            configured,
            resume=args.resume,
            progress=args.progress,
            rebuild_cache=args.rebuild_cache,
            examined=examined,
            again=again(args),
        )
    if os.environ.get("RANK", "0") != "0":
        # The first process of the run says it for all.
        return 0
    if result.stopped is not None:
        say(result.stopped)
    say(f"step {result.step:,}; results are in {result.output_dir}")
    for line in what_next(configured, examined.audit.records, imports=args.allow_imports):
        say(line)
    return 0

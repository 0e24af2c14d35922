"""``flowhooks train``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.commands.arguments import add_quiet, add_run

if TYPE_CHECKING:
    from flowhooks.config import Run
    from flowhooks.errors import Problem

NAME = "train"
HELP = "train a run; also under accelerate launch"


def add(parser: ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--resume", metavar="latest|FOLDER", help="go on from a checkpoint of this run")
    parser.add_argument(
        "--rebuild-cache", action="store_true", help="make the cached latents, masks and texts of this run again"
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    from flowhooks.commands.planning import machine_problems, plan_run
    from flowhooks.config import load_run
    from flowhooks.errors import ConfigError

    configured = load_run(args.run, args.overrides, complete=True, allow_imports=args.allow_imports)
    problems = [*machine_problems(configured), *_resume_problems(args.resume)]
    try:
        plan_run(configured, configured.provides, imports=True)
    except ConfigError as error:
        problems += _cause(configured) or error.problems
    if problems:
        raise ConfigError(problems)
    # Only now: the imports behind it take seconds, and a mistake should be told at once.
    from flowhooks.train import train

    result = train(configured, resume=args.resume, progress=args.progress, rebuild_cache=args.rebuild_cache)
    print(f"step {result.step:,}; results are in {result.output_dir}")
    return 0


def _cause(configured: Run) -> Sequence[Problem]:
    """What is wrong with tables that cannot be read, whose columns the plan then lacks."""
    from flowhooks.data import audit
    from flowhooks.errors import ConfigError

    if configured.data is not None and configured.data.unread:
        try:
            audit(configured.data, configured.cache_dir)
        except ConfigError as error:
            return error.problems
    return ()


def _resume_problems(resume: str | None) -> Iterator[Problem]:
    from flowhooks.errors import Problem

    if resume is not None and resume != "latest" and not Path(resume).expanduser().is_dir():
        message = "there is no such checkpoint; give a checkpoint-<step> folder of this run, or `latest`"
        yield Problem(message, resume)

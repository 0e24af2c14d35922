"""``flowhooks report``: show runs as a page."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from flowhooks.commands.arguments import whole_number
from flowhooks.printing import say

NAME = "report"
HELP = "show a run as an HTML page, or compare several on one"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="the output folder of a run; several are compared")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="the page (default: report.html in the folder of the run; compare.html for several)",
    )
    parser.add_argument("--png", metavar="FOLDER", type=Path, help="write each figure there too, as a PNG file")
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on this machine instead, renewed while runs go on"
    )
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=8421,
        help="of --watch; 0 takes any that is free (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    from flowhooks.manifest import REPORT
    from flowhooks.reading import user_path
    from flowhooks.report import write_report

    folders = [user_path(each) for each in args.runs]
    if args.watch:
        return _watch(args, folders)
    file = args.output or (folders[0] / REPORT if len(folders) == 1 else Path("compare.html"))
    records = write_report(folders, file)
    for record in records:
        for notice in record.notices:
            say(f"note       {record.name}: {notice}")
    say(f"page       {file}")
    if args.png is not None:
        from flowhooks.report.plots import write_plots

        say(f"figures    {len(write_plots(records, args.png)):,} in {args.png}")
    return 0


def _watch(args: Namespace, folders: Sequence[Path]) -> int:
    from flowhooks.errors import ConfigError, Problem
    from flowhooks.report.serve import ReportServer

    given = [name for name, value in (("--output", args.output), ("--png", args.png)) if value is not None]
    if given:
        raise ConfigError(
            Problem(f"writes no file, so that {given[0]} has no use; leave one of the two out", "--watch")
        )
    with ReportServer(folders, args.port) as server:
        say(f"page       {server.address}", flush=True)
        say("           renewed while the run goes on; Ctrl-C ends it", flush=True)
        server.serve_forever()
    return 0

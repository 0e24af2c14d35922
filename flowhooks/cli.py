"""Run the command line.

Exit codes: 0 done, 1 failed at run time, 2 configuration or usage, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flowhooks import __version__
from flowhooks.commands import (
    check,
    convert,
    demo,
    env,
    explain,
    export,
    init,
    inspect,
    merge,
    pairs,
    probe,
    push,
    report,
    sample,
    schema,
    train,
)
from flowhooks.errors import ConfigError, FlowhooksError, FlowhooksWarning, Problem, TrainingError
from flowhooks.files import is_full
from flowhooks.printing import one_line, printable, safe_output
from flowhooks.quiet import quiet

COMMANDS = (
    init,
    check,
    explain,
    train,
    report,
    sample,
    inspect,
    pairs,
    convert,
    export,
    merge,
    push,
    schema,
    env,
    demo,
    probe,
)


_CHOICE = re.compile(r"argument (.+?): invalid choice: (['\"])(.*)\2 \(choose from (.*)\)", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(one_line(_without_secrets(_suggested(message))))


def _suggested(message: str) -> str:
    """Add to argparse's complaint about a choice the choice that was perhaps meant."""
    match = _CHOICE.fullmatch(message)
    if match is None:
        return message
    # Imported here, as most commands do not need it.
    from flowhooks.documents.suggest import hint

    what, word, choices = match[1], match[3], [choice.strip(" '\"") for choice in match[4].split(",")]
    if what == "COMMAND":
        return f"there is no command {word[:60]!r}{hint(word, choices) or '; `flowhooks --help` lists them'}"
    return message + hint(word, choices)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their arguments."""
    root = _Parser(prog="flowhooks", description="Training hooks for stock Diffusers flow-matching pipelines.")
    root.add_argument("--version", action="version", version=f"flowhooks {__version__}")
    root.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add(sub)
        # Suppressed, or a command would reset the option given before it.
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="print the traceback of an error"
        )
        sub.set_defaults(run_command=command.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        # Not 0: a script whose command is empty has done nothing.
        parser().print_help(sys.stderr)
        return 2
    args = parser().parse_args(given)
    interrupts: list[int] = []
    try:
        with _signals(interrupts), _plain_warnings(), safe_output(), _libraries(args):
            code = args.run_command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _failed(args, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has closed it; Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except Exception as error:
        # Ctrl-C in the middle of an import can surface as any exception of the half-imported package.
        message, code = _told(error, args) if not interrupts else ("interrupted", 128 + signal.SIGINT)
        return _failed(args, message + _leave(message, given), code)


def _of_folder(problem: Problem) -> Problem:
    """Return a problem with an option of a plain folder, which is no file that an option could be set in, with a way to
    set it."""
    if problem.file is None or not (problem.path or "").startswith("$[") or not Path(problem.file).is_dir():
        return problem
    remedy = f"write a data set file with `flowhooks init --data {shlex.quote(problem.file)} --model ...`, and set "
    option = (problem.path or "").partition("].")[2]
    message = f"{problem.message} ({remedy}{f'`{option}` there' if option else 'it there'})"
    return replace(problem, message=message, path=None)


def _told(error: Exception, args: argparse.Namespace) -> tuple[str, int]:
    """Return the message for an error, and the exit code."""
    if isinstance(error, FlowhooksError):
        # These two have several lines and escape the names in them; in others a further line comes from a library or a
        # name, and must not look like one of ours.
        ours = isinstance(error, (ConfigError, TrainingError))
        if isinstance(error, ConfigError):
            error = type(error)([_of_folder(each) for each in error.problems])
        return str(error) if ours else str(error).replace("\n", "\n  "), error.exit_code
    if isinstance(error, OSError):
        full = is_full(error)
        # While writing, the system does not name the file.
        place = error.filename or (getattr(args, "output", None) if full else None) or "error"
        remedy = "; the disk is full: free some space, then start again" if full else ""
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError):
            reason = "exists already; name another place to write to"
        elif isinstance(error, NotADirectoryError):
            reason = "is below a file, where a folder is expected; name another place"
        return one_line(f"{place}: {reason}{remedy}"), 1
    return f"unexpected {type(error).__name__}: {error}; --debug shows where", 1


def _leave(message: str, given: Sequence[str]) -> str:
    """Return the command that allows what was refused without permission."""
    from flowhooks.documents.imports import FLAG

    if FLAG not in message or FLAG in given:
        return ""
    return f"\nto allow it: flowhooks {shlex.join(given)} {FLAG}"


def _failed(args: argparse.Namespace, message: str, code: int) -> int:
    if args.debug:
        print(printable(_without_secrets(traceback.format_exc())), file=sys.stderr)
    print(printable(_without_secrets(message)), file=sys.stderr)
    return code


def _without_secrets(message: str) -> str:
    """Remove tokens from a message: one given by mistake must not come back on the screen or in a log."""
    # Imported here: the configuration imports jsonschema, which --help does not need.
    from flowhooks.documents.document import redact

    return redact(message)


def _libraries(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Control what libraries print, and show progress bars, theirs and ours, only on a terminal."""
    bars = getattr(args, "progress", True) and sys.stderr.isatty()
    args.progress = bars
    return nullcontext() if args.debug else quiet(bars=bars)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print our own warnings without the line of code that Python adds."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, FlowhooksWarning):
            return f"warning: {one_line(str(message))}\n"
        return printable(usual(message, category, filename, lineno, line))

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _signals(interrupts: list[int]) -> Iterator[None]:
    """Leave through ``finally`` blocks on signals, and record each Ctrl-C in ``interrupts``. Outside the main thread
    Python allows no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: _terminated}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Else it is ignored on purpose, as a shell does for background jobs.
        handlers[signal.SIGINT] = interrupted
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

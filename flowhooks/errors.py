"""Define named errors. The command line prints the message and exits with ``exit_code``; a traceback appears only under
``--debug``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flowhooks.printing import one_line

#: What stands in a message before the command that goes on with a run.
TO_RESUME = "to resume: "


class FlowhooksError(Exception):
    """The base of every error that flowhooks raises on purpose."""

    exit_code = 1


class FlowhooksWarning(UserWarning):
    """Something is allowed but probably not meant; the command line prints the message only."""


@dataclass(frozen=True)
class Problem:
    """Describes one thing that is wrong, with its place.

    Args:
        message: what was found, what was expected, what to do.
        file: the file it was found in, if any.
        path: the JSON path in that file, such as ``$.hooks[1].norm_type``, if any.
    """

    message: str
    file: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        return one_line(": ".join(part for part in (self.file, self.path, self.message) if part))


class ConfigError(FlowhooksError):
    """The configuration or its data cannot be used. Holds every problem found, one per line in the message."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem | str):
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@contextmanager
def in_file(file: str) -> Iterator[None]:
    """Set ``file`` in every problem of the block that names none."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError([replace(problem, file=problem.file or file) for problem in error.problems]) from error


class DataError(ConfigError):
    """A data set is missing, unreadable, or does not pair up."""


class ModelError(FlowhooksError):
    """A pipeline cannot be loaded, or the probe could not learn or verify it."""

    exit_code = 2


class AdapterError(FlowhooksError):
    """An adapter cannot be built, loaded, or does not fit the model."""

    exit_code = 2


class CheckpointError(FlowhooksError):
    """A checkpoint is damaged, missing, or belongs to another run."""


class UnusableCheckpoint(CheckpointError):
    """A checkpoint to resume from is missing, damaged, or of another run; known before weights load."""

    exit_code = 2


class TrainingError(FlowhooksError):
    """Training cannot continue: a loss is not finite, or a self-test failed."""


class RewardError(FlowhooksError):
    """A reward cannot be used: a value is not finite or outside its range, a declared gradient is missing, or a record
    lacks a column that it reads."""


class RewardUnavailable(RewardError):
    """A reward did not answer, and may answer when it is asked again: its server is down, slow or overloaded."""


class RewardFailure(RewardError):
    """A reward failed in a step, on one process or more. All processes raise it together, before the step has changed a
    weight."""


class HubError(FlowhooksError):
    """Publishing to the Hub failed; local files are untouched."""


@contextmanager
def model_errors_at(file: Path, path: str | None) -> Iterator[None]:
    """Prefix a ModelError inside the block with a file and a JSON path; with ``path`` None it stays as it is."""
    try:
        yield
    except ModelError as error:
        if path is None:
            raise
        raise ModelError(f"{file}: {path}: {error}") from error

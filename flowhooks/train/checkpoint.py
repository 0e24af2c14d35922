"""Write checkpoint folders under a temporary name and rename them when complete; a manifest of digests shows whether
one is complete."""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flowhooks import distributed
from flowhooks.checks.output import LATEST
from flowhooks.errors import CheckpointError, FlowhooksError, FlowhooksWarning, UnusableCheckpoint
from flowhooks.files import REFUSALS
from flowhooks.manifest import (
    CHECKPOINT,
    EVENTS,
    FORMAT,
    HISTORY,
    MANIFEST,
    OWN,
    checkpoints_in,
    digest,
    own_digest,
    read_manifest,
    verify,
)
from flowhooks.reading import user_path
from flowhooks.train.agreement import raise_on_all_ranks
from flowhooks.train.codec import packed_state, read_state
from flowhooks.train.files import refused

_PARTIAL = ".checkpoint-{step}.partial"


class Checkpoints:
    """Manages the checkpoints of one output folder.

    Args:
        folder: the run's output folder.
        limit: number of checkpoints that are kept; None keeps all.
        group: of :func:`flowhooks.train.agreement.aside`, where checkpoints are written beside the steps of several
            processes.
    """

    def __init__(self, folder: Path, limit: int | None = None, group: Any = None):
        self.folder = folder
        self.limit = limit
        self.group = group

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def all(self) -> list[Path]:
        """List the folders named like checkpoints, oldest first, complete or not."""
        return checkpoints_in(self.folder)

    def find(self, resume: str) -> Path | None:
        """Return the checkpoint that ``--resume`` names: ``latest`` or a folder; None for ``latest`` if the folder has
        no checkpoint.

        Raises:
            CheckpointError: the named one is missing or damaged, or every one is.
        """
        if resume != LATEST:
            verify(user_path(resume))
            return user_path(resume)
        damaged = []
        for folder in reversed(self.all()):
            try:
                verify(folder)
                return folder
            except CheckpointError as error:
                damaged.append(str(error))
                warnings.warn(f"skipped a damaged checkpoint: {error}", FlowhooksWarning, stacklevel=2)
        if damaged:
            raise UnusableCheckpoint(
                "no checkpoint is complete: " + "; ".join(damaged) + "; start again in another `output_dir`"
            )
        return None

    def go_back(self, source: Path) -> None:
        """Move the checkpoints after ``source``, one of this folder, and the metrics so far into a separate folder.
        From here on, `latest` is what the run writes next. Nothing is deleted.

        Raises:
            CheckpointError: the disk refuses.
        """
        if source.resolve().parent != self.folder.resolve():
            return
        step = _step_of(source.resolve())
        later = [folder for folder in self.all() if _step_of(folder) > step]
        if not later:
            return
        aside = self.folder / f"set-aside-{uuid.uuid4().hex[:6]}"
        try:
            aside.mkdir()
            for name in (HISTORY, EVENTS):
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, aside / name)
            for folder in later:
                folder.rename(aside / folder.name)
        except OSError as error:
            raise CheckpointError(refused(aside, error)) from error
        names = ", ".join(folder.name for folder in later)
        message = f"{self.folder}: going on from {source.name}; what came after it is in {aside.name}: {names}"
        warnings.warn(message, FlowhooksWarning, stacklevel=2)

    def sweep(self) -> None:
        """Remove what a killed process left half-written. Only names that this class writes are removed."""
        for aside in self.folder.glob(_PARTIAL.format(step="*")):
            shutil.rmtree(aside, ignore_errors=True)

    def save(
        self,
        step: int,
        states: Mapping[str, Any],
        own: Mapping[str, Any],
        identity: Mapping[str, Any],
        beside: Callable[[Path], object] | None = None,
    ) -> Path:
        """Write ``checkpoint-<step>``, on all processes together, then remove the oldest ones over the limit.

        Args:
            states: file stem -> state, written by the main process; of sharded tensors each process writes its rows.
            own: state of this process, such as its random generators.
            identity: identity of the run, stored in the manifest.
            beside: called on the main process with the folder, to write more files into it.

        Raises:
            CheckpointError: on every process, when one of them cannot write. Nothing half-written is left and the
                older checkpoints are as they were.
        """
        rank = distributed.rank()
        writers = {stem: partial(_now, state, rank, rank == 0) for stem, state in states.items()}
        return self._write(step, {**writers, f"process_{rank}": partial(_now, own, rank, True)}, identity, beside)

    def taken(
        self,
        step: int,
        states: Mapping[str, Any],
        own: Mapping[str, Any],
        identity: Mapping[str, Any],
        beside: Callable[[Path], object],
    ) -> Callable[[], Path]:
        """Copy states, and return what writes them as :meth:`save` does, later and in any thread, which those of
        several processes call together.

        Args:
            beside: must not read what training changes.

        Raises:
            CheckpointError: a state holds what no checkpoint can; what is returned raises it as :meth:`save` does.
        """
        rank = distributed.rank()
        try:
            writers = {stem: packed_state(state, rank, main=rank == 0) for stem, state in states.items()}
            writers[f"process_{rank}"] = packed_state(own)
        except TypeError as error:
            raise CheckpointError(f"{self.path(step)}: {error}") from error
        return partial(self._write, step, writers, identity, beside)

    def _write(
        self,
        step: int,
        writers: Mapping[str, Callable[[Path], None]],
        identity: Mapping[str, Any],
        beside: Callable[[Path], object] | None,
    ) -> Path:
        final, aside = self.path(step), self.folder / _PARTIAL.format(step=step)
        main = distributed.rank() == 0
        try:
            with raise_on_all_ranks(CheckpointError, self.group):
                if main:
                    shutil.rmtree(aside, ignore_errors=True)
                    _guarded(final, lambda: aside.mkdir(parents=True))
            with raise_on_all_ranks(CheckpointError, self.group):
                for stem, write in writers.items():
                    _guarded(final, partial(write, aside / f"{stem}.safetensors"))
            with raise_on_all_ranks(CheckpointError, self.group):
                if main:
                    if beside is not None:
                        _guarded(final, partial(_unwrapped, beside, aside))
                    _guarded(final, lambda: self._publish(aside, final, step, identity))
        except BaseException:
            if main:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        if main:
            self._prune(final)
        return final

    def _publish(self, aside: Path, final: Path, step: int, identity: Mapping[str, Any]) -> None:
        files = {file.name: {"size": file.stat().st_size, "sha256": digest(file)} for file in sorted(aside.iterdir())}
        manifest = {"format": FORMAT, "step": step, "files": files, "identity": identity}
        manifest[OWN] = own_digest(manifest)
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if final.exists():
            # Damaged, or from before the run resumed at an earlier step: the user may still need it.
            final.rename(final.with_name(f"{final.name}-replaced-{uuid.uuid4().hex[:6]}"))
        aside.rename(final)

    def _prune(self, newest: Path) -> None:
        if self.limit is None:
            return
        ours = [folder for folder in self.all() if folder != newest and _is_ours(folder)]
        for folder in ours[: max(0, len(ours) + 1 - self.limit)]:
            # Renamed first, so that a removal that is cut short does not leave a checkpoint that looks damaged.
            doomed = self.folder / _PARTIAL.format(step=_step_of(folder))
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def read(folder: Path, stem: str) -> Any:
    """Read one state of a verified checkpoint. Raises CheckpointError."""
    return read_state(folder / f"{stem}.safetensors")


def _now(state: Any, rank: int, main: bool, file: Path) -> None:
    packed_state(state, rank, main=main)(file)


def _unwrapped(write: Callable[[Path], object], folder: Path) -> None:
    """Raise errors of the writers of other rooms as CheckpointError, with the message of the disk."""
    try:
        write(folder)
    except FlowhooksError as error:
        if isinstance(error.__cause__, REFUSALS):
            raise error.__cause__ from None
        raise CheckpointError(str(error)) from error


def _guarded(final: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except REFUSALS as error:
        raise CheckpointError(refused(final, error)) from error
    except TypeError as error:
        raise CheckpointError(f"{final}: {error}") from error


def _is_ours(folder: Path) -> bool:
    try:
        return read_manifest(folder).step == _step_of(folder)
    except CheckpointError:
        return False


def _step_of(folder: Path) -> int:
    match = CHECKPOINT.fullmatch(folder.name)
    return int(match[1]) if match else -1

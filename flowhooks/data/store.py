"""Files of tensors named by what they were made from. Written aside and renamed, so a file that exists is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flowhooks.errors import DataError, Problem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ABANDONED_AFTER_SECONDS = 3600


class DamagedEntry(Exception):
    """The entry is there and is no whole safetensors file."""


class Store:
    """Entries under `folder/<kind>/<first two digits>/<key>.safetensors`.

    Several processes may write one entry; each writes the same content and the last rename wins.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, kind: str, key: str) -> Path:
        """Where the entry lies, or would lie."""
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def read(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, None if there is none.

        Raises DamagedEntry for a file cut short or overwritten, DataError for values that are not finite: no
        interruption made those, so they are not silently made again.
        """
        path = self.path(kind, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(Problem(f"cannot be read ({error.strerror})", str(path))) from None
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise DamagedEntry(f"{path} ({error})") from None
        broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
        if broken:
            message = (
                f"holds NaN or infinity in {', '.join(map(repr, broken))}; delete this file, or choose another "
                "`cache_dir`, and it is made again from the image or caption"
            )
            raise DataError(Problem(message, str(path)))
        return tensors

    def write(self, kind: str, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write an entry; `about` goes into its metadata, for people. Raises DataError if the disk refuses it."""
        path = self.path(kind, key)
        partial = self._partial / f"{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"flowhooks": json.dumps(about)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise DataError(Problem(self._refusal(error, len(data)), str(path))) from None

    def sweep(self) -> None:
        """Remove the half-written files of writers that were killed. A live writer's file is younger than an hour."""
        if not self._partial.is_dir():
            return
        for partial in self._partial.iterdir():
            try:
                if time.time() - partial.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                    partial.unlink()
            except FileNotFoundError:
                continue  # another process was quicker

    @property
    def _partial(self) -> Path:
        return self.folder / "partial"

    def _refusal(self, error: OSError, size: int) -> str:
        if error.errno in FULL:
            return (
                f"cannot be written: {error.strerror} ({size:,} bytes); free some space or point `cache_dir` to a disk "
                "that has it, then start again: what is cached so far is kept"
            )
        return f"cannot be written ({error.strerror}); point `cache_dir` to a folder that can be written to"


def entry_key(about: Mapping[str, Any]) -> str:
    """The name of an entry: sha256 of everything that its tensors depend on, hexadecimal."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())

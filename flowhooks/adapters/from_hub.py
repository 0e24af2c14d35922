"""Fetch adapters by their Hub id, safetensors only."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from flowhooks.adapters.names import ADAPTER_FILES, PEFT_CONFIG_FILE
from flowhooks.errors import AdapterError
from flowhooks.reading import user_path

_PART = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"(?P<repo>{_PART}/{_PART})(?P<inside>(?:/{_PART})*)")


def fetch(source: Path | str) -> Path:
    """Return the local path of ``source``: a file, a folder, or a Hub id ``owner/name`` or ``owner/name/file``, of
    which only the adapter and its configuration are downloaded. This disk comes first: if there is a folder ``owner``,
    the rest is a path in it.

    Raises:
        AdapterError: it is neither on this disk nor available from the Hub.
    """
    path = user_path(source)
    if on_disk(source) is not None or (named := in_hub(source)) is None:
        return path
    repository, folder, names = named
    place = f"{folder}/" if folder else ""
    found = _download(str(source), repository, [f"{place}{name}" for name in (*names, PEFT_CONFIG_FILE)]) / folder
    if not any((found / name).is_file() for name in names):
        raise AdapterError(
            f"{source}: is not on this disk, and the Hub repository {repository!r} holds none of {', '.join(names)}"
            f"{f' in {folder!r}' if folder else ''}. Name the file, as in owner/name/file.safetensors."
        )
    return found / names[0] if path.suffix == ".safetensors" else found


def in_hub(source: Path | str) -> tuple[str, str, tuple[str, ...]] | None:
    """Return the Hub repository that a source names, the folder in it, and the names of the files that may be the
    adapter's; None if it is no Hub id."""
    match = _ID.fullmatch(str(source))
    if match is None:
        return None
    inside = match["inside"].strip("/")
    if not inside.endswith(".safetensors"):
        return match["repo"], inside, ADAPTER_FILES
    folder, _, name = inside.rpartition("/")
    return match["repo"], folder, (name,)


def on_disk(source: Path | str) -> Path | None:
    """Return the local path of ``source``, whether it exists or not; None if it must be looked up on the Hub.

    Raises:
        AdapterError: it does not exist, though the folder that it begins with does.
    """
    path = user_path(source)
    match = _ID.fullmatch(str(source))
    # A repository is not named like a weights file: such a name is a missing local file.
    if path.exists() or match is None or (not match["inside"] and path.suffix in (".safetensors", ".bin", ".pt")):
        return path
    if Path(path.parts[0]).is_dir():
        raise AdapterError(
            f"{source}: no such file or folder, though {path.parts[0]!r} is a folder here, so it is not looked for on "
            "the Hub. Correct the path; what it names may not have been trained yet."
        )
    # `find_file` says why a file of another kind is refused; nothing is downloaded.
    return path if match["inside"] and path.suffix and path.suffix != ".safetensors" else None


def _download(source: str, repo: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise AdapterError(
            f"{source}: is not on this disk nor in the Hub's cache, and the Hub cannot be reached (offline, or no "
            "network). Correct the path, or download it once where there is a network."
        ) from error
    except GatedRepoError as error:
        raise AdapterError(
            f"{source}: access to it must be requested on its Hub page first (`hf auth login`)."
        ) from error
    except RepositoryNotFoundError as error:
        raise AdapterError(
            f"{source}: no such file or folder, and no such repository on the Hub, or a private one (`hf auth login`)."
        ) from error
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise AdapterError(
            f"{source}: cannot be fetched from the Hub ({error}). Check the network and try again."
        ) from error

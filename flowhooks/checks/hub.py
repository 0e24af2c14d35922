"""Say what of a Hub repository is on this disk, and what must be fetched. Nothing is downloaded here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

from flowhooks.data.shards import human_bytes

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: Seconds to wait for the Hub: a size is not worth more.
PATIENCE = 4.0
_TEXTS = (".json", ".txt", ".model", ".jinja")


def is_hub_id(name: str) -> bool:
    """Return whether a name is of the form ``owner/name``."""
    return _ID.fullmatch(name) is not None


def is_offline() -> bool:
    """Return whether the Hub's own library is set to use no network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached(repo: str, files: Iterable[str], revision: str | None = None) -> Path | None:
    """Return the folder of a repository's snapshot in the Hub's cache, if it holds one of these files."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in files:
        try:
            found = try_to_load_from_cache(repo, file, revision=revision)
        except HFValidationError:
            return None
        if isinstance(found, str):
            folder = Path(found)
            for _ in Path(file).parts:
                folder = folder.parent
            return folder
    return None


class Unknown(Exception):
    """The Hub has no such repository or revision, or shows it only with a token; the message says which."""


def download_size(repo: str, revision: str | None, variant: str | None) -> int | None:
    """Return the bytes that Diffusers fetches of a pipeline: safetensors weights and text files in the folders of its
    parts.

    None where the Hub does not say within :data:`PATIENCE` seconds.

    Raises:
        Unknown: the Hub answers that it has no such repository or revision.
    """
    answer: list[int | Unknown] = []
    asking = Thread(target=_ask, args=(repo, revision, variant, answer), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if answer and isinstance(answer[0], Unknown):
        raise answer[0]
    return answer[0] if answer and isinstance(answer[0], int) else None


def told_size(repo: str, revision: str | None, variant: str | None) -> str:
    """Return the message about a pipeline that is not in the cache. Raises Unknown as :func:`download_size` does."""
    size = download_size(repo, revision, variant)
    how_much = "the Hub does not answer how much that is" if size is None else f"{human_bytes(size)} in all"
    return f"{repo} is not in the Hub's cache on this disk, so `train` fetches it first ({how_much})"


def _ask(repo: str, revision: str | None, variant: str | None, answer: list[int | Unknown]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        files = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE).siblings or []
    except GatedRepoError:
        answer.append(Unknown(f"access to {repo!r} must be requested on its Hub page, then `hf auth login`"))
    except RepositoryNotFoundError:
        answer.append(Unknown(f"the Hub has no {repo!r}, or a private one; correct the name, or `hf auth login`"))
    except RevisionNotFoundError:
        answer.append(Unknown(f"{repo!r} has no revision {revision!r} on the Hub; correct `model.revision`"))
    except Exception:  # whatever goes wrong, only a size is missing then
        return
    else:
        answer.append(sum(file.size or 0 for file in files if _fetched(file.rfilename, variant, files)))


def _fetched(name: str, variant: str | None, files: Iterable[object]) -> bool:
    folder, _, file = name.rpartition("/")
    if not folder:
        return name in ("model_index.json", "modular_model_index.json")
    if not file.endswith(".safetensors"):
        return file.endswith(_TEXTS)
    varied = {getattr(each, "rfilename", "").rpartition("/")[0] for each in files if _variant_of(each) == variant}
    wanted = variant if variant is not None and folder in varied else None
    return _variant_of(name) == wanted


def _variant_of(file: object) -> str | None:
    """Return the variant in a file name: ``fp16`` for ``unet/model.fp16.safetensors`` and for a part of it,
    ``model.fp16-00001-of-00002.safetensors``."""
    name = file if isinstance(file, str) else str(getattr(file, "rfilename", ""))
    stem = name.rpartition("/")[2].removesuffix(".safetensors")
    return re.sub(r"-\d+-of-\d+$", "", stem).partition(".")[2] or None

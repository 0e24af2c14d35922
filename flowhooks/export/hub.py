"""Publishing a run folder on the Hub: an allow-list of files, from a cleaned copy."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.errors import HubError
from flowhooks.export.privacy import text_without_local_paths, without_local_paths, without_origins
from flowhooks.reading import MAX_TEXT, parse

# Everything else in a run folder (checkpoints, caches, logs) stays at home.
ALLOWED = (
    "README.md",
    "run.json",
    "metrics.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights*.safetensors",
    "pytorch_lycoris_weights.safetensors",
    "flowhooks_modules.safetensors",
    "validation/*.png",
    "pipeline/model_index.json",
    # A Diffusers pipeline's weights, configurations and vocabularies.
    *(f"pipeline/*/*.{ending}" for ending in ("safetensors", "json", "txt", "model", "jinja")),
)


def upload_set(files: Iterable[str]) -> list[str]:
    """Those of the relative paths (with ``/``) that are published, sorted."""
    return sorted(file for file in files if any(_matches(file, pattern) for pattern in ALLOWED))


def _matches(file: str, pattern: str) -> bool:
    # `*` stays inside one folder.
    return file.count("/") == pattern.count("/") and fnmatchcase(file, pattern)


def push(run_dir: Path, repo_id: str, *, private: bool, endpoint: str | None = None) -> str:
    """Create the repository if need be and upload the run's publishable files in one commit. Returns the repository's
    address.

    A copy is uploaded in which absolute paths of this machine are cut to their last part; the run folder is only read.

    Args:
        run_dir: a folder that training wrote.
        repo_id: ``name`` or ``owner/name``.
        private: whether a new repository is private; an existing one stays as it is.
        endpoint: another Hub than the configured one.

    Raises:
        HubError: there is nothing to publish, no token, no network, or the Hub refuses.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise HubError(f"{run_dir}: no such folder. Give the output folder of a finished run.")
    files = upload_set(file.relative_to(run_dir).as_posix() for file in run_dir.rglob("*") if file.is_file())
    if not any(file.endswith(".safetensors") for file in files):
        raise HubError(f"{run_dir}: holds no trained weights to publish. Give the output folder of a finished run.")
    token = get_token()
    if token is None:
        raise HubError(
            "No Hugging Face token found. Log in with `hf auth login` or set HF_TOKEN; nothing was uploaded."
        )
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory(prefix="flowhooks-push-") as staging:
        stage(run_dir, files, Path(staging))
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo.repo_id, folder_path=staging, commit_message="Upload a flowhooks run", allow_patterns=files
            )
        except HfHubHTTPError as error:
            raise HubError(
                f"The Hub refused {repo_id!r} ({_status(error)}). Check that your token may write there (`hf auth "
                f"whoami`); the files in {run_dir} are untouched."
            ) from error
        except HFValidationError as error:
            raise HubError(f"`repo_id` {repo_id!r} is not a valid name: {error}") from error
        except (HTTPError, OSError) as error:
            raise HubError(
                f"Cannot reach the Hub at {api.endpoint} ({error}). Check the network and try again; the files in "
                f"{run_dir} are untouched."
            ) from error
    return str(repo)


def stage(run_dir: Path, files: Iterable[str], staging: Path) -> None:
    """Copy ``files`` and clean the card, JSON documents and safetensors headers of absolute paths in the copies."""
    for name in files:
        source, copy = run_dir / name, staging / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            copy.write_text(text_without_local_paths(source.read_text(encoding="utf-8")), encoding="utf-8")
        elif name.startswith("pipeline/") and name.endswith(".json"):
            copy.write_text(_cleaned(source.read_text(encoding="utf-8"), without_origins), encoding="utf-8")
        elif name.endswith(".json"):
            copy.write_text(_cleaned(source.read_text(encoding="utf-8")), encoding="utf-8")
        elif name.endswith(".safetensors"):
            _stage_weights(source, copy)
        else:
            shutil.copyfile(source, copy)


def _stage_weights(source: Path, copy: Path) -> None:
    with safe_open(source, framework="pt") as handle:
        metadata = dict(handle.metadata() or {})
    cleaned = {key: _cleaned(value) for key, value in metadata.items()}
    if cleaned == metadata:
        shutil.copyfile(source, copy)
    else:
        save_file(load_file(source), copy, metadata=cleaned)


def _cleaned(text: str, clean: Callable[[Any], Any] = without_local_paths) -> str:
    """A JSON text without absolute paths; text that has none as it is."""
    try:
        document = parse(text, most=MAX_TEXT, largest=float("inf"), finite=False)
    except ValueError:
        return without_local_paths(text)
    cleaned = clean(document)
    return text if cleaned == document else json.dumps(cleaned, indent=2, ensure_ascii=False)


def _status(error: HfHubHTTPError) -> str:
    message = error.server_message or str(error).splitlines()[0]
    return f"{error.response.status_code}: {message}" if error.response is not None else message

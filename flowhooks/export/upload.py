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
from safetensors import SafetensorError, safe_open

from flowhooks.adapters.names import LORA_FILE, LYCORIS_FILE, PEFT_CONFIG_FILE, PEFT_FILE
from flowhooks.errors import HubError
from flowhooks.export.hub_errors import FAILURES, Upload
from flowhooks.export.privacy import text_without_local_paths, without_local_paths, without_origins
from flowhooks.manifest import CARD, METRICS, MODULES, PIPELINE, RUN, VALIDATION, damage
from flowhooks.reading import MAX_TEXT, parse

# Everything else in a run folder (checkpoints, caches, logs) stays at home.
ALLOWED = (
    CARD,
    RUN,
    METRICS,
    PEFT_CONFIG_FILE,
    PEFT_FILE,
    LORA_FILE.replace(".", "*."),
    LYCORIS_FILE,
    MODULES,
    f"{VALIDATION}/*.png",
    f"{PIPELINE}/model_index.json",
    # A Diffusers pipeline's weights, configurations and vocabularies.
    *(f"{PIPELINE}/*/*.{ending}" for ending in ("safetensors", "json", "txt", "model", "jinja")),
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
        HubError: there is nothing to publish, no token, no network, the connection is cut, or the Hub refuses; the
            message says how to go on.
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
        try:
            stage(run_dir, files, Path(staging))
        except (OSError, ValueError, SafetensorError) as error:
            raise HubError(
                f"{run_dir}: cannot be copied to a temporary folder to be cleaned ({error}); nothing was uploaded. "
                f"Check the file, and the free space for temporary files."
            ) from error
        begun = False
        try:
            repo = api.create_repo(repo_id, private=private, exist_ok=True)
            begun = True
            api.upload_folder(
                repo_id=repo.repo_id, folder_path=staging, commit_message="Upload a flowhooks run", allow_patterns=files
            )
        except FAILURES as error:
            upload = Upload(run_dir=run_dir, repo_id=repo_id, private=private, endpoint=api.endpoint)
            raise HubError(upload.told(error, begun=begun)) from error
    return str(repo)


def stage(run_dir: Path, files: Iterable[str], staging: Path) -> None:
    """Copy ``files`` and clean the card, JSON documents and safetensors headers of absolute paths in the copies."""
    for name in files:
        source, copy = run_dir / name, staging / name
        if (fault := damage(source)) is not None:
            raise HubError(f"{fault}; nothing was uploaded.")
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
        return
    # Safetensors' own writer orders a header at random; the Hub knows a large file that it has by all its bytes.
    with source.open("rb") as old, copy.open("wb") as new:
        header = parse(old.read(int.from_bytes(old.read(8), "little")), most=MAX_TEXT)
        header["__metadata__"] = {key: cleaned[key] for key in header["__metadata__"]}
        written = json.dumps(header, ensure_ascii=False).encode()
        # Tensors start at a multiple of 8.
        written += b" " * (-len(written) % 8)
        new.write(len(written).to_bytes(8, "little") + written)
        shutil.copyfileobj(old, new)


def _cleaned(text: str, clean: Callable[[Any], Any] = without_local_paths) -> str:
    """A JSON text without absolute paths; text that has none as it is."""
    try:
        document = parse(text, most=MAX_TEXT, largest=float("inf"), finite=False)
    except ValueError:
        return without_local_paths(text)
    cleaned = clean(document)
    return text if cleaned == document else json.dumps(cleaned, indent=2, ensure_ascii=False)

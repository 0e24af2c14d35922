"""Publish a run folder on the Hub: an allow-list of files, from a cleaned copy; and say what to do if the Hub
refuses."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from flowhooks.adapters.names import LORA_FILE, LYCORIS_FILE, PEFT_CONFIG_FILE, PEFT_FILE, no_weights
from flowhooks.documents.privacy import text_without_local_paths, without_local_paths, without_origins
from flowhooks.errors import ConfigError, HubError, Problem
from flowhooks.manifest import CARD, LOADER, METRICS, MODULES, PIPELINE, RUN, VALIDATION, damage
from flowhooks.reading import MAX_TEXT, parse

# Everything else in a run folder (checkpoints, caches, logs) is not published.
ALLOWED = (
    CARD,
    RUN,
    METRICS,
    PEFT_CONFIG_FILE,
    PEFT_FILE,
    LORA_FILE.replace(".", "*."),
    LYCORIS_FILE,
    MODULES,
    LOADER,
    f"{VALIDATION}/*.png",
    f"{PIPELINE}/model_index.json",
    f"{PIPELINE}/modular_model_index.json",
    # A Diffusers pipeline's weights, configurations and vocabularies.
    *(f"{PIPELINE}/*/*.{ending}" for ending in ("safetensors", "json", "txt", "model", "jinja")),
)
#: Exceptions of the Hub's client; RuntimeError for a file that cannot be sent, ValueError for a refused card.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError)
_NOTHING = "{}: holds no trained weights to publish; give the output folder of a finished run"
_TOKEN = "Check that your token may write there (`hf auth whoami`)"
_REMEDIES = {
    401: _TOKEN,
    403: _TOKEN,
    404: "Check the owner's name, and that your token may write there (`hf auth whoami`)",
    409: "Somebody else may be changing the repository; wait until that is done",
    412: "Somebody else may be changing the repository; wait until that is done",
    413: "The upload is larger than it takes; take large images out of `validation/`",
    429: "Wait a few minutes",
}


def upload_set(files: Iterable[str]) -> list[str]:
    """Return those of the relative paths (with ``/``) that are published, sorted."""
    return sorted(file for file in files if any(_matches(file, pattern) for pattern in ALLOWED))


def _matches(file: str, pattern: str) -> bool:
    # `*` matches inside one folder only.
    return file.count("/") == pattern.count("/") and fnmatchcase(file, pattern)


def push(run_dir: Path, repo_id: str, *, private: bool, endpoint: str | None = None) -> str:
    """Create the repository if needed and upload the run's publishable files in one commit. Returns the repository's
    address.

    The uploaded files are copies in which absolute paths of this machine are cut to their last part; the run folder is
    only read.

    Args:
        run_dir: a folder that training wrote.
        repo_id: ``name`` or ``owner/name``.
        private: whether a new repository is private; an existing one stays as it is.
        endpoint: another Hub than the configured one.

    Raises:
        ConfigError: there is nothing to publish, a file of a checkpoint has changed since it was written, or the
            repository's name is no name.
        HubError: no token, no network, the connection is cut, or the Hub refuses; the message says how to continue.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        what = "is a file" if run_dir.exists() else "no such folder"
        raise ConfigError(Problem(f"{what}; give the output folder of a finished run", str(run_dir)))
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"`repo_id` {repo_id!r} is not a valid name: {_line(str(error))}") from None
    files = upload_set(file.relative_to(run_dir).as_posix() for file in run_dir.rglob("*") if file.is_file())
    if not any(file.endswith(".safetensors") for file in files):
        raise ConfigError(no_weights(run_dir) if (run_dir / RUN).is_file() else _NOTHING.format(run_dir))
    token = get_token()
    if token is None:
        raise HubError(
            "No Hugging Face token found. Log in with `hf auth login` or set HF_TOKEN; nothing was uploaded."
        )
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory(prefix="flowhooks-push-") as staging:
        try:
            stage(run_dir, files, Path(staging))
        except (ValueError, SafetensorError) as error:
            raise ConfigError(
                f"{run_dir}: a file in it is damaged ({error}); nothing was uploaded. Copy or download it again"
            ) from error
        except OSError as error:
            raise HubError(
                f"{run_dir}: cannot be copied to a temporary folder to be cleaned ({error}); nothing was uploaded. "
                "Check the free space for temporary files."
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
            raise ConfigError(f"{fault}; nothing was uploaded")
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
    # Safetensors' own writer orders a header at random; the Hub recognises a large file by all its bytes.
    with source.open("rb") as old, copy.open("wb") as new:
        header = parse(old.read(int.from_bytes(old.read(8), "little")), most=MAX_TEXT)
        header["__metadata__"] = {key: cleaned[key] for key in header["__metadata__"]}
        written = json.dumps(header, ensure_ascii=False).encode()
        # Tensors start at a multiple of 8.
        written += b" " * (-len(written) % 8)
        new.write(len(written).to_bytes(8, "little") + written)
        shutil.copyfileobj(old, new)


def _cleaned(text: str, clean: Callable[[Any], Any] = without_local_paths) -> str:
    """Return a JSON text without absolute paths; a text without any is returned as it is."""
    try:
        document = parse(text, most=MAX_TEXT, largest=float("inf"), finite=False)
    except ValueError:
        return without_local_paths(text)
    cleaned = clean(document)
    return text if cleaned == document else json.dumps(cleaned, indent=2, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Describes one call of ``push``.

    Args:
        run_dir: the run folder.
        repo_id: as the user gave it.
        private: whether a new repository is private.
        endpoint: the Hub's address.
    """

    run_dir: Path
    repo_id: str
    private: bool
    endpoint: str

    @property
    def command(self) -> str:
        """Return the command that repeats it."""
        visibility = "--private" if self.private else "--no-private"
        return shlex.join(["flowhooks", "push", str(self.run_dir), "--repo-id", self.repo_id, visibility])

    def told(self, error: BaseException, *, begun: bool) -> str:
        """Return the message for one of `FAILURES`.

        Args:
            begun: whether the repository existed already, so that the failure happened while uploading.
        """
        refusal = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
        untouched = f"the files in {self.run_dir} are untouched"
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError) and refusal is not None:
            return (
                f"The Hub refused the model card {self.run_dir / 'README.md'} ({_line(str(error))}). Nothing was "
                f"uploaded and {untouched}; correct the block between the two `---` at the card's head, then continue "
                f"with `{self.command}`."
            )
        if refusal is not None:
            status = None if refusal.response is None else refusal.response.status_code
            remedy = _REMEDIES.get(status or 0, "Correct what it names")
            if status is not None and status >= 500:
                remedy = "The Hub has a problem (https://status.huggingface.co); wait a little"
            reasons = _line(refusal.server_message or str(refusal).splitlines()[0])
            code = "" if status is None else f"{status}: "
            return (
                f"The Hub refused {self.repo_id!r} ({code}{reasons}). {remedy}, then continue with `{self.command}`; "
                f"{untouched}."
            )
        reason = _line(str(list(_causes(error))[-1]) or type(error).__name__)
        if isinstance(error, ValueError):
            return f"The Hub refused {self.repo_id!r} ({reason}). Continue with `{self.command}`; {untouched}."
        if not begun:
            return (
                f"Cannot reach the Hub at {self.endpoint} ({reason}). Check the network and continue with "
                f"`{self.command}`; {untouched}."
            )
        return (
            f"The connection to the Hub at {self.endpoint} was cut during the upload to {self.repo_id!r} ({reason}). "
            f"Check the network and continue with `{self.command}`: complete large files are not sent again; "
            f"{untouched}."
        )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was explicitly raised from, the first cause last."""
    found: BaseException | None = error
    while found is not None and (isinstance(found, FAILURES) or found is error):
        yield found
        # A client's transport errors are raised from those of the socket, which say less.
        found = None if isinstance(found, HTTPError) else found.__cause__


def _line(text: str) -> str:
    """Return the lines of a text, and the items of its lists, as one line."""
    lines = [line.strip().removeprefix("- ").rstrip(".") for line in text.splitlines() if line.strip()]
    return "; ".join(lines).replace(":; ", ": ")

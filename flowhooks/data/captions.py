"""Read the prompts of samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from flowhooks.data.assets import Asset, why
from flowhooks.data.files import is_text
from flowhooks.data.findings import Findings
from flowhooks.reading import is_utf16

WITHOUT_TEXT = ("filename", "instanceprompt")


class Captions:
    """Collects the captions of one data set and what is wrong with them.

    Args:
        where: JSON path of the problems.
        remedy: what the user can do about missing captions.
    """

    def __init__(self, where: str, remedy: str):
        self.where = where
        self.remedy = remedy
        self.found: dict[str, str] = {}
        self._missing: list[str] = []
        self._empty: list[str] = []
        self._unreadable: list[str] = []

    def read(self, stem: str, text: Asset | None, name: str) -> None:
        """Read a caption from a text file called `name` in messages; None where there is no such file."""
        if text is None:
            self._missing.append(name)
            return
        try:
            self.decode(stem, text.read(), name)
        except OSError as error:
            self.refuse(name, why(error))

    def decode(self, stem: str, data: bytes, name: str) -> None:
        """Read a caption from UTF-8 bytes."""
        if is_utf16(data):
            self.refuse(name, "it is UTF-16")
            return
        try:
            self.take(stem, data.decode("utf-8-sig"), name)
        except UnicodeDecodeError as error:
            self.refuse(name, f"byte {error.start} is {error.object[error.start]:#04x}")

    def take(self, stem: str, value: Any, name: str) -> None:
        """Read a caption from a cell of a table, as text or UTF-8; None where the cell is empty."""
        if value is None:
            self._empty.append(name)
        elif isinstance(value, bytes):
            self.decode(stem, value, name)
        elif not isinstance(value, str):
            self.refuse(name, f"it is a {type(value).__name__}")
        elif not is_text(value):
            byte = ascii(next(each for each in value if not is_text(each)))
            self.refuse(name, f"it holds {byte}")
        elif not value.strip():
            self._empty.append(name)
        else:
            self.found[stem] = value.strip()

    def refuse(self, name: str, reason: str) -> None:
        """Record a caption that cannot be read."""
        self._unreadable.append(f"{name} ({reason})")

    def report(self, found: Findings) -> None:
        """Add the problems to `found`."""
        found.listing(self.where, self._missing, "missing caption files", self.remedy)
        found.listing(self.where, self._empty, "empty captions", self.remedy)
        found.listing(self.where, self._unreadable, "captions that are not UTF-8 text", "save them as UTF-8")


def captions_without_text(
    block: dict[str, Any], path: str, stems: Iterable[str], found: Findings
) -> dict[str, str] | None:
    """Return stem -> caption for the strategies that read no text; None for the others.

    `filename` is the file's name without suffix, underscores as spaces; `instanceprompt` is the block's
    `instance_prompt` for every image.
    """
    match block["caption_strategy"]:
        case "instanceprompt":
            return _instance(block, path, stems, found)
        case "filename":
            return _file_names(path, stems, found)
        case _:
            return None


def _file_names(path: str, stems: Iterable[str], found: Findings) -> dict[str, str]:
    captions = {stem: PurePosixPath(stem).name.replace("_", " ").strip() for stem in stems}
    wordless = [repr(stem) for stem, caption in captions.items() if not caption]
    remedy = "rename them, or choose another `caption_strategy`"
    found.listing(f"{path}.caption_strategy", wordless, "file names that make an empty caption", remedy)
    return {stem: caption for stem, caption in captions.items() if caption}


def _instance(block: dict[str, Any], path: str, stems: Iterable[str], found: Findings) -> dict[str, str]:
    prompt = (block["instance_prompt"] or "").strip()
    if not prompt:
        found.problem(
            f"{path}.instance_prompt",
            "is empty, but `caption_strategy` is 'instanceprompt'; write the prompt here or choose another strategy",
        )
    return dict.fromkeys(stems, prompt)

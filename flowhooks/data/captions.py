"""Where a sample's prompt comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowhooks.data.findings import Findings


def read_captions(block: dict[str, Any], path: str, images: dict[str, Path], found: Findings) -> dict[str, str]:
    """Stem -> caption by the block's `caption_strategy`; problems go to `found`.

    `textfile` reads the UTF-8 text beside the image, `sub/win.txt` for `sub/win.png`; `filename` is the file's name
    without suffix, underscores as spaces; `instanceprompt` is the block's `instance_prompt` for every image.
    """
    match block["caption_strategy"]:
        case "instanceprompt":
            return _instance(block, path, images, found)
        case "filename":
            return {stem: Path(stem).name.replace("_", " ").strip() or stem for stem in images}
        case "textfile":
            return _textfiles(path, images, found)
        case other:
            raise ValueError(f"unknown caption_strategy {other!r}; the schema should have refused it")


def _instance(block: dict[str, Any], path: str, images: dict[str, Path], found: Findings) -> dict[str, str]:
    prompt = (block["instance_prompt"] or "").strip()
    if not prompt:
        found.problem(
            f"{path}.instance_prompt",
            "is empty, but `caption_strategy` is 'instanceprompt'; write the prompt here or choose another strategy",
        )
    return dict.fromkeys(images, prompt)


def _textfiles(path: str, images: dict[str, Path], found: Findings) -> dict[str, str]:
    captions: dict[str, str] = {}
    faults: dict[str, list[str]] = {"missing caption files": [], "empty captions": []}
    unreadable: list[str] = []
    for stem, image in images.items():
        file = image.with_suffix(".txt")
        try:
            caption = file.read_bytes().decode("utf-8-sig").strip()
        except FileNotFoundError:
            faults["missing caption files"].append(f"{stem}.txt")
        except UnicodeDecodeError as error:
            unreadable.append(f"{stem}.txt (byte {error.start} is {error.object[error.start]:#04x})")
        except OSError as error:
            unreadable.append(f"{stem}.txt ({error.strerror})")
        else:
            if caption:
                captions[stem] = caption
            else:
                faults["empty captions"].append(f"{stem}.txt")
    where = f"{path}.caption_strategy"
    remedy = "write the captions, or set `caption_strategy` to 'filename' or 'instanceprompt'"
    for what, names in faults.items():
        found.listing(where, names, what, remedy)
    found.listing(where, unreadable, "captions that are not UTF-8 text", "save them as UTF-8")
    return captions

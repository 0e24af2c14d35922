"""The emoji of two open vendors, 1,911 pictures of the same names each: Noto (Apache-2.0) and Twemoji (CC BY 4.0).

They are fetched from two packages of the npm registry into the home of flowhooks, once, and are never part of the
repository.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flowhooks.digits.scans import WORDS as DIGITS
from flowhooks.files import home, whole
from flowhooks.reading import read_json

VERSION = "16.0.0"
#: Vendor -> the digest that the registry gives for its package.
PACKAGES = {
    "google": "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    "twitter": "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
}
#: Vendor -> what its pictures are called.
STYLES = {"google": "Noto", "twitter": "Twemoji"}
PIXELS = 32
#: Words of a caption, at most.
WORDS = 10


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """Holds one emoji of both vendors.

    Args:
        code: its code points, the stem of its files.
        caption: words of its category, then those of its name.
        category: for example "Food & Drink".
    """

    code: str
    caption: str
    category: str


def ensure_emoji() -> Path:
    """Return the folder that holds a folder of pictures for each vendor and `emoji.json`, fetched first if it does not
    exist: 136 MB are read, 10 MB are kept."""
    target = home() / "emoji" / VERSION
    if not target.is_dir():
        with whole(target) as folder:
            for vendor, digest in PACKAGES.items():
                _unpack(_fetched(vendor, digest), vendor, folder)
    return target


def load_emoji(folder: Path) -> list[Emoji]:
    """Return the emoji of which both vendors have a picture, in the order of their codes."""
    return [
        Emoji(code=Path(each["image"]).stem, caption=_caption(each), category=each["category"])
        for each in sorted(read_json(folder / "emoji.json"), key=lambda each: str(each["image"]))
        if all((folder / vendor / each["image"]).is_file() for vendor in PACKAGES)
    ]


def picture(folder: Path, vendor: str, code: str) -> np.ndarray:
    """Return an emoji on white paper, uint8 `[32, 32, 3]`."""
    drawn = Image.open(folder / vendor / f"{code}.png").convert("RGBA")
    paper = Image.new("RGBA", drawn.size, "white")
    return np.asarray(Image.alpha_composite(paper, drawn).convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX))


def vocabulary(emoji: Sequence[Emoji]) -> list[str]:
    """Return the words of the captions."""
    return sorted({word for each in emoji for word in each.caption.split()})


def _caption(each: dict[str, str]) -> str:
    spelled = re.sub("[0-9]", lambda found: f" {DIGITS[int(found[0])]} ", f"{each['category']} {each['name']}".lower())
    return " ".join(re.findall("[a-z]+", spelled)[:WORDS])


def _fetched(vendor: str, digest: str) -> bytes:
    name = f"emoji-datasource-{vendor}"
    with urllib.request.urlopen(f"https://registry.npmjs.org/{name}/-/{name}-{VERSION}.tgz", timeout=300) as answer:
        data: bytes = answer.read()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != digest:
        raise RuntimeError(f"{name} {VERSION} is not the package that was pinned: its SHA-512 is another")
    return data


def _unpack(data: bytes, vendor: str, folder: Path) -> None:
    (folder / vendor).mkdir()
    pictures = f"package/img/{vendor}/64/"
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix(pictures)
            if name == "package/emoji.json":
                place = folder / "emoji.json"
            elif name != member.name and re.fullmatch(r"[0-9a-f-]+\.png", name):
                place = folder / vendor / name
            else:
                continue
            content = archive.extractfile(member)
            if content is not None:
                place.write_bytes(content.read())

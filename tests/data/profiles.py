"""Small colour profiles, written by hand from the ICC specification."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = Path(__file__).parent / "pictures"


def display_p3() -> bytes:
    with Image.open(PICTURES / "display_p3.png") as image:
        return image.info["icc_profile"]


def grey(gamma: float) -> bytes:
    """Grey whose light is its level to the power of `gamma`."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    return _profile(b"GRAY", b"XYZ ", {b"wtpt": _xyz(0.9642, 1.0, 0.8249), b"kTRC": curve})


def cmyk(corners: np.ndarray) -> bytes:
    """Inks whose sixteen corners, of 0 or 1 of cyan, magenta, yellow and black, have these colours in Lab `[16, 3]`;
    what lies between is linear."""
    same = bytes(range(256))
    lab = np.rint(np.stack([corners[:, 0] * 2.55, corners[:, 1] + 128, corners[:, 2] + 128], 1)).astype(np.uint8)
    matrix = struct.pack(">9i", *(np.eye(3).reshape(-1) * 65536).astype(int))
    table = b"mft1" + struct.pack(">I4B", 0, 4, 3, 2, 0) + matrix + same * 4 + lab.tobytes() + same * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table, b"wtpt": _xyz(0.9642, 1.0, 0.8249)}, b"prtr")


def _xyz(*values: float) -> bytes:
    return b"XYZ " + struct.pack(">I3i", 0, *(round(value * 65536) for value in values))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    at, directory, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", at + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"", 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + _xyz(0.9642, 1.0, 0.8249)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body

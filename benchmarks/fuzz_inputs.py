"""Damaged inputs, drawn from a seed: JSON that is not meant, bytes that are none of what they should be."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

#: What people, and strangers, write in the wrong place.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", " ", "0", "1e-4", "nan", "true", "null", "\x00", "a\x00b", "\ud800", "\x1b[2J", "\u202e"),
    *("n" * 300, "n/" * 3000, "~nosuchuser", "~nosuchuser/a", "~", "..", "/", "/dev/zero", "/dev/null"),
    *("/proc/self/mem", "${HOME}/a", "C:\\new", "no_such_module:Thing", "a:b:c", "a.b", "memory://nowhere/a", "["),
    *("*", "digits:", "digits:nothing", "a\nb", "\ufeff", [], {}, [[]], [{}], [None], {"": {}}, {"type": None}),
    *({"type": []}, {"$ref": "a"}, ["a"] * 3, [1, 1], [0.5, "x", None]),
)
_TOKENS = (
    *(b"{", b"}", b"[", b"]", b",", b",}", b":", b'"', b"'", b"//", b"/*", b"#", b"\\", b"\\u", b"\\ud800", b"NaN"),
    *(b"Infinity", b"1e999", b"9" * 500, b"9" * 5000, b"-", b"0x10", b"True", b"None", b"${HOME}", b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b"\x00", b"\xe9", b"\r", b"\n", b"\t", b"[" * 5000, b'{"a":' * 3000, b"---\n", b"\x1b[2J"),
    *(b"\xff" * 8, b"\x7f" * 8),
)


def bent(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one to three changes somewhere in it."""
    changed = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        changed = _changed(changed, draw)
    return changed


def written(value: Any, draw: random.Random) -> bytes:
    """The value as JSON; in one of four cases the text is then damaged or deeply nested."""
    text = json.dumps(value).encode()
    match draw.randrange(12):
        case 0 | 1:
            return broken(text, draw)
        case 2:
            depth = draw.choice((50, 99, 101, 900, 5000, 50_000))
            return b"[" * depth + text + b"]" * depth
        case 3:
            return text.decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32")))
    return text


def broken(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to four of them, or stretches of them, changed."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + draw.choice(_TOKENS) + data[at:]
            case 2:
                data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
            case 3:
                data = data[:at] + data[at + draw.randint(1, 64) :]
            case 4:
                data = data[:at] + data[max(0, at - draw.randint(1, 200)) :]
            case 5:
                token = draw.choice(_TOKENS)
                data = data[:at] + token + data[at + len(token) :]
            case 6:
                size = draw.randint(1, 8)
                data = data[:at] + draw.randbytes(size) + data[at + size :]
    return data


def safetensors_bent(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file with its header, the JSON inside its metadata, its numbers or its bytes changed."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    match draw.randrange(6):
        case 0:
            return broken(data, draw)
        case 1:
            header = bent(header, draw)
        case 2 | 3:
            header["__metadata__"] = _metadata(header.get("__metadata__", {}), draw)
        case 4:
            name = draw.choice([name for name in header if name != "__metadata__"])
            header[name] = {**header[name], **draw.choice(_TENSORS)}
        case 5:
            name = draw.choice(list(header))
            header[draw.choice((name[:-1], name + ".x", "", "a\x00b", "n" * 300, name.upper()))] = header.pop(name)
            body = broken(body, draw) if draw.random() < 0.5 else body
    try:
        text = json.dumps(header).encode()
    except (TypeError, ValueError):
        return broken(data, draw)
    if draw.random() < 0.1:
        text = written(header, draw)
    return len(text).to_bytes(8, "little") + text + body


_KEYS = ("", "typo", "token", "a\x00b", "\ud800", "\x1b[2J", "k" * 5000)
_DTYPES = ("F8_E4M3", "F8_E5M2", "I8", "BOOL", "I64", "F64", "BF16", "U64", "F4")
_TENSORS = tuple({"dtype": dtype} for dtype in _DTYPES) + (
    {"shape": []}, {"shape": [0]}, {"shape": [2**40, 2**40]}, {"shape": [-1]}, {"data_offsets": [0, 0]},
    {"data_offsets": [0, 2**62]}, {"data_offsets": [10, 2]},
)  # fmt: skip


def _metadata(metadata: dict[str, str], draw: random.Random) -> dict[str, Any]:
    """Its values are JSON in strings; one of them is changed inside."""
    if not metadata or draw.random() < 0.1:
        return {"format": "pt"}
    key = draw.choice(list(metadata))
    try:
        inside = written(bent(json.loads(metadata[key]), draw), draw).decode("utf-8", "replace")
    except ValueError:
        inside = draw.choice(("", "nan", "1e999", "x", "\x00", "9" * 5000))
    return {**metadata, key: inside}


def _changed(value: Any, draw: random.Random) -> Any:
    """One change in the value, at a place drawn from all of its places."""
    places = list(_places(value))
    if not places:
        return draw.choice(VALUES)
    holder, key = draw.choice(places)
    if isinstance(holder, dict):
        match draw.randrange(5):
            case 0:
                del holder[key]
            case 1:
                holder[draw.choice((*_KEYS, f"{key}x"))] = holder[key]
            case _:
                holder[key] = copy.deepcopy(draw.choice(VALUES))
    else:
        match draw.randrange(4):
            case 0:
                del holder[key]
            case 1:
                holder.append(copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, item in value.items():
            yield value, key
            yield from _places(item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield value, i
            yield from _places(item)

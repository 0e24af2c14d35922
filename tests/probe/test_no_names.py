"""No code per family: outside the table of exceptions no room knows a model by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flowhooks

PACKAGE = Path(flowhooks.__file__).parent
#: Rooms that build models (tests, the embedded one), speak other tools' dialects, hold the table, or print an example.
KNOWING = ("testing/", "digits/", "export/", "commands/demo.py", "probe/exceptions.py", "commands/explain.py")
NAMES = re.compile(
    r"Flux|FLUX|Qwen|\bWan\b|Wan(2|Pipe|Trans)|Sana|SANA|SD3|StableDiffusion|Lumina|HiDream|CogView|Kandinsky|LTX|Mochi"
    r"|Hunyuan|Chroma|Bria|Krea|AuraFlow|Z-?Image|Cosmos|E(rnie|RNIE)|Ideogram|PRX|SkyReels|Ovis|LongCat|Nucleus|Motif"
    r"|EasyAnimate|AnyFlow(Pipe|Trans|FAR)"
)


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name[0] != "_"))
def test_no_room_knows_a_model_by_name(room):
    found = [
        f"{file.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for file in sorted((PACKAGE / room).rglob("*.py"))
        if not str(file.relative_to(PACKAGE)).startswith(KNOWING)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if NAMES.search(line)
    ]
    assert found == []

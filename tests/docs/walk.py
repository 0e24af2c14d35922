"""Follow a page as its reader does: write its files, run its commands and its Python, in order, on a tiny pipeline."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest

from flowhooks import cli
from tests.docs import pages
from tests.families import tiny

#: Class that a page loads a pipeline by -> the tiny pipeline that stands for it.
CLASSES: Mapping[str, str] = {
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "FluxKontextPipeline": "flux-kontext",
    "WanPipeline": "wan",
}
_PART = re.compile(
    r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$|^    (?P<command>flowhooks [^\n]+?)(?: {2,}#[^\n]*)?$",
    re.MULTILINE | re.DOTALL,
)


def parts(page: str) -> Iterator[tuple[str, str, str]]:
    """(kind, text, name of the file that the words before it name) of blocks and commands, in order."""
    text = pages.read(page)
    end = 0
    for match in _PART.finditer(text):
        named = re.findall(r"`([\w/.-]+\.json)`", text[end : match.start()])
        end = match.end()
        kind = match["kind"] if match["command"] is None else "command"
        yield kind, match["text"] or match["command"], named[-1] if named else ""


def small(document: Any, model: Path) -> Any:
    """A run or a data set of a page, at the size of a tiny pipeline: the same keys, with less of everything."""
    if isinstance(document, list):
        # Buckets begin at 64 pixels, which a tiny pipeline does not make.
        square = [{key: value for key, value in block.items() if key != "aspect"} for block in document]
        return [{**block, "resolution": 16} if "resolution" in block else block for block in square]
    training, validation = document["training"], document["validation"]
    counts = validation.get("num_inference_steps", 2)
    return {
        **document,
        "model": {
            "pretrained_model_name_or_path": str(model),
            "pipeline_arguments": {"max_sequence_length": 8},
            "gradient_checkpointing": document["model"].get("gradient_checkpointing", False),
        },
        "training": {
            **training,
            "max_train_steps": 2,
            "checkpointing_steps": 1,
            "gradient_accumulation_steps": 1,
            "mixed_precision": "no",
        },
        "validation": {
            **validation,
            "every_steps": 2,
            "height": 16,
            "width": 16,
            "num_inference_steps": [1, 2] if isinstance(counts, list) else 1,
        },
        "logging": {"trackers": []},
        "cache_dir": "cache",
    }


def small_command(line: str, model: Path) -> list[str]:
    """The words of a command line after ``flowhooks``, for the tiny model and its two steps."""
    words = shlex.split(line)[1:]
    words = [re.sub(r"^[\w-]+/[\w.-]*(?:stable-diffusion|FLUX|Qwen|Wan)[\w.-]*$", str(model), word) for word in words]
    words = [re.sub(r"checkpoint-\d+", "checkpoint-1", word) for word in words]
    if "--steps" in words:
        at = words.index("--steps") + 1
        words[at] = ",".join(str(n) for n in range(1, 1 + len(words[at].split(","))))
    if words[:2] == ["pairs", "make"]:
        words += ["--set", "resolution=16"]
    return words


def real_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``from_pretrained`` of the classes that pages load give the tiny pipeline of that class, on the CPU."""
    for name, short in CLASSES.items():
        given = classmethod(lambda cls, *_, short=short, **__: tiny(short))
        monkeypatch.setattr(getattr(diffusers, name), "from_pretrained", given)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", lambda self, *_, **__: self)


def follow(page: str, model: Path, before: Mapping[str, Callable[[], None]], monkeypatch: pytest.MonkeyPatch) -> int:
    """Follow a page in the working directory. Returns how many of its parts were run.

    Args:
        model: folder of the tiny pipeline that its runs train.
        before: word of a command -> what the reader does before it.
    """
    real_calls(monkeypatch)
    count = 0
    for kind, text, name in parts(page):
        if kind == "json":
            assert name, f"{page}: the words before a file say its name, in code"
            Path(name).write_text(json.dumps(small(json.loads(text), model)), encoding="utf-8")
        elif kind == "python":
            exec(compile(text, page, "exec"), {"__name__": "docs"})  # our own page
        elif kind == "command":
            words = small_command(text, model)
            before.get(words[0], lambda: None)()
            assert cli.main(words) == 0, f"{page}: {text}"
        else:
            continue
        count += 1
    return count

"""Sample the same images from a pipeline before and after, and report the judge's measurements as a table, an image,
Markdown and JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from flowhooks.adapters.names import LORA_FILE
from flowhooks.digits.judge import Judge, Score
from flowhooks.digits.scans import caption
from flowhooks.files import write_aside
from flowhooks.printing import progress_bar

SAMPLES, STEPS, FIRST_SEED, BATCH = 500, 20, 10_000, 100
_ROWS = (
    ("blot rate", "blot_rate", "{:.1%}"),
    ("digit accuracy", "digit_accuracy", "{:.1%}"),
    ("Fréchet", "frechet", "{:.1f}"),
)


def load_stock(folder: Path, lora: Path | None = None) -> StableDiffusion3Pipeline:
    """Load the pipeline as any Diffusers user does, without flowhooks.

    Args:
        lora: the folder of a `pytorch_lora_weights.safetensors`.
    """
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    if lora is not None:
        pipe.load_lora_weights(lora, weight_name=LORA_FILE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked_digits(count: int) -> torch.Tensor:
    """Return the digits `[count]` of the prompts: 0 to 9, over and over."""
    return torch.arange(count) % 10


@torch.no_grad()
def draw(
    pipe: Any,
    count: int = SAMPLES,
    *,
    title: str = "Sampling",
    progress: bool | None = None,
    first_seed: int = FIRST_SEED,
    steps: int = STEPS,
    sigmas: Sequence[float] | None = None,
) -> torch.Tensor:
    """Generate `count` images `[count, 3, H, W]` in [-1, 1]; image i starts from seed `first_seed + i` in any batch.
    `sigmas`, unshifted, take the place of `steps`."""
    times: dict[str, Any] = {"num_inference_steps": steps} if sigmas is None else {"sigmas": list(sigmas)}
    digits = asked_digits(count).tolist()
    parts = []
    with progress_bar(title, count, progress) as advance:
        for start in range(0, count, BATCH):
            chosen = range(start, min(start + BATCH, count))
            parts.append(
                pipe(
                    prompt=[caption(digits[i]) for i in chosen],
                    generator=[torch.Generator().manual_seed(first_seed + i) for i in chosen],
                    guidance_scale=1.0,
                    output_type="pt",
                    **times,
                ).images
            )
            advance(len(chosen))
    return torch.cat(parts).float().cpu() * 2 - 1


def machine() -> dict[str, Any]:
    """Describe the machine on which numbers were measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(before: Score, after: Score) -> list[tuple[str, str, str]]:
    """Return rows of name, before and after, as they are shown."""
    return [
        (name, form.format(getattr(before, field)), form.format(getattr(after, field))) for name, field, form in _ROWS
    ]


def as_text(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return the rows for a terminal."""
    lines = [("", "before", "after"), *rows]
    return "\n".join(f"  {name:<16}{left:>10}{right:>10}" for name, left, right in lines)


def write_report(folder: Path, judge: Judge, before: Score, after: Score, run: Mapping[str, Any], page: Path) -> Path:
    """Write `report.md` for people and `report.json` for programs into `folder`; returns the first.

    Args:
        page: the page of the run.
    """
    facts = {"before": asdict(before), "after": asdict(after), "judge_held_out": judge.held_out, "machine": machine()}
    sampling = {"count": before.count, "first_seed": FIRST_SEED, "steps": STEPS, "guidance_scale": 1.0}
    _write(folder / "report.json", json.dumps({**facts, "sampling": sampling, "run": run}, indent=2) + "\n")
    rows = "\n".join(f"| {name} | {left} | {right} |" for name, left, right in table(before, after))
    held = judge.held_out
    text = f"""# Masked Flow-DPO on the embedded digits

|  | before | after |
| --- | --- | --- |
{rows}

{before.count} images each, from the same prompts and seeds ({FIRST_SEED} and up), {STEPS} steps, no guidance.
"Before" is the pretrained pipeline, "after" the same with the trained LoRA loaded by stock `load_lora_weights`.

The judge is a small network trained on real scans only. On {held["pairs"]:.0f} pairs it never saw it finds blots with
{held["blot_accuracy"]:.1%} accuracy and reads {held["digit_accuracy_clean"]:.1%} of the clean digits,
{held["digit_accuracy_blotted"]:.1%} of the blotted ones. The Fréchet distance is between its features of the images
and of all clean scans; at {before.count} images it is biased upwards, alike on both sides.

![before and after](before_after.png)

`{page}` shows the run: its curves, warnings, images and settings.

`report.json` beside this file has the numbers, the machine and the whole run.
"""
    return _write(folder / "report.md", text)


def _write(file: Path, text: str) -> Path:
    return write_aside(file, lambda aside: aside.write_text(text, encoding="utf-8"))

"""The same pictures from a pipeline before and after, and what the judge says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from flowhooks.adapters.names import LORA_FILE
from flowhooks.digits.scans import caption
from flowhooks.printing import progress_bar

SAMPLES, STEPS, FIRST_SEED, BATCH = 500, 20, 10_000, 100


def load_stock(folder: Path, lora: Path | None = None) -> StableDiffusion3Pipeline:
    """The pipeline as any Diffusers user loads it, with nothing of flowhooks in it.

    Args:
        lora: the folder of a `pytorch_lora_weights.safetensors`.
    """
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    if lora is not None:
        pipe.load_lora_weights(lora, weight_name=LORA_FILE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked_digits(count: int) -> torch.Tensor:
    """The digits `[count]` that pictures are asked to show: 0 to 9, over and over."""
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
) -> torch.Tensor:
    """`count` pictures `[count, 3, H, W]` in [-1, 1]; picture i starts from seed `first_seed + i` in any batch."""
    digits = asked_digits(count).tolist()
    parts = []
    with progress_bar(title, count, progress) as advance:
        for start in range(0, count, BATCH):
            chosen = range(start, min(start + BATCH, count))
            parts.append(
                pipe(
                    prompt=[caption(digits[i]) for i in chosen],
                    generator=[torch.Generator().manual_seed(first_seed + i) for i in chosen],
                    num_inference_steps=steps,
                    guidance_scale=1.0,
                    output_type="pt",
                ).images
            )
            advance(len(chosen))
    return torch.cat(parts).float().cpu() * 2 - 1

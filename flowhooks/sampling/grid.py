"""Pictures side by side, and the command ``flowhooks sample``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flowhooks.errors import ConfigError, Problem

GAP = 2


def picture_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, on white, each cell the size of the largest.

    Raises:
        ValueError: no pictures, or no columns.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a grid needs at least one picture and one column, got {len(pictures)} and {columns}")
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture.convert("RGB"), (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid


def sample_command(args: Namespace) -> int:
    """Draw pictures and save them.

    Args:
        args: ``model`` (a run's output folder, or whatever ``model.pretrained_model_name_or_path`` takes), ``prompt``
            (a list), ``negative_prompt``, ``lora`` (file, folder or None), ``steps``, ``guidance_scale``, ``seed``,
            ``num_images`` per prompt, ``height``, ``width``, ``dtype``, ``output``: a folder for the grid and every
            picture, or a ``.png`` for the grid alone.

    Raises:
        ModelError, AdapterError: the model or the LoRA cannot be loaded.
        ConfigError: an output that cannot be written.
    """
    from flowhooks.sampling.images import sample_images
    from flowhooks.sampling.restore import restore_pipeline

    pipe, arguments = restore_pipeline(args.model, args.lora, args.dtype)
    pictures = sample_images(
        pipe,
        args.prompt,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        negative_prompt=args.negative_prompt,
        seed=args.seed,
        num_images_per_prompt=args.num_images,
        height=args.height,
        width=args.width,
        arguments=arguments,
    )
    grid = picture_grid(pictures, columns=args.num_images if args.num_images > 1 else min(4, len(args.prompt)))
    print(f"Wrote {_save(pictures, grid, args.num_images, Path(args.output))}")
    return 0


def _save(pictures: Sequence[Image.Image], grid: Image.Image, each: int, output: Path) -> Path:
    files = [(output, grid)]
    if output.suffix.lower() != ".png":
        files = [(output / f"prompt_{i // each:03d}_{i % each:02d}.png", picture) for i, picture in enumerate(pictures)]
        files.append((output / "grid.png", grid))
    try:
        for file, picture in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file)
    except OSError as error:
        raise ConfigError(Problem(f"cannot be written ({error}); choose another --output", str(output))) from error
    return output

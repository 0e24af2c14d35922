"""Execute ``flowhooks sample`` once its arguments are checked: load, sample, save."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowhooks.arguments import OWN_TEXTS, as_own
from flowhooks.data.given_images import open_images
from flowhooks.errors import ConfigError, ModelError, Problem
from flowhooks.printing import say
from flowhooks.probe import probe
from flowhooks.probe.guidance import SCALE, scales
from flowhooks.probe.references import own_arguments, picture_argument, picture_arguments
from flowhooks.restore import restore_pipeline
from flowhooks.sampling.flow_map_steps import scheduled, stock_of
from flowhooks.sampling.images import picture_grid, sample_images
from flowhooks.sampling.outputs import GRID, PICTURE, is_picture, save_dataset
from flowhooks.sampling.sound import FORMATS, makes_sound, rate_of, sample_sound, write_sound

#: A list of images, or of clips of sound, for each step count.
Pictures = list[list[Any]]


def sample_command(args: Namespace) -> int:
    """Generate images, or clips of sound, and save them.

    With several step counts the grid has a column for each, and for every image a row of the base above a row of the
    trained model, both under the scheduler that the latter needs.

    Args:
        args: ``model`` (a run's output folder, or whatever ``model.pretrained_model_name_or_path`` takes), ``prompt``
            (a list), ``given`` (the references that each names, where they are of a file), ``image`` (a list of files
            for all prompts, or None), ``text`` (a list for all prompts, or None), ``negative_prompt``, ``lora`` (file,
            folder or None),
            ``adapter_below`` (the sigma of its gate, or None for what its file says), ``steps`` (a list),
            ``guidance_scale``, ``seed``, ``num_images`` per prompt,
            ``height``, ``width``, ``duration``, ``dtype``, ``offload``, ``allow_imports``; ``output``: a folder for the
            grid and every image, or a ``.png`` for the grid alone, as
            :func:`~flowhooks.sampling.outputs.free_output` gave it; of sound, a folder, or the file of one clip;
            ``save_dataset``: a new folder for a data set of the images, in place of all that, or None.

    Raises:
        ModelError, AdapterError: the model or the LoRA cannot be loaded.
        ConfigError: an output cannot be written.
    """
    choices = {"allow_imports": args.allow_imports, "offload": args.offload}
    restored = restore_pipeline(args.model, args.lora, args.dtype, args.adapter_below, **choices)
    own = restored.pipe.scheduler
    rate = rate_of(restored.pipe) if makes_sound(restored.pipe) else None
    with restored.turns():
        scale = SCALE if args.guidance_scale is None else _scale_argument(restored.pipe, restored.arguments)
        with restored.trained() as pipe:
            scheduler = stock_of(pipe.scheduler)
            rows = [_drawn(pipe, restored.arguments, scale, args)]
        if len(args.steps) > 1 and (restored.adapter is not None or restored.modules is not None):
            with scheduled(pipe, scheduler):
                rows.insert(0, _drawn(pipe, restored.arguments, scale, args))
    if restored.below is not None:
        say(f"The adapter is off in steps that start above sigma {restored.below:g}")
    if type(scheduler) is not type(own) or own.config.get("stochastic_sampling"):
        say(f"Sampled with a {type(scheduler).__name__}: the pipeline's {type(own).__name__} cannot sample flow maps")
    if args.save_dataset is not None:
        captions = [prompt for prompt in args.prompt for _ in range(args.num_images)]
        say(f"Wrote {save_dataset(rows[-1][0], captions, Path(args.save_dataset), rate)}")
        return 0
    if rate is not None:
        say(f"Wrote {_save_sound(_named(rows, args.steps, args.num_images, '.wav'), rate, Path(args.output))}")
        return 0
    named = _named(rows, args.steps, args.num_images, ".png")
    if len(args.steps) > 1:
        # Image by image, the base's row above the trained one's.
        cells = [row[k][i] for i in range(len(rows[-1][0])) for row in rows for k in range(len(args.steps))]
        grid = picture_grid(cells, columns=len(args.steps))
    else:
        columns = args.num_images if args.num_images > 1 else min(4, len(args.prompt))
        grid = picture_grid(rows[-1][0], columns=columns)
    say(f"Wrote {_save(named, grid, Path(args.output))}")
    return 0


def _drawn(pipe: Any, arguments: Mapping[str, Any], scale: str, args: Namespace) -> Pictures:
    """Return the images at every step count."""
    shown = _shown(pipe, args)
    same = {
        "guidance_scale": args.guidance_scale,
        "scale_argument": scale,
        "negative_prompt": args.negative_prompt,
        "seed": args.seed,
        "num_images_per_prompt": args.num_images,
    }
    if makes_sound(pipe):
        given = {**arguments, **_texts(pipe, args.text or ())}
        sound = partial(sample_sound, pipe, args.prompt, duration=args.duration, arguments=given, **same)
        return [sound(num_inference_steps=steps) for steps in args.steps]
    size = {"height": args.height, "width": args.width}
    images = partial(sample_images, pipe, args.prompt, images=shown, arguments=arguments, **size, **same)
    return [images(num_inference_steps=steps) for steps in args.steps]


def _shown(pipe: Any, args: Namespace) -> list[dict[str, Any]]:
    """Return for each prompt pipeline argument -> image or images: those that its row names, else those of all."""
    of_all = _references(pipe, args.image or ())
    given = args.given or [None] * len(args.prompt)
    argument = picture_argument(pipe) if any(each is not None for each in given) else ""
    return [of_all if each is None else open_images(each, argument, "--prompts") for each in given]


def _references(pipe: Any, written: Sequence[str]) -> dict[str, Any]:
    """Return pipeline argument -> image or images, from ``file`` and ``argument=file``."""
    if not written:
        return {}
    known = picture_arguments(pipe)
    found: dict[str, list[str]] = {}
    for each in written:
        name, _, file = each.partition("=")
        argument, path = (name, file) if name in known else (picture_argument(pipe), each)
        found.setdefault(argument, []).append(path)
    return open_images(found, "")


def _texts(pipe: Any, written: Sequence[str]) -> dict[str, str | int]:
    """Return pipeline argument -> text, or number, from ``argument=text``."""
    taken = [name for name in own_arguments(pipe) if name in OWN_TEXTS]
    found: dict[str, str | int] = {}
    for each in written:
        name, equals, text = each.partition("=")
        if not equals or name not in taken:
            known = ", ".join(taken) or "none"
            raise ConfigError(Problem(f"{each!r} names no text that the pipeline takes; it takes {known}", "--text"))
        try:
            found[name] = as_own(name, text)
        except ValueError as fault:
            raise ConfigError(Problem(f"{name}: {fault}", "--text")) from None
    return found


def _scale_argument(pipe: Any, arguments: Mapping[str, Any]) -> str:
    """Return the name of the guidance argument. A pipeline with several candidates is run to learn it."""
    if len(scales(pipe)) < 2:
        return SCALE
    try:
        return probe(pipe, arguments=arguments).contract.scale
    except ModelError:
        # One that cannot be learned is sampled all the same.
        return SCALE


def _named(rows: Sequence[Pictures], steps: Sequence[int], each: int, suffix: str) -> dict[str, Any]:
    """Return file name -> image or clip; step count and side are in the name where there are several."""
    found = {}
    for side, row in zip(("base", "trained") if len(rows) > 1 else ("",), rows, strict=True):
        for count, pictures in zip(steps, row, strict=True):
            for i, picture in enumerate(pictures):
                parts = [f"{PICTURE}{i // each:03d}_{i % each:02d}", f"steps_{count}" if len(row) > 1 else "", side]
                found["_".join(part for part in parts if part) + suffix] = picture
    return found


def _save_sound(clips: Mapping[str, np.ndarray], rate: int, output: Path) -> Path:
    files = {output / name: clip for name, clip in clips.items()}
    if output.suffix.lower() in FORMATS:
        if len(clips) > 1:
            message = f"is one file, and {len(clips)} clips were asked for; name a folder"
            raise ConfigError(Problem(message, str(output), "--output"))
        files = dict.fromkeys([output], next(iter(clips.values())))
    try:
        for file, clip in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_sound(file, clip, rate)
    except OSError as error:
        raise ConfigError(Problem(f"cannot be written ({error}); choose another --output", str(output))) from error
    return output


def _save(pictures: Mapping[str, Image.Image], grid: Image.Image, output: Path) -> Path:
    files = [(output, grid)]
    if not is_picture(output):
        files = [(output / name, picture) for name, picture in pictures.items()]
        files.append((output / GRID, grid))
    try:
        for file, picture in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Never overwrite a file that appeared since the command began.
            with file.open("xb") as stream:
                picture.save(stream, format="PNG")
    except OSError as error:
        raise ConfigError(Problem(f"cannot be written ({error}); choose another --output", str(output))) from error
    return output

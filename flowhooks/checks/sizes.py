"""Check that a pipeline accepts the sizes of a run, as far as its configuration says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowhooks.checks.library import call_arguments
from flowhooks.checks.pipeline import NETWORKS, pipeline_folder, read_index
from flowhooks.config import Run
from flowhooks.data import Audit
from flowhooks.data.findings import Findings
from flowhooks.data.sizing import SizeInPixels, Sizing, check_sizing
from flowhooks.documents.document import read_settings
from flowhooks.errors import ConfigError, Problem

FRAMES = ("num_frames", "frames")
#: Width and height, and latent channels and pixels along an edge for one latent, as many models have them.
EXAMPLE_SIZE, EXAMPLE_VAE = (1024, 1024), (16, 8)
Settings = Mapping[str, Any]


def _scale(vae: Settings) -> int | None:
    """Return the pixels along an edge that become one latent, as far as a VAE's configuration says; None where it does
    not."""
    if "scale_factor_spatial" in vae:
        return int(vae["scale_factor_spatial"])
    if "temperal_downsample" in vae:
        return 2 ** len(vae["temperal_downsample"])
    if set(vae.get("down_block_types", ())) == {"DownEncoderBlock2D"}:
        return 2 ** (len(vae["block_out_channels"]) - 1)
    return None


def latents_of(run: Run) -> tuple[int, str]:
    """Return the number of elements of one sample's latents, and a description of the images that it holds for.
    Whatever neither the data set file nor a VAE on this disk says is an example."""
    stated, vae = _stated_size(run), _vae(run)
    width, height = stated or EXAMPLE_SIZE
    channels, scale = vae or EXAMPLE_VAE
    whose = "images of this run" if stated else "images, for example"
    said = f"latents of {channels} channels at 1/{scale} of the size"
    model = "" if vae else f" with {said}, for example" if stated else f" with {said}"
    return channels * (height // scale) * (width // scale), f"{width}x{height} {whose}{model}"


def _stated_size(run: Run) -> SizeInPixels | None:
    """Return width and height that the first set of images states; those of a square image where sizes follow the
    aspect."""
    blocks = () if run.data is None else run.data.blocks
    for block in blocks:
        if block["dataset_type"] == "image" and not block["disabled"]:
            if block["resolution"] is None or block["num_frames"] > 1:
                return None
            sound = check_sizing(block, "$", Findings(run.source))
            return Sizing.of(block).target(*EXAMPLE_SIZE) if sound else None
    return None


def _vae(run: Run) -> tuple[int, int] | None:
    """Return channels of a latent, and the pixels along an edge that become one."""
    folder = pipeline_folder(run.model)
    try:
        settings = None if folder is None else read_settings(folder / "vae" / "config.json")
        scale = None if settings is None else _scale(settings)
        channels = None if settings is None else settings.get("latent_channels") or settings.get("z_dim")
        return (int(channels), scale) if channels and scale else None
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None


def size_problems(run: Run, audited: Audit | None) -> Iterator[Problem]:
    """Yield problems with sizes of the data and of validation images whose edges are not the multiples that the
    pipeline needs, and with videos for a pipeline of images."""
    folder = pipeline_folder(run.model)
    if folder is None:
        return
    try:
        parts, pipeline = read_index(folder)
    except ConfigError:
        return
    step = edge_step(folder, parts)
    most = largest_edge(folder, parts, step)
    for key in ("height", "width"):
        if (message := _unfit(run.validation[key], step, most)) is not None:
            yield Problem(message, str(run.source), f"$.validation.{key}")
    if audited is None or run.data is None:
        return
    arguments = call_arguments(pipeline)
    pictures_only = arguments is not None and not arguments.intersection(FRAMES)
    places = {block["id"]: path for block, path in zip(run.data.blocks, run.data.paths, strict=True)}
    for name, width, height, frames in dict.fromkeys((each.dataset, *each.bucket) for each in audited.records):
        place, file = places[name], str(run.data.source)
        if frames > 1 and pictures_only:
            message = f"{pipeline} generates images, not videos of {frames} frames; set it to 1"
            yield Problem(message, file, f"{place}.num_frames")
        if step is not None and (width % step or height % step):
            yield Problem(
                f"images of {width}x{height} do not fit the pipeline, whose edges are multiples of {step}; set it to "
                "a size that fits; where sizes follow the aspect, `resolution_multiple` is what edges are rounded to",
                file,
                f"{place}.resolution",
            )
        elif most is not None and max(width, height) > most:
            message = f"images of {width}x{height} are larger than the network has positions for; {most} is the most"
            yield Problem(f"{message} along an edge", file, f"{place}.resolution")


def size_refusal(folder: Path, height: int | None, width: int | None) -> str | None:
    """Say why a pipeline's folder cannot generate an image of these pixels, as far as its configuration says; None
    where it may."""
    try:
        parts = read_index(folder)[0]
    except ConfigError:
        return None
    step = edge_step(folder, parts)
    most = largest_edge(folder, parts, step)
    for name, pixels in (("height", height), ("width", width)):
        if (message := _unfit(pixels, step, most)) is not None:
            return f"{name}: {message}"
    return None


def _unfit(pixels: int | None, step: int | None, most: int | None) -> str | None:
    """Say why an edge of this many pixels is refused; None where it may be accepted."""
    if pixels is None:
        return None
    if step is not None and pixels % step:
        return f"{pixels} pixels do not fit the pipeline, whose edges are multiples of {step}; use one"
    if most is not None and pixels > most:
        return f"{pixels} pixels are more than the network has positions for; {most} is the most"
    return None


def largest_edge(folder: Path, parts: Mapping[str, tuple[str, str]], step: int | None) -> int | None:
    """Return the most pixels along an edge for a network with a table of positions; None if it states no table.

    Args:
        step: what :func:`edge_step` returned for this folder.
    """
    network = next((part for part in NETWORKS if part in parts), None)
    if step is None or network is None:
        return None
    positions = read_settings(folder / network / "config.json").get("pos_embed_max_size")
    return positions * step if isinstance(positions, int) and positions > 0 else None


def edge_step(folder: Path, parts: Mapping[str, tuple[str, str]]) -> int | None:
    """Return the number of pixels that every edge must be a multiple of: those of a latent, times the latents of a
    patch.

    None for VAEs whose configuration is not known here. The pipeline may require a larger multiple, never a smaller
    one.
    """
    network = next((part for part in NETWORKS if part in parts), None)
    if network is None or "vae" not in parts:
        return None
    try:
        vae, settings = read_settings(folder / "vae" / "config.json"), read_settings(folder / network / "config.json")
        patch = settings.get("patch_size") or 1
        side = int(patch[-1] if isinstance(patch, list) else patch)
        # Some pipelines fold squares of latents into channels before the network sees them.
        folded = settings.get("in_channels", 0) / (vae.get("latent_channels") or vae.get("z_dim") or 1)
        packed = math.isqrt(int(folded)) if folded.is_integer() and math.isqrt(int(folded)) ** 2 == folded else 1
        scale = _scale(vae)
        return None if scale is None else scale * max(side, packed, 1)
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError):
        return None

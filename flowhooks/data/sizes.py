"""Whether a model takes the sizes of a data set, before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flowhooks.errors import DataError, ModelError, Problem

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel


def latent_grids(
    model: FlowModel, sizes: Iterable[tuple[int, int, int]]
) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Height, width and frames of samples -> (h, w) of their latents; the model then knows these sizes.

    Raises DataError naming every size that the pipeline refuses or rounds to another.
    """
    grids, problems = {}, []
    for height, width, frames in sizes:
        try:
            shape = _fitting(model.at(height, width, frames))
        except (ValueError, ModelError) as error:  # the pipeline's own check of its arguments, and ours
            what = f"clips of {frames} frames of {width}x{height}" if frames > 1 else f"pictures of {width}x{height}"
            remedy = "set `num_frames` or `resolution`" if frames > 1 else "set `resolution`"
            problems.append(
                Problem(
                    f"the pipeline refuses {what}: {error}; {remedy} to a size it takes; where sizes follow the "
                    "aspect, `resolution_multiple` is what their edges are rounded to"
                )
            )
        else:
            grids[height, width, frames] = shape[-2], shape[-1]
    if problems:
        raise DataError(problems)
    return grids


def _fitting(model: FlowModel) -> tuple[int, ...]:
    from flowhooks.probe.pictures import verify_size

    verify_size(model)
    return model.layout(**model.size).vae_shape

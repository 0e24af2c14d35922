"""List what cannot be learned by watching, class by class or argument by argument. The list is short on purpose;
without any one entry a test fails."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

#: Pipeline argument -> value, for every pipeline that has it.
CALL: Mapping[str, Any] = {
    # Sana rounds the requested size to its training buckets and resizes the image afterwards.
    "use_resolution_binning": False,
    # LTX-2 guides by perturbed attention and by the other modality, beside classifier-free guidance.
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    # LTX adds fresh noise to a given image at every step, so no image would be what a step was trained with.
    "image_cond_noise_scale": 0.0,
    # Qwen-Image 2.1 shows texts and images to its network at the first step only, and keeps their keys and values.
    "use_kv_cache": False,
}
#: Pipeline argument -> one beside which it means something else.
OTHER_MEANING: Mapping[str, str] = {
    # AnyFlow FAR keeps the chunks of a video that are finished, without which its network computes nothing.
    "use_kv_cache": "chunk_partition",
}

#: Network argument -> value that replaces the pipeline's, for every network that has it.
FIXED_ARGUMENTS: Mapping[str, Any] = {
    # Runs LTX-2's video part only: else the prediction depends on the sound that is denoised beside it.
    "isolate_modalities": True,
}
#: Methods of a pipeline that change latents after its loop by more than a scale, a shift or their order, and are passed
#: over while it is watched.
PASSED_OVER = (
    # Kandinsky 5 gives the first frames of a video the statistics of those after them, against artifacts of a mesh.
    "normalize_first_frame",
)

#: Function of a pipeline's module by which it tests prompts -> the prompt that it takes in place of one of our own.
FORMS: Mapping[str, Callable[[str], str]] = {
    # BRIA's FIBO Edit takes a JSON with this key.
    "is_valid_edit_json": lambda prompt: json.dumps({"edit_instruction": prompt}),
}


def call_exceptions(pipe: Any) -> dict[str, Any]:
    """Return the entries of :data:`CALL` that this pipeline has as arguments, and means as other pipelines do."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in CALL.items() if name in known and OTHER_MEANING.get(name) not in known}


def passed_over(pipe: Any) -> dict[str, Any]:
    """Return what stands in for those of :data:`PASSED_OVER` that this pipeline has."""
    return {name: _unchanged for name in PASSED_OVER if hasattr(type(pipe), name)}


def _unchanged(latents: Any, *args: Any, **kwargs: Any) -> Any:
    return latents

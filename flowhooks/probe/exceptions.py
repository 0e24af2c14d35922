"""What cannot be learnt by looking, class by class or argument by argument. Short on purpose; a test fails without each
entry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

#: Pipeline argument -> value, for every pipeline that has it.
CALL: Mapping[str, Any] = {
    # Sana rounds the asked size to its training buckets and resizes the picture afterwards.
    "use_resolution_binning": False,
    # LTX-2 guides by perturbed attention and by the other modality, beside classifier-free guidance.
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}

#: Pipeline class -> network argument -> value, in place of what the pipeline passes.
FIXED_ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    # The video part alone: without this, the prediction depends on a sound that is denoised beside it.
    "LTX2Pipeline": {"isolate_modalities": True},
}


def call_exceptions(pipe: Any) -> dict[str, Any]:
    """The entries of :data:`CALL` that this pipeline knows."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in CALL.items() if name in known}

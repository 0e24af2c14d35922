"""Describe a pipeline's class for the card: the Hub's name of its task, and what loads a LoRA into its network."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, Literal

from flowhooks.naming import NETWORKS
from flowhooks.probe.runs import first_network

#: Pipelines that start from an image although its argument is optional.
_FROM_PICTURE = re.compile(r"ImageToVideo|Image2Video|I2V|I2I|Img2Img|Edit|Kontext|Layered")
_CLIPS = re.compile(r"Video|Animate")


@dataclass(frozen=True, kw_only=True)
class PipelineKind:
    """Says what a pipeline makes, from what, and how its network takes a LoRA.

    Args:
        makes: ``image``, ``video`` or ``audio``.
        from_picture: whether it starts from an image beside the prompt.
        loader: ``pipeline`` or ``network``, whichever loads LoRA files in Diffusers; None if neither does.
        network: name of the network that was trained.
    """

    makes: Literal["image", "video", "audio"]
    from_picture: bool
    loader: Literal["pipeline", "network"] | None
    network: str = NETWORKS[0]

    @property
    def task(self) -> str:
        """Return the Hub's ``pipeline_tag``."""
        return f"{'image' if self.from_picture else 'text'}-to-{self.makes}"


#: Kind of an unknown pipeline: what flowhooks itself loads works for every class.
UNKNOWN = PipelineKind(makes="image", from_picture=False, loader=None)


def pipeline_kind(pipe: Any, component: str | None) -> PipelineKind:
    """Return the kind of a pipeline by its class, without running it.

    Args:
        pipe: a Diffusers pipeline.
        component: the name of its network that was trained; None for the first.
    """
    component = component or first_network(pipe)
    name, arguments = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    if arguments.keys() & {"num_frames", "frames"} or _CLIPS.search(name):
        makes: Literal["image", "video", "audio"] = "video"
    elif "height" not in arguments and ("Audio" in name or any("audio" in argument for argument in arguments)):
        makes = "audio"
    else:
        makes = "image"
    picture = arguments.get("image")
    needed = picture is not None and picture.default is inspect.Parameter.empty
    return PipelineKind(
        makes=makes,
        from_picture=makes != "audio" and picture is not None and (needed or bool(_FROM_PICTURE.search(name))),
        network=component,
        loader=_loader(pipe, component),
    )


def _loader(pipe: Any, component: str) -> Literal["pipeline", "network"] | None:
    # A class may have `load_lora_weights` for its text encoder only.
    if hasattr(pipe, "load_lora_weights") and component in getattr(pipe, "_lora_loadable_modules", ()):
        return "pipeline"
    return "network" if hasattr(getattr(pipe, component, None), "load_lora_adapter") else None

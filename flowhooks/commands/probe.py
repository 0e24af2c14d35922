"""``flowhooks probe``: learn a pipeline by running it a few times, and print the result."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowhooks.commands.arguments import add_dtype, add_duration, add_offload, whole_number
from flowhooks.printing import say, say_lines

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel

NAME = "probe"
HELP = "learn a pipeline's conditioning, times, layout and anatomy, verify them, and say what can be trained"
TINY = "tiny:"
#: Methods that generate samples.
_OF_ROLLOUTS = ("adjoint_matching", "flow_grpo", "flow_opd")


def add(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pipeline folder, a Hub id, digits, or tiny:NAME")
    parser.add_argument("--height", type=whole_number(1), help="in pixels (default: the pipeline's own)")
    parser.add_argument("--width", type=whole_number(1), help="in pixels (default: the pipeline's own)")
    add_duration(parser)
    parser.add_argument("--frames", type=whole_number(1), help="frames of a video (default: the pipeline's own)")
    parser.add_argument(
        "--arguments",
        type=_object,
        default={},
        metavar="JSON",
        help="passed to every call of the pipeline, such as '{\"max_sequence_length\": 77}'",
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="a pipeline argument that takes images of each sample's own, such as image; may be given again",
    )
    add_dtype(parser)
    add_offload(parser, " (Diffusers' enable_model_cpu_offload)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _object(text: str) -> dict[str, Any]:
    from flowhooks.reading import BadJson, parse

    try:
        found = parse(text)
    except BadJson as error:
        raise ArgumentTypeError(f"not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ArgumentTypeError(f'expected an object, such as {{"max_sequence_length": 77}}, found {text[:60]!r}')
    return found


def run(args: Namespace) -> int:
    from flowhooks.errors import ModelError
    from flowhooks.probe import probe
    from flowhooks.probe.anatomy import learn_anatomy

    pipe, arguments = _pipeline(args)
    if args.offload:
        _offload(pipe)
    size = {"height": args.height, "width": args.width, "frames": args.frames}
    try:
        model = probe(
            pipe, **size, arguments={**arguments, **args.arguments, **length(pipe, args)}, references=args.reference
        )
    except ModelError:
        # The reason follows, as the error that it is.
        say("verdict: nothing can be trained on this pipeline as it is called here")
        raise
    learnt = {
        **model.contract.describe(),
        "sample_shape": list(model.sample_shape),
        **learn_anatomy(model).describe(),
        "verdict": verdict(model),
    }
    say_lines(json.dumps(learnt, indent=2).split("\n") if args.json else _lines(learnt))
    return 0


def length(pipe: Any, args: Namespace) -> dict[str, float]:
    """Return the pipeline's argument for the length of sound, where ``--duration`` is given. Raises ModelError for a
    pipeline of images, and for a size of images of a pipeline of sound."""
    from flowhooks.errors import ModelError
    from flowhooks.probe.sound import sound_of

    sound, name = sound_of(pipe), type(pipe).__name__
    if sound is None:
        if args.duration is not None:
            raise ModelError(f"--duration: {name} makes images; give --height and --width")
        return {}
    for option in ("height", "width", "frames"):
        if getattr(args, option) is not None:
            raise ModelError(f"--{option}: {name} makes sound; give its length with --duration")
    return {} if args.duration is None else {sound.argument: args.duration}


def verdict(model: FlowModel) -> dict[str, str]:
    """Return what can be trained on a pipeline that was probed: method, or option, -> ``yes``, or ``no`` and why."""
    import torch

    from flowhooks.errors import ModelError
    from flowhooks.export.pipelines import pipeline_kind
    from flowhooks.hooks.registry import HOOKS
    from flowhooks.methods import METHODS

    network, found = type(model.transformer).__name__, dict.fromkeys(sorted(METHODS), "yes")
    whole = sorted(name for name, spec in HOOKS.items() if spec.whole_path)
    one_of_two = "no: it samples from noise to data with one network, and the pipeline has two"
    found |= dict.fromkeys(whole, "yes" if len(model.contract.networks) == 1 else one_of_two)
    if not hasattr(model.pipe, "encode_prompt"):
        reason = "no: the pipeline has no `encode_prompt`, so prompts of rollouts cannot be encoded once"
        found |= dict.fromkeys(_OF_ROLLOUTS, reason)
    if model.anatomy.time_embedder is None and not model.native_second_time:
        found["anyflow"] = f"no: {network} has no module that embeds the time alone"
    try:
        model.tokens(torch.zeros(1, *model.sample_shape, device=model.device))
    except ModelError as error:
        found["self_flow"] = f"no: {error}"
    blocks = ", ".join(model.streams.found)
    found["feature_alignment"] = (
        f"yes, of {blocks}" if blocks else "no: in no block is it known which tokens are the image"
    )
    able = getattr(model.transformer, "_supports_gradient_checkpointing", False)
    found["gradient_checkpointing"] = "yes" if able else f"no: {network} recomputes nothing"
    loader = pipeline_kind(model.pipe, model.component).loader
    found["lora in stock Diffusers"] = {
        "pipeline": "yes, by the pipeline",
        "network": "yes, by the network",
        None: "no: neither the pipeline nor the network loads one; flowhooks does",
    }[loader]
    return found


def _pipeline(args: Namespace) -> tuple[Any, Mapping[str, Any]]:
    """Return the pipeline and the arguments of its calls."""
    from flowhooks.config import resolve_run
    from flowhooks.errors import ModelError
    from flowhooks.pipeline import load_pipeline
    from flowhooks.testing import PIPELINES, tiny

    if args.model.startswith(TINY):
        name = args.model.removeprefix(TINY)
        if name not in PIPELINES:
            raise ModelError(f"there is no tiny pipeline {name!r}; there are {', '.join(PIPELINES)}")
        return tiny(name), PIPELINES[name].arguments
    section = {"pretrained_model_name_or_path": args.model, "dtype": args.dtype}
    model = resolve_run({"model": section}, Path("flowhooks probe")).model
    return load_pipeline(model), model["pipeline_arguments"]


def _offload(pipe: Any) -> None:
    from flowhooks.errors import ModelError

    try:
        pipe.enable_model_cpu_offload()
    except (RuntimeError, ValueError, ImportError) as error:
        raise ModelError(f"`--offload` does not work on {type(pipe).__name__} here: {error}") from error


def _lines(learnt: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in learnt.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}"

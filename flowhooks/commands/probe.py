"""``flowhooks probe``: learn a pipeline by running it a few times, and print the result."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowhooks.commands.arguments import add_dtype, add_offload, whole_number
from flowhooks.printing import say_lines

NAME = "probe"
HELP = "learn a pipeline's conditioning, times, layout and anatomy, verify them, and print them"
TINY = "tiny:"


def add(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a pipeline folder, a Hub id, digits, or tiny:NAME")
    parser.add_argument("--height", type=whole_number(1), help="in pixels (default: the pipeline's own)")
    parser.add_argument("--width", type=whole_number(1), help="in pixels (default: the pipeline's own)")
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
    from flowhooks.probe import probe
    from flowhooks.probe.anatomy import learn_anatomy

    pipe, arguments = _pipeline(args)
    if args.offload:
        _offload(pipe)
    told = {**arguments, **args.arguments}
    size = {"height": args.height, "width": args.width, "frames": args.frames}
    model = probe(pipe, **size, arguments=told, references=args.reference)
    learnt = {
        **model.contract.describe(),
        "sample_shape": list(model.sample_shape),
        **learn_anatomy(model).describe(),
    }
    say_lines(json.dumps(learnt, indent=2).split("\n") if args.json else _lines(learnt))
    return 0


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

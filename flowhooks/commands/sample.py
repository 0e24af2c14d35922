"""``flowhooks sample``: generate images or sound with a pipeline, or with a trained run."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from flowhooks.commands.arguments import (
    add_dtype,
    add_duration,
    add_imports,
    add_offload,
    finite_number,
    whole_number,
    whole_numbers,
)
from flowhooks.printing import say

NAME = "sample"
HELP = "generate images or sound with a pipeline, or with a trained run"
#: Largest number of pixels along an edge; validation has the same.
MOST_PIXELS = 16_384


def add(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_OR_RUN",
        help="a pipeline folder, a Hub id, digits, the output folder of a run, or a checkpoint in it",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", action="append", help="what to generate; may be given again")
    asked.add_argument(
        "--prompts",
        metavar="FILE",
        help="a text file with one prompt a line, or a .jsonl with `prompt` and `images`, its references",
    )
    parser.add_argument(
        "--image",
        action="append",
        metavar="[ARGUMENT=]FILE",
        help="a reference that the pipeline is given beside every prompt; may be given again for several",
    )
    parser.set_defaults(given=None)
    parser.add_argument(
        "--text",
        action="append",
        metavar="ARGUMENT=TEXT",
        help="a text beside every prompt, such as lyrics=...; may be given again for others",
    )
    parser.add_argument("--negative-prompt", default="", help="what not to generate")
    parser.add_argument("--lora", metavar="FILE", help="LoRA file or folder to sample with")
    parser.add_argument(
        "--adapter-below",
        type=_sigma,
        metavar="SIGMA",
        help="adapter off in steps that start above it; 1 keeps it on (default: what its file says)",
    )
    parser.add_argument(
        "--steps",
        type=whole_numbers(1, 10_000),
        default=[28],
        metavar="N[,N...]",
        help="sampling steps; several numbers make a column each, base above trained (default: 28)",
    )
    parser.add_argument(
        "--guidance-scale", type=finite_number, default=4.5, help="1 switches guidance off (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the first image (default: %(default)s)")
    parser.add_argument(
        "--num-images", type=whole_number(1, 10_000), default=1, help="images of each prompt (default: %(default)s)"
    )
    parser.add_argument("--height", type=whole_number(1, MOST_PIXELS), help="in pixels (default: the pipeline's own)")
    parser.add_argument("--width", type=whole_number(1, MOST_PIXELS), help="in pixels (default: the pipeline's own)")
    add_duration(parser)
    add_dtype(parser)
    add_offload(parser)
    parser.add_argument(
        "--save-dataset",
        metavar="FOLDER",
        help="write the images as a data set to train on, with captions, into a new folder, and no grid",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="a folder without images of an earlier call, or a new .png for the grid alone; for one clip of sound a "
        "new .wav or .flac (default: samples, or the first free one of samples-2, samples-3)",
    )
    add_imports(parser)


def run(args: Namespace) -> int:
    if args.prompts is not None:
        from flowhooks.sampling.outputs import prompts_of

        prompts = prompts_of(args.prompts)
        args.prompt, args.given = [prompt.text for prompt in prompts], [prompt.given for prompt in prompts]
    from flowhooks.sampling.outputs import free_output

    if args.save_dataset is not None:
        from flowhooks.sampling.outputs import check_dataset

        check_dataset(Path(args.save_dataset), args.steps)
    else:
        args.output = free_output(args.output)
    # Before the imports and the weights, which take seconds.
    _check_model(args.model)
    base = _base(args.model)
    if base is not None:
        from flowhooks.checks.sizes import size_refusal
        from flowhooks.checks.sound import length_refusal
        from flowhooks.errors import ConfigError

        asked = {"height": args.height, "width": args.width, "duration": args.duration, "output": args.output}
        refusal = length_refusal(base, asked) or size_refusal(base, args.height, args.width)
        if refusal is not None:
            raise ConfigError(f"--{refusal}")
    if args.lora is not None:
        from flowhooks.adapters.fit import check_file

        check_file(Path(args.lora), base)
    from flowhooks.commands.sample_pictures import sample_command

    return sample_command(args)


def _sigma(text: str) -> float:
    try:
        sigma = float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number, found {text!r}") from None
    if not 0 < sigma <= 1:
        raise ArgumentTypeError(f"expected a sigma above 0 and at most 1, found {text}")
    return sigma


def _check_model(model_or_run: str) -> None:
    """Raise ConfigError for a name that is neither a model nor a run, on this disk or by its form."""
    from flowhooks.checks import hub
    from flowhooks.checks.pipeline import EMBEDDED, index_of, no_pipeline, pipeline_folder
    from flowhooks.errors import ConfigError, Problem
    from flowhooks.reading import user_path

    path = user_path(model_or_run)
    if (path / "run.json").is_file():
        return
    if path.is_dir():
        if not index_of(path).is_file():
            message = "holds no run.json and no model_index.json; give a run's output folder, or a pipeline's"
            raise ConfigError(Problem(message, str(path)))
        return
    if (refusal := no_pipeline(model_or_run, None)) is not None:
        raise ConfigError(refusal)
    section = {"pretrained_model_name_or_path": model_or_run, "revision": None}
    if model_or_run not in EMBEDDED and pipeline_folder(section) is None:
        # Where the Hub is not reached, its own library tries for half a minute before it says so.
        say(f"there is no folder {model_or_run!r} here, so it is looked up on the Hub", file=sys.stderr, flush=True)
        try:
            hub.download_size(model_or_run, None, None)
        except hub.Unknown as error:
            raise ConfigError(str(error)) from None


def _base(model_or_run: str) -> Path | None:
    """Return the folder of the pipeline that generates the images, if it is on this disk."""
    from flowhooks.checks.pipeline import index_of, pipeline_folder
    from flowhooks.documents.document import read_json
    from flowhooks.manifest import PIPELINE
    from flowhooks.reading import user_path

    file = user_path(model_or_run) / "run.json"
    if not file.is_file():
        return pipeline_folder({"pretrained_model_name_or_path": model_or_run, "revision": None})
    if index_of(pipeline := file.parent / PIPELINE).is_file():
        return pipeline
    document = read_json(file)
    section = document.get("model") if isinstance(document, dict) else None
    if not isinstance(section, dict):
        return None
    return pipeline_folder({"pretrained_model_name_or_path": None, "revision": None, **section})

"""Print what to do after ``flowhooks train``: what was written, how to look at it, or how to resume.

Rooms are imported where they are used: ``--help`` imports this file and must be quick.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowhooks.errors import TO_RESUME, FlowhooksError
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.config import Run
    from flowhooks.data import Record
    from flowhooks.sampling.prompts import Given

#: Exit code of a refusal before training.
REFUSED = 2


#: Stands for a reference that is no file of its own, such as a row of a table.
A_FILE = "FILE"


def what_next(run: Run, records: Iterable[Record] = (), *, imports: bool = False) -> list[str]:
    """Return lines on what a finished run wrote, and how to look at it; only files that exist.

    Args:
        records: samples of its data.
        imports: whether the run was allowed to import code; sampling with it then needs the same permission.
    """
    # Training has imported them by now.
    from flowhooks.data.blocks import holds_sound
    from flowhooks.train.launch import LOGS

    folder = Path(run.output_dir)
    found = [f"  {what:<10} {path}" for what, path in _written(folder)]
    if "tensorboard" in run.logging["trackers"]:
        found.append(f"  {'curves':<10} tensorboard --logdir {shlex.quote(str(folder / LOGS))}")
    drawn = [
        "flowhooks",
        "sample",
        str(folder),
        *_request(run, records),
        *(["--allow-imports"] if imports else []),
    ]
    sound = run.data is not None and any(map(holds_sound, run.data.blocks))
    return [*found, f"  {'sound' if sound else 'pictures':<10} {shlex.join(drawn)}"]


def _request(run: Run, records: Iterable[Record]) -> list[str]:
    """Return a prompt that the run knows, of its validation, of its rollouts, or of its data, with the references,
    texts and length that go with it, as arguments of ``flowhooks sample``."""
    from flowhooks.sampling.prompts import read_prompts

    validation = run.validation
    if validation["prompts"]:
        images = validation["images"][0] if validation["images"] else None
        texts = validation["texts"][0] if validation["texts"] else None
        return _written_out(validation["prompts"][0], images, texts or {}, validation["duration"])
    for hook in run.hooks:
        if hook.options.get("prompts") is not None:
            first = read_prompts(hook.options["prompts"])[0]
            return _written_out(first.text, first.given, {}, None)
    record = next((each for each in records if each.caption.strip()), None)
    return ["--prompt=an image"] if record is None else _of_sample(record)


def _of_sample(record: Record) -> list[str]:
    from flowhooks.data.assets import FileAsset

    images: dict[str, list[str]] = {}
    texts: dict[str, Any] = {}
    for each in record.references:
        if each.image is None:
            texts[str(each.argument)] = each.text
            continue
        # A row of a table is no file that can be named, and a video is no image.
        file = each.image.asset.name
        readable = isinstance(each.image.asset, FileAsset) and each.image.frames == 1
        images.setdefault(each.argument or "", []).append(file if readable else A_FILE)
    sound = record.image.sound
    return _written_out(record.caption, images, texts, None if sound is None else record.width / sound.rate)


def _written_out(prompt: str, images: Given, texts: Mapping[str, Any], seconds: float | None) -> list[str]:
    from flowhooks.sampling.prompts import by_argument

    files = [(f"{name}=" if name else "", file) for name, each in by_argument(images, "").items() for file in each]
    return [
        f"--prompt={prompt}",
        *(f"--image={name}{file}" for name, file in files),
        *(f"--text={name}={text}" for name, text in texts.items()),
        *([] if seconds is None else [f"--duration={seconds!r}"]),
    ]


@contextmanager
def how_to_go_on(args: Namespace, run: Run) -> Iterator[None]:
    """Print the command that resumes a run that stops inside the block, by a signal or by a failure of training.

    Nothing is printed after a refusal, which would happen again, where no checkpoint was written, or where the message
    has the command already.
    """
    try:
        yield
    except BaseException as error:
        from flowhooks.manifest import checkpoints_in

        refused = isinstance(error, FlowhooksError) and error.exit_code == REFUSED
        main = os.environ.get("RANK", "0") == "0"
        if main and not refused and TO_RESUME not in str(error) and checkpoints_in(Path(run.output_dir)):
            say(f"{TO_RESUME}{again(args)}", file=sys.stderr)
        raise


def again(args: Namespace) -> str:
    """Return the command that resumes the run of these arguments."""
    from flowhooks.checks.output import LATEST

    overrides = [part for override in args.overrides for part in ("--set", override)]
    imports = ["--allow-imports"] if args.allow_imports else []
    return shlex.join(["flowhooks", "train", args.run, *overrides, *imports, "--resume", LATEST])


def _written(folder: Path) -> list[tuple[str, Path]]:
    from flowhooks.adapters.names import ADAPTER_FILES
    from flowhooks.manifest import PIPELINE, REPORT

    candidates = (("adapter", name) for name in ADAPTER_FILES)
    named = [*candidates, ("pipeline", PIPELINE), ("validation", "validation"), ("page", REPORT)]
    return [(what, folder / name) for what, name in named if (folder / name).exists()]

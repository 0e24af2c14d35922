"""Build the embedded pipeline on disk once: its transformer is pretrained by flowhooks' own trainer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from torch import Tensor

from flowhooks.digits import pipeline
from flowhooks.digits.pipeline import read_pixels, train_autoencoder
from flowhooks.digits.places import AUTOENCODER, PIPELINE, PRETRAINING, example, pretrained_place, untrained_place
from flowhooks.digits.scans import ensure_data
from flowhooks.errors import ModelError
from flowhooks.files import share, whole
from flowhooks.printing import progress_bar, say, shows_progress

#: Prefix of each line that the pretraining process prints.
MARK = "embedded pipeline: "
#: Environment variables by which a launcher describes the other processes.
_OF_A_LAUNCH = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_")


def resolve_model(name: str) -> Path:
    """Return the folder behind `digits`, or `digits:untrained`, the same pipeline with a transformer at random weights.

    Missing parts are built first, which takes some minutes. Raises ModelError for another name.
    """
    if name == "digits":
        return ensure_model()
    if name == "digits:untrained":
        return ensure_untrained()
    raise ModelError(f"{name!r} is no embedded pipeline; use 'digits' or 'digits:untrained'")


def ensure_model(progress: bool | None = None) -> Path:
    """Return the folder of the pretrained pipeline, built first if it does not exist.

    Pretraining is the run `examples/sft/digits.json`; a changed run or recipe makes a new folder.
    """
    start = ensure_untrained(progress)
    source = example(PRETRAINING)
    target = pretrained_place(start, source)
    if not target.is_dir():
        with whole(target) as folder:
            _pretrain(source, start, folder, progress)
    return target


def _pretrain(source: Path, start: Path, folder: Path, progress: bool | None) -> None:
    """Train the run in `source` from the pipeline in `start`, and leave only its pipeline in `folder`.

    It runs in a separate process: the caller may be the trainer itself, in several processes.
    """
    working, cache = folder / "training", folder / "cache"
    here = {
        "model.pretrained_model_name_or_path": str(start),
        "output_dir": str(working),
        "cache_dir": str(cache),
        "logging.trackers": [],
    }
    command = [sys.executable, "-m", "flowhooks", "train", str(source)]
    command += [part for key, value in here.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command += [] if shows_progress(progress) else ["--no-progress"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCH)}
    # The user did not start this run: its progress bar is passed through, its other lines get a prefix.
    if shows_progress(progress):
        code = subprocess.run(command, env=alone, stdout=subprocess.DEVNULL, check=False).returncode
    else:
        with subprocess.Popen(
            command, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as running:
            for line in running.stderr or ():
                say(f"{MARK}{line.rstrip()}", file=sys.stderr, flush=True)
        code = running.returncode
    if code:
        raise ModelError(
            f"the embedded pipeline could not be pretrained (exit code {code}, the reason is above); "
            "start again when it is fixed"
        )
    for part in (working / "pipeline").iterdir():
        part.rename(folder / part.name)
    for emptied in (working, cache):
        shutil.rmtree(emptied)


def ensure_untrained(progress: bool | None = None) -> Path:
    """Return the folder of the pipeline before pretraining: autoencoder trained, transformer at random weights."""
    target = untrained_place()
    if not target.is_dir():
        data = ensure_data()
        pixels = read_pixels(data / "preferred", data / "rejected")
        with whole(target) as folder:
            build(folder, pixels, AUTOENCODER["steps"], progress)
    return target


def build(folder: Path, pixels: Tensor, steps: int, progress: bool | None = None) -> None:
    """Train the autoencoder for `steps` steps on `pixels` `[N, 3, 32, 32]` and save the whole pipeline in `folder`."""
    with progress_bar("Autoencoder", steps, progress) as advance:
        vae = train_autoencoder(pixels, steps=steps, seed=PIPELINE["seed"], after_step=advance)
    pipeline.assemble(vae).save_pretrained(folder, safe_serialization=True)
    share(folder)

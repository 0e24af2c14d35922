"""The embedded pipeline on disk: built, its transformer pretrained by flowhooks' own trainer, kept for the next run."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

from torch import Tensor

from flowhooks.config.document import read_json
from flowhooks.embedded import autoencoder, pipeline, scans
from flowhooks.embedded.autoencoder import read_pixels, train_autoencoder
from flowhooks.embedded.places import place, whole
from flowhooks.embedded.progress import bar, wanted
from flowhooks.embedded.scans import ensure_data
from flowhooks.errors import ModelError
from flowhooks.files import share


def resolve_model(name: str) -> Path:
    """The folder behind `digits`, or `digits:untrained`, the same pipeline with a transformer at random weights.

    What is missing is built first, which takes some minutes. Raises ModelError for another name.
    """
    if name == "digits":
        return ensure_model()
    if name == "digits:untrained":
        return ensure_untrained()
    raise ModelError(f"{name!r} is no embedded pipeline; use 'digits' or 'digits:untrained'")


def ensure_model(progress: bool | None = None) -> Path:
    """The folder of the pretrained pipeline, built first if it is not there.

    Pretraining is the run `examples/sft/digits.json`; a changed run or recipe makes a new folder.
    """
    from flowhooks.config import load_run
    from flowhooks.train import train

    start = ensure_untrained(progress)
    source = example("sft/digits.json")
    target = pretrained_place(start, source)
    if not target.is_dir():
        with whole(target) as folder:
            working = folder / "training"
            here = {
                "model.pretrained_model_name_or_path": start,
                "output_dir": working,
                "cache_dir": folder / "cache",
                "logging.trackers": "[]",
            }
            train(load_run(source, [f"{key}={value}" for key, value in here.items()]), progress=wanted(progress))
            for part in (working / "pipeline").iterdir():
                part.rename(folder / part.name)
            for done in (working, folder / "cache"):
                shutil.rmtree(done)
    return target


def pretrained_place(start: Path, source: Path) -> Path:
    """The folder of what the run in `source` makes of the pipeline in `start`.

    It is named by the run as it is written: options that came to the schemas later must not make everybody pretrain
    again.
    """
    written = read_json(source)
    return place("model", {"start": start.name, **{part: written[part] for part in ("data", "method", "training")}})


def ensure_untrained(progress: bool | None = None) -> Path:
    """The folder of the pipeline before pretraining: autoencoder trained, transformer at random weights."""
    target = place("untrained", {"data": scans.RECIPE, "vae": autoencoder.RECIPE, "pipeline": pipeline.RECIPE})
    if not target.is_dir():
        data = ensure_data()
        pixels = read_pixels(data / "preferred", data / "rejected")
        with whole(target) as folder:
            build(folder, pixels, autoencoder.RECIPE["steps"], progress)
    return target


def build(folder: Path, pixels: Tensor, steps: int, progress: bool | None = None) -> None:
    """Train the autoencoder for `steps` steps on `pixels` `[N, 3, 32, 32]` and save the whole pipeline in `folder`."""
    with bar("Autoencoder", steps, progress) as advance:
        vae = train_autoencoder(pixels, steps=steps, seed=pipeline.RECIPE["seed"], after_step=advance)
    pipeline.assemble(vae).save_pretrained(folder, safe_serialization=True)
    share(folder)


def example(name: str) -> Path:
    """A run file of `examples/`: inside the package when installed from a wheel, beside it in a checkout."""
    try:
        shipped = Path(str(resources.files("flowhooks.examples"))) / name
        if shipped.is_file():
            return shipped
    except ModuleNotFoundError:
        pass
    return Path(__file__).parents[2] / "examples" / name

"""Say how the embedded pipeline is made, where it is, whether it is built, and what is known before it is. Free of
torch."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from flowhooks.digits import scans
from flowhooks.documents.document import read_json
from flowhooks.files import place

#: Recipe of the autoencoder and the pipeline: a change here names new folders, so that everybody builds again.
LATENT_CHANNELS = 4
KL_WEIGHT = 1e-4
AUTOENCODER: dict[str, Any] = {
    "version": 1,
    "steps": 600,
    "batch": 32,
    "learning_rate": 8e-3,
    "channels": [16, 32, 32],
    "kl": KL_WEIGHT,
}
PIPELINE: dict[str, Any] = {"version": 1, "layers": 4, "heads": 4, "head_width": 32, "shift": 3.0, "seed": 0}


NAMES = ("digits", "digits:untrained")
#: The run that pretrains the pipeline.
PRETRAINING = "sft/digits.json"


def untrained_place() -> Path:
    """Return the folder of the pipeline before pretraining, whether or not it exists."""
    return place("untrained", {"data": scans.RECIPE, "vae": AUTOENCODER, "pipeline": PIPELINE})


def pretrained_place(start: Path, source: Path) -> Path:
    """Return the folder of the result of the run in `source` from the pipeline in `start`, whether or not it exists.

    Its name depends on the run as it is written: options added to the schemas later must not make everybody pretrain
    again.
    """
    written = read_json(source)
    return place("model", {"start": start.name, **{part: written[part] for part in ("data", "method", "training")}})


def place_of(name: str) -> Path:
    """Return the folder of `digits` or of `digits:untrained`, whether or not it exists."""
    return untrained_place() if name != "digits" else pretrained_place(untrained_place(), example(PRETRAINING))


def building_notice(name: str) -> str | None:
    """Return a sentence about what is built before `digits` or `digits:untrained` can be used; None if it is built, and
    for another name."""
    if name not in NAMES:
        return None
    folder = place_of(name)
    if folder.is_dir():
        return None
    minutes = "some minutes" if name == "digits" else "a minute or so"
    return f"the embedded pipeline is not built yet: it is built once, in {minutes} on a CPU, into {folder}"


def outline() -> Path:
    """Return a folder like the pipeline's with its settings, and the shapes of its network's weights in place of
    them."""
    return Path(str(resources.files("flowhooks.digits"))) / "outline"


def example(name: str) -> Path:
    """Return a run file of `examples/`: inside the package when installed from a wheel, beside it in a checkout."""
    try:
        shipped = Path(str(resources.files("flowhooks.examples"))) / name
        if shipped.is_file():
            return shipped
    except ModuleNotFoundError:
        pass
    return Path(__file__).parents[2] / "examples" / name

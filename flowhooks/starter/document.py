"""Write down a first run: its method, what the model needs, and what follows from how many images there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowhooks.data.assets import FileAsset
from flowhooks.data.records import Audit, Reference
from flowhooks.starter.model import KnownModel

MODEL = "pretrained_model_name_or_path"
#: The method for pairs, the one for labels, and the one for images alone.
PAIRS, LABELS, PLAIN = "flow_dpo", "kto", "sft"
#: Samples of one update.
SAMPLES = 4
#: How often a run shows each image, and the steps that it has at least and at most.
VISITS, FEWEST, MOST = 100, 500, 3000
#: From so many images on, some are held out; one of so many, and at most so many.
HOLDOUT_FROM, HOLDOUT_OF, HOLDOUT_MOST = 40, 20, 32
#: Prompts of validation images.
PROMPTS = 2


def run_document(known: KnownModel, method: str, provides: frozenset[str], data: Any) -> dict[str, Any]:
    """Return a run as far as it does not depend on how many images there are."""
    recipe = known.recipe
    model: dict[str, Any] = {MODEL: known.name}
    training: dict[str, Any] = {"train_batch_size": SAMPLES}
    if known.large:
        model |= {"dtype": "bf16", "gradient_checkpointing": True}
        training = {"train_batch_size": 1, "gradient_accumulation_steps": SAMPLES, "mixed_precision": "bf16"}
    model |= {key: value for key, value in (recipe.get("model") or {}).items() if not key.startswith("_")}
    model[MODEL] = known.name
    return {
        "model": model,
        "adapter": {"type": "lora", "rank": 16},
        "data": data,
        "method": {method: _options(method, provides)},
        "training": training,
    }


def _options(method: str, provides: frozenset[str]) -> dict[str, Any]:
    if method != PAIRS:
        return {}
    norm = "masked_mean" if "data:mask" in provides else "mean"
    return {"norm_type": norm, "auto_beta": True, "anchor_alpha": 0.05}


def with_images(document: dict[str, Any], known: KnownModel, method: str, audited: Audit, data: Path) -> dict[str, Any]:
    """Return the run with what depends on the images: steps, validation, the folder of its output."""
    records = audited.records
    images = len({record.image for record in records})
    steps = min(max(round(images * VISITS / SAMPLES, -2), FEWEST), MOST)
    shown = list({record.caption: record for record in reversed(records) if record.caption}.values())[::-1][:PROMPTS]
    size = records[0].geometry
    validation: dict[str, Any] = {
        "prompts": [record.caption for record in shown],
        "every_steps": steps // 5,
        **known.sampling,
        "height": size.height,
        "width": size.width,
    }
    if any(record.references for record in shown):
        validation["images"] = [_shown(record.references) for record in shown]
    if images >= HOLDOUT_FROM:
        validation["holdout"] = min(images // HOLDOUT_OF, HOLDOUT_MOST)
    model = document["model"]
    if known.moving and size.frames > 1:
        model = {**model, "pipeline_arguments": {**model.get("pipeline_arguments", {}), "num_frames": size.frames}}
    training = {"max_train_steps": steps, **document["training"], "learning_rate": 1e-4}
    name = data.absolute().name if data.is_dir() else data.stem
    return {
        **document,
        "model": model,
        "training": training,
        "validation": validation,
        "output_dir": f"runs/{name or 'images'}-{method}",
    }


def _shown(references: Sequence[Reference]) -> Any:
    """Return the references of a sample as `validation.images` has them; None where they are not files of their own."""
    by_argument: dict[str, list[str]] = {}
    for each in references:
        picture = each.image
        if picture is None or not isinstance(picture.asset, FileAsset) or picture.frames > 1:
            return None
        by_argument.setdefault(each.argument or "", []).append(str(picture.asset.path.absolute()))
    short = {name: paths[0] if len(paths) == 1 else paths for name, paths in by_argument.items()}
    return short[""] if list(short) == [""] else short

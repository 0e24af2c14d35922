"""Edit models, from a run file to the pipeline that loads its result: each sample has references of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flowhooks.checks.examine import examine
from flowhooks.cli import main
from flowhooks.train import train
from tests.data.folders import image_set, partner_set, write_image, write_mask
from tests.families import PIPELINES, learnt, tiny
from tests.train.runs import make_run

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    """Pairs of edits with masks and their sources, of another size; and a tiny FLUX.1 Kontext."""
    root = tmp_path_factory.mktemp("edits")
    for seed, name in enumerate(NAMES):
        write_image(root / "good" / f"{name}.png", (16, 16), seed)
        (root / "good" / f"{name}.txt").write_text("a photo", encoding="utf-8")
        write_image(root / "bad" / f"{name}.png", (16, 16), 10 + seed)
        write_image(root / "source" / f"{name}.png", (32, 16 if seed else 32), 20 + seed)
        write_mask(root / "mask" / f"{name}.png", 255 * np.tri(16))
    tiny("flux-kontext").save_pretrained(root / "model")
    return root


def blocks(*partners, **keys):
    kinds = {"bad": "reference_strict", "source": "reference_image", "mask": "mask"}
    return [
        image_set("good", conditioning_data=list(partners), **keys),
        *(partner_set(each, kinds[each]) for each in partners),
    ]


def run_of(root, output, data, **sections):
    (root / f"{output.name}.json").write_text(json.dumps(data), encoding="utf-8")
    arguments = {k: v for k, v in PIPELINES["flux-kontext"].arguments.items() if k not in ("height", "width")}
    base = {
        "model": {"pipeline_arguments": arguments},
        "training": {"max_train_steps": 1, "train_batch_size": 3, "log_every_steps": 1},
        "cache_dir": str(root / "cache"),
    }
    return make_run(root / "model", root / f"{output.name}.json", output, **{**base, **sections})


def test_flow_dpo_on_masked_edit_pairs_from_a_file_to_the_pipeline(edits, tmp_path, capsys):
    look = {
        "prompts": ["a photo", "one"],
        "images": [str(edits / "source" / "one.png"), None],
        "num_inference_steps": 1,
        "height": 16,
        "width": 16,
        "holdout": 1,
    }
    run = run_of(edits, tmp_path / "pairs", blocks("bad", "source", "mask"), validation=look)
    result = train(run, progress=False)
    assert (result.output_dir / "validation" / "step_000001.png").is_file()
    history = [json.loads(line) for line in (result.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert any("val/loss" in each for each in history)
    told = [
        "--prompt",
        "a",
        "--image",
        str(edits / "source" / "two.png"),
        "--steps",
        "2",
        "--height",
        "16",
        "--width",
        "16",
    ]
    assert main(["sample", str(result.output_dir), *told, "--output", str(tmp_path / "drawn")]) == 0
    assert Image.open(tmp_path / "drawn" / "grid.png").size == (16, 16)


def test_sets_of_references_in_the_words_of_other_trainers(edits, tmp_path, capsys):
    """Where no hook reads a rejected side and the pipeline takes an image, `reference_strict` holds references."""
    sets = blocks("source")
    sets[1]["conditioning_type"] = "reference_loose"
    sft = run_of(edits, tmp_path / "sft", sets, hooks=[])
    audited = examine(sft).audit
    assert "reference" in audited.provides and "rejected" not in audited.provides
    result = train(sft, progress=False)
    fresh = learnt("flux-kontext").pipe
    fresh.load_lora_weights(result.output_dir)
    pairs = run_of(edits, tmp_path / "dpo", blocks("bad"), hooks=[{"type": "flow_dpo"}])
    assert "reference" not in examine(pairs).audit.provides, "a preference run has rejected sides"

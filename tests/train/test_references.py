"""Edit models, from a run file to the pipeline that loads its result: each sample has references of its own."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from flowhooks.checks.examine import examine
from flowhooks.checks.planning import describe_prompts, unused_data_warnings
from flowhooks.checks.references import describe_prompt_references
from flowhooks.cli import main
from flowhooks.data import audit, build_cache
from flowhooks.data.transform import load_picture
from flowhooks.probe.values import same
from flowhooks.sampling.states import RolloutState
from flowhooks.sampling.steps import Sampler
from flowhooks.train import train
from flowhooks.train.identity import identity
from flowhooks.train.setup import prepared
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


def test_flow_dpo_on_masked_edit_pairs_from_a_file_to_the_pipeline(edits, tmp_path, capsys, monkeypatch):
    given: list[bytes] = []
    for place in ("encode_references", "given_images"):
        monkeypatch.setattr(
            f"flowhooks.data.{place}.load_picture",
            lambda data, geometry: given.append(data) or load_picture(data, geometry),
        )
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
    assert set(given) == {(edits / "source" / f"{name}.png").read_bytes() for name in NAMES}, "no rejected image"
    rows = [{"prompt": "a", "images": "source/one.png"}, {"prompt": "a"}]
    (edits / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    told = [
        "--prompts",
        str(edits / "asked.jsonl"),
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
    first, second = (np.asarray(Image.open(tmp_path / "drawn" / f"prompt_00{i}_00.png")) for i in (0, 1))
    assert first.shape == (16, 16, 3) and not np.array_equal(first, second), "a row's own reference, else that of all"


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


def test_a_video_begins_with_its_own_first_frame(tmp_path):
    """Wan 2.2 5B: the frame that is given stands in place of the sample's, and trains nothing."""
    (tmp_path / "clips").mkdir()
    for seed in range(2):
        frames = [
            Image.fromarray(np.random.default_rng(10 * seed + k).integers(0, 256, (32, 32, 3), np.uint8))
            for k in range(5)
        ]
        frames[0].save(tmp_path / "clips" / f"{seed}.png", save_all=True, append_images=frames[1:])
        (tmp_path / "clips" / f"{seed}.txt").write_text("a", encoding="utf-8")
    tiny("wan22-5b-i2v").save_pretrained(tmp_path / "model")
    arguments = {"max_sequence_length": 16}
    sets = [image_set("clips", num_frames=5, reference="first_frame")]
    training = {"max_train_steps": 1, "train_batch_size": 2}
    model = {"pipeline_arguments": arguments}
    run = run_of(tmp_path, tmp_path / "out", sets, hooks=[], model=model, training=training)
    with prepared(run, None, False) as job:
        (batch,) = itertools.islice(job.batches(), 1)
        model = job.session.model.at(*batch.size)
        seen = model.seen(batch.clean, batch.condition)
        assert not seen[:, :, 0].any() and seen[:, :, 1:].all()
        (loss,) = (result.loss for result in job.session.steps(batch))
        moved = replace(batch, clean=batch.clean + 100 * (1 - seen))
        job.session.micro_step -= 1
        (again,) = (result.loss for result in job.session.steps(moved))
        assert torch.equal(loss, again), "the given frame weighs nothing"
        pixels = model.decode(batch.clean, condition=batch.condition)
        assert pixels.shape == (2, 3, 5, 32, 32)


def test_a_text_encoder_that_sees_the_picture_encodes_every_caption_with_every_reference(edits, tmp_path, monkeypatch):
    """Qwen-Image-Edit-Plus, which is built here: to read its processor from a folder takes torchvision."""
    monkeypatch.setattr("flowhooks.train.setup.load_pipeline", lambda section: tiny("qwen-image-edit-plus"))
    data = blocks("bad", "source", caption_dropout=0.5)
    hooks = [{"type": "flow_dpo", "norm_type": "mean"}]
    look = {"prompts": ["one"], "images": [str(edits / "source" / "two.png")], "num_inference_steps": 1, "holdout": 1}
    sections = {"model": {"pipeline_arguments": {}}, "validation": {**look, "height": 16, "width": 16}}
    run = run_of(edits, tmp_path / "qwen", data, hooks=hooks, **sections)
    result = train(run, progress=False)
    assert (result.output_dir / "validation" / "step_000001.png").is_file()
    kinds = {path.name for path in (edits / "cache").iterdir()}
    assert "conditions" in kinds
    # For guidance in a step, conditions are kept without their captions too: here they are all in the cache.
    model = learnt("qwen-image-edit-plus")
    audited = audit(run.data)
    dataset = build_cache(audited, model, edits / "cache", progress=False, unprompted=True)
    condition = dataset[0]["condition"].join([dataset[1]["condition"]])
    null = model.null_conditions(condition)
    bare = [dataset.condition("", (16, 16, 1), record.references) for record in audited.records[:2]]
    assert same(null.samples, bare[0].unprompted().join([bare[1].unprompted()]).samples)
    assert not same(null.samples, condition.samples)


def test_a_run_samples_with_each_caption_and_its_references(edits, tmp_path):
    """What is visited again is what was sampled, with the same references."""
    grpo = {
        "prompts": None,
        "rewards": [{"type": "reference_similarity", "outside_mask": True}],
        "group_size": 2,
        "num_inference_steps": 2,
        "visits": 1,
    }
    run = run_of(edits, tmp_path / "grpo", blocks("source", "mask"), hooks=[], method={"flow_grpo": grpo})
    assert not unused_data_warnings(examine(run).plan, examine(run).audit.given), "the reward reads the masks"
    with prepared(run, None, False) as job:
        tokens: list[int] = []
        handle = job.session.model.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
        )
        (batch,) = itertools.islice(job.batches(), 1)
        results = list(job.session.steps(batch))
        handle.remove()
        assert len(results) == len(NAMES), "those of one caption together"
        # Of 16 x 16 pixels, and beside them 32 x 32 or 32 x 16.
        assert set(tokens) == {16 + 64, 16 + 32}
        rewards = [float(result.metrics["flow_grpo_reward_reference_similarity"]) for result in results]
        assert len(set(rewards)) == len(NAMES) and all(-1 < reward < 1 for reward in rewards)
        player = job.session.source.player
        first, other = (dict(batch.references[i]) for i in (0, 1))
        with torch.no_grad():
            rollout = player.draw(["a photo"], [3], Sampler(steps=2), [1], [1], images=first)
            visit = RolloutState(player=player, rollout=rollout, index=1)
            assert torch.equal(visit.velocity("policy"), rollout.velocities[1])
            swapped = replace(visit, rollout=replace(rollout, images=other))
            assert not torch.equal(swapped.velocity("policy"), rollout.velocities[1])


def test_a_file_of_prompts_names_references(edits, tmp_path, capsys):
    rows = [{"prompt": "a photo", "images": f"source/{name}.png"} for name in ("one", "two")]
    (edits / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    grpo = {
        "prompts": str(edits / "prompts.jsonl"),
        "rewards": [{"type": "reference_similarity"}],
        "group_size": 2,
        "num_inference_steps": 2,
        "visits": 1,
    }
    training = {"max_train_steps": 1, "train_batch_size": 2}
    sections = {"validation": {"height": 16, "width": 16}, "method": {"flow_grpo": grpo}, "training": training}
    run = replace(run_of(edits, tmp_path / "asked", blocks("source"), hooks=[], **sections), data=None)
    assert describe_prompt_references(run) == "2 with 1" and "with references" in describe_prompts(run)
    with prepared(run, None, False) as job:
        assert job.session.model.contract.references == ("image",)
        seen: list[tuple[int, int]] = []
        handle = job.session.model.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(tuple(kwargs["hidden_states"].shape[:2])), with_kwargs=True
        )
        results = list(job.session.steps(None))
        handle.remove()
        assert len(results) == 2 and all(bool(result.loss.isfinite()) for result in results)
        # Of 16 x 16 pixels, and beside them 32 x 32 or 32 x 16; the images of a prompt together.
        assert {(2, 16 + 64), (2, 16 + 32)} <= set(seen)
    before = identity(run, examine(run).audit, 1)["prompts"]
    write_image(edits / "source" / "two.png", (32, 16), 99)
    assert identity(run, examine(run).audit, 1)["prompts"] != before, "another image under the same name"

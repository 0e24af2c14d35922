"""Trained from nothing: does Self-Flow, or another alignment, learn faster, and which part of Self-Flow does it?"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from PIL import Image

import flowhooks
from benchmarks.evidence_self_flow_page import write_page
from benchmarks.measure import interleaved, ratio
from benchmarks.representation import block_features, ensure_encoder, probe_accuracy, split
from flowhooks.config import Run, load_run
from flowhooks.digits.judge import Judge, ensure_judge
from flowhooks.digits.model import ensure_untrained, example
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import SAMPLES, STEPS, asked_digits, draw, load_stock, machine
from flowhooks.digits.scans import PIXELS, caption, load_scans, resolve_data
from flowhooks.files import whole
from flowhooks.kernel.view import Batch
from flowhooks.probe import probe
from flowhooks.train import train

RECIPE = "self_flow/digits.json"
#: Optimiser steps after which images are drawn.
STAGES = (300, 450, 600)
#: A transformer deep enough for blocks at a third and at two thirds of its depth.
NETWORK = {"num_layers": 6, "num_attention_heads": 2, "attention_head_dim": 32, "caption_projection_dim": 64}
STUDENT, TEACHER = 1, 3
#: Sampling seeds that no setting was chosen on.
UNSEEN = 90_000
#: One scan in so many is not told its digit; so is every image that features are taken of.
UNNAMED, NO_NAME = 10, "a handwritten digit"
SIGMA = 0.3
ROUNDS = 20
ENCODER = "<encoder>"

_PLAIN: dict[str, Any] = {"sft": {}}
_SELF_FLOW = {"block_index": STUDENT, "teacher_block_index": TEACHER, "weight": 0.5, "projector_width": 256}
_ALIGNMENT = {"type": "feature_alignment", "block_index": STUDENT}
#: Arm -> sections of the recipe.
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"method": _PLAIN},
    "Self-Flow": {"method": {"self_flow": {**_SELF_FLOW, "mask_ratio": 0.25}}},
    "two times alone": {"method": _PLAIN, "hooks": [{"type": "dual_times", "mask_ratio": 0.25}]},
    "alignment alone": {"method": {"self_flow": {**_SELF_FLOW, "mask_ratio": 0.0}}},
    "LayerSync": {
        "method": _PLAIN,
        "hooks": [{**_ALIGNMENT, "source": "layersync", "teacher_block_index": TEACHER, "weight": 0.2}],
    },
    "external": {
        "method": _PLAIN,
        "hooks": [{**_ALIGNMENT, "source": "external", "encoder": ENCODER, "weight": 0.5, "projector_width": 256}],
    },
}


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and write what the images and the blocks are
    worth."""
    bench = Bench(output=output.resolve())
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms or ARMS}
    for seed in seeds:
        for arm in found:
            found[arm].append(bench.trained(arm, seed))
            print(arm, seed, json.dumps(found[arm][-1]), flush=True)
    facts = {
        "arms": found,
        "sections": {arm: ARMS[arm] for arm in found},
        "network": NETWORK,
        "weights": bench.weights(seeds[0]),
        "blocks": {"student": STUDENT, "teacher": TEACHER},
        "seeds": list(seeds),
        "stages": list(STAGES),
        "untrained": [bench.probed(bench.start(seed)) for seed in seeds],
        "scans": bench.floor(),
        "encoder": bench.encoder,
        "cost": costs(bench, list(found)),
        "sampling": {"count": SAMPLES, "first_seed": UNSEEN, "steps": STEPS, "guidance_scale": 1.0},
        "probe": {"sigma": SIGMA, "prompt": NO_NAME, "held_out": len(bench.held)},
        "machine": machine(),
    }
    write_page(docs, facts)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all arms share; everything is kept under `output`.

    Args:
        output: an absolute path.
        first_seed: of the drawn images.
        changes: overrides of the recipe, for all arms alike.
    """

    output: Path
    first_seed: int = UNSEEN
    changes: tuple[str, ...] = ()

    @cached_property
    def judge(self) -> Judge:
        return ensure_judge()

    @cached_property
    def pixels(self) -> torch.Tensor:
        """All clean scans, ``[N, 3, 32, 32]`` in [-1, 1]."""
        return read_pixels(Path(resolve_data("digits:preferred")))

    @cached_property
    def digits(self) -> torch.Tensor:
        return torch.from_numpy(load_scans()[1])

    @cached_property
    def learnt(self) -> torch.Tensor:
        """Indices of the scans that pipelines, encoder and readers learn from."""
        return split(len(self.pixels))[0]

    @cached_property
    def held(self) -> torch.Tensor:
        return split(len(self.pixels))[1]

    @property
    def encoder_folder(self) -> Path:
        return self.output / "encoder"

    @cached_property
    def encoder(self) -> dict[str, float]:
        return ensure_encoder(self.encoder_folder, self.pixels, self.digits)

    @cached_property
    def scans(self) -> Path:
        """The folder that all arms train on: nine of ten scans with their digit as a caption, one without."""
        target = self.output / "scans"
        if not target.is_dir():
            with whole(target) as folder:
                for place, index in enumerate(self.learnt.tolist()):
                    pixels = ((self.pixels[index] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                    Image.fromarray(pixels).save(folder / f"{index:04d}.png", compress_level=1)
                    words = caption(int(self.digits[index])) if place % UNNAMED else NO_NAME
                    (folder / f"{index:04d}.txt").write_text(words + "\n", encoding="utf-8")
        return target

    def start(self, seed: int) -> Path:
        """The embedded pipeline around a transformer of `NETWORK` at weights drawn from `seed`."""
        base = ensure_untrained()
        mark = hashlib.sha256(json.dumps([NETWORK, base.name]).encode()).hexdigest()[:8]
        target = self.output / f"start-{mark}-{seed}"
        if not target.is_dir():
            pipe = load_stock(base)
            with torch.random.fork_rng(devices=[]), whole(target) as folder:
                torch.manual_seed(seed)
                pipe.register_modules(
                    transformer=SD3Transformer2DModel.from_config({**pipe.transformer.config, **NETWORK})
                )
                pipe.save_pretrained(folder, safe_serialization=True)
        return target

    def weights(self, seed: int) -> int:
        """How many the transformer has."""
        return sum(weight.numel() for weight in load_stock(self.start(seed)).transformer.parameters())

    def run(self, arm: str, seed: int, *, steps: int = STAGES[-1], folder: Path | None = None) -> Run:
        """The run of an arm, up to a number of steps."""
        sections = {"hooks": [], **ARMS[arm]}
        if ENCODER in json.dumps(sections) and self.encoder:
            sections = json.loads(json.dumps(sections).replace(ENCODER, str(self.encoder_folder)))
        values = {
            "model.pretrained_model_name_or_path": self.start(seed),
            "data": json.dumps([{"id": "scans", "instance_data_dir": str(self.scans)}]),
            **{name: json.dumps(section) for name, section in sections.items()},
            "training.seed": seed,
            "training.max_train_steps": steps,
            # A course of the learning rate must not depend on where a stage ends.
            "training.lr_scheduler": "constant_with_warmup",
            "training.checkpoints_total_limit": 1,
            "validation.prompts": "[]",
            "logging.trackers": "[]",
            "cache_dir": self.output / "cache",
            "output_dir": folder or self.output,
        }
        return load_run(example(RECIPE), [*(f"{key}={value}" for key, value in values.items()), *self.changes])

    def trained(self, arm: str, seed: int) -> dict[str, Any]:
        """Train an arm stage by stage, going on from what is there, and measure at the end of each.

        Returns:
            ``pictures``: stage -> ``frechet`` and ``digit_accuracy``; ``probe``: block -> accuracy, at the end.
        """
        mark = hashlib.sha256(
            json.dumps([self.run(arm, seed).document, self.first_seed]).replace(str(self.output), "").encode()
        ).hexdigest()[:8]
        folder = self.output / f"{arm.lower().replace(' ', '-')}-{seed}-{mark}"
        file = folder / "measured.json"
        measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"pictures": {}}
        for stage in STAGES:
            if str(stage) in measured["pictures"]:
                continue
            resume = "latest" if any(folder.glob("checkpoint-*")) else None
            train(self.run(arm, seed, steps=stage, folder=folder), resume=resume, progress=False)
            drawn = draw(load_stock(folder / "pipeline"), first_seed=self.first_seed)
            score = self.judge.score(drawn, asked_digits(SAMPLES))
            measured["pictures"][str(stage)] = {"frechet": score.frechet, "digit_accuracy": score.digit_accuracy}
            if stage == STAGES[-1]:
                measured["probe"] = self.probed(folder / "pipeline")
            print(f"    {arm}, seed {seed}, {stage} steps: {score.frechet:.1f}", flush=True)
            file.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        return {**measured, "pictures": {str(stage): measured["pictures"][str(stage)] for stage in STAGES}}

    def probed(self, pipeline: Path) -> dict[str, float]:
        """Block -> how well a linear reader knows the held-out digits from its features."""
        features = block_features(load_stock(pipeline), self.pixels, prompt=NO_NAME, sigma=SIGMA, seed=self.first_seed)
        return {block: probe_accuracy(each, self.digits, self.learnt, self.held) for block, each in features.items()}

    def floor(self) -> float:
        """Fréchet distance of as many real scans as images are drawn, each tenth of one digit: none can do much
        better."""
        chosen = [torch.nonzero(self.digits == digit)[: SAMPLES // 10, 0] for digit in range(10)]
        return self.judge.score(self.pixels[torch.cat(chosen)], asked_digits(SAMPLES)).frechet


def costs(bench: Bench, arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds of a training step of each arm, all taking turns in one process, and its ratio to the plain arm's."""
    names = list(dict.fromkeys(["plain", *arms]))
    with ExitStack() as stack:
        steps = {arm: _step(bench, arm, stack) for arm in names}
        seconds = interleaved(steps, rounds=ROUNDS)
    return {
        arm: {"seconds": round(statistics.median(seconds[arm]), 4), **ratio(seconds[arm], seconds["plain"])}
        for arm in names
    }


def _step(bench: Bench, arm: str, stack: ExitStack) -> Any:
    run = bench.run(arm, 0)
    size = run.training["train_batch_size"]
    pipe = load_stock(bench.start(0))
    model = probe(pipe, height=PIXELS, width=PIXELS)
    for part in pipe.components.values():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False)
    session = stack.enter_context(flowhooks.attach(model, run))
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=run.training["learning_rate"])
    chosen = bench.learnt[:size]
    batch = Batch(
        clean=model.encode_images(bench.pixels[chosen]),
        condition=model.encode_prompts([caption(int(digit)) for digit in bench.digits[chosen]]),
    )

    def step() -> None:
        session.step(batch, log=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(session.parameters().values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        session.updated()

    return step

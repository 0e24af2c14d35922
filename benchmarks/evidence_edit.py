"""Does masked Flow-DPO make an edit model remove more blots than as much more training on good edits?"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from torch import Tensor

from benchmarks.evidence_edit_model import ARGUMENTS, INSTRUCTION, NETWORK, build
from benchmarks.evidence_edit_page import BEFORE, DPO, EQUAL, SAME, write_page
from benchmarks.representation import split
from flowhooks.config import load_run
from flowhooks.digits.judge import Judge, ensure_judge
from flowhooks.digits.model import ensure_untrained
from flowhooks.digits.report import machine
from flowhooks.digits.scans import PIXELS, blot_opacity, load_scans, spill
from flowhooks.files import whole
from flowhooks.train import train

#: Blots of each scan: of those that are trained on, and of held-out ones.
BLOTS, HELD_BLOTS = 2, 2
#: What a bad edit did: it left the blot, or wiped the digit away with it.
LEFT, WIPED = "left", "wiped"
#: Every second edit of the first training is bad, each kind in turn, as in edits that a program made.
SLOPPY = (None, LEFT, None, WIPED)
FOLDERS = ("source", "edited", "good", "bad", "where")
STEPS, BATCH = 20, 180
#: Sampling seeds that no setting was chosen on.
UNSEEN = 90_000
_CONSTANT: dict[str, Any] = {"caption_strategy": "instanceprompt", "instance_prompt": INSTRUCTION}
_SOURCE = {
    "id": "source",
    "dataset_type": "conditioning",
    "conditioning_type": "reference_image",
    "instance_data_dir": "source",
}
_DATA: dict[str, list[dict[str, Any]]] = {
    "sloppy": [{"id": "edited", "instance_data_dir": "edited", "conditioning_data": ["source"], **_CONSTANT}, _SOURCE],
    "good": [{"id": "good", "instance_data_dir": "good", "conditioning_data": ["source"], **_CONSTANT}, _SOURCE],
    "pairs": [
        {"id": "good", "instance_data_dir": "good", "conditioning_data": ["source", "bad", "where"], **_CONSTANT},
        _SOURCE,
        {**_SOURCE, "id": "bad", "conditioning_type": "reference_strict", "instance_data_dir": "bad"},
        {**_SOURCE, "id": "where", "conditioning_type": "mask", "instance_data_dir": "where"},
    ],
}
#: The run from random weights that all arms start from.
FIRST: dict[str, Any] = {
    "adapter": None,
    "data": "sloppy",
    "method": {"sft": {}},
    "training": {
        "trainable": "transformer",
        "max_train_steps": 600,
        "train_batch_size": 32,
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 50,
        "optimizer_args": {"betas": [0.9, 0.99]},
        "use_ema": True,
        "ema_decay": 0.99,
    },
}
_LORA = {"type": "lora", "rank": 16, "alpha": 16}
_DPO_STEPS = 100
_AFTER = {"max_train_steps": _DPO_STEPS, "train_batch_size": 16, "learning_rate": 5e-4}
#: A step of Flow-DPO takes both sides through the network forward and backward, and through it once more without the
#: adapter: 2 (3 + 1) forwards of a batch, where a plain step is 3 of them.
_EQUAL = {**_AFTER, "max_train_steps": round(_DPO_STEPS * 8 / 3)}
#: Arm -> what its run says beside the model.
ARMS: dict[str, dict[str, Any]] = {
    DPO: {
        "adapter": _LORA,
        "data": "pairs",
        "method": {"flow_dpo": {"norm_type": "masked_mean", "auto_beta": True, "mask_dilate": 1, "anchor_alpha": 0.05}},
        "training": _AFTER,
    },
    EQUAL: {"adapter": _LORA, "data": "good", "method": {"sft": {}}, "training": _EQUAL},
    SAME: {"adapter": _LORA, "data": "sloppy", "method": {"sft": {}}, "training": _EQUAL},
}


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and write what the judge says of the edits."""
    bench = Bench(output=output.resolve())
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        first, seconds = bench.trained(BEFORE, FIRST, bench.start(seed), seed)
        rows = {BEFORE: {**bench.scored(first), "seconds": seconds}}
        for arm in arms or ARMS:
            folder, seconds = bench.trained(arm, ARMS[arm], first, seed)
            rows[arm] = {**bench.scored(first, folder), "seconds": seconds}
        for arm, row in rows.items():
            print(arm, seed, json.dumps(row), flush=True)
            found.setdefault(arm, []).append(row)
    facts = {
        "rows": {**bench.given(), "a network at random weights": bench.scored(bench.start(seeds[0]))},
        "arms": found,
        "runs": {BEFORE: FIRST, **{arm: ARMS[arm] for arm in arms or ARMS}},
        "data": _DATA,
        "network": NETWORK,
        "weights": sum(each.numel() for each in stock(bench.start(seeds[0])).transformer.parameters()),
        "seeds": list(seeds),
        "sampling": {"references": len(bench.held.source), "first_seed": UNSEEN, "steps": STEPS},
        "trained_references": len(bench.learnt) * BLOTS,
        "judge_held_out": bench.judge.held_out,
        "machine": machine(),
    }
    write_page(docs, facts)


@dataclass(frozen=True, kw_only=True)
class Held:
    """Holds what edits are measured with: images `[N, 3, 32, 32]` in [-1, 1], what a blot covers, bool
    `[N, 1, 32, 32]`, and digits `[N]`."""

    source: Tensor
    clean: Tensor
    blot: Tensor
    digits: Tensor


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all arms share; everything is kept under `output`.

    Args:
        output: an absolute path.
        choosing: whether edits are measured on the references that settings are chosen on, in place of those that are
            reported.
        changes: overrides of every run.
    """

    output: Path
    choosing: bool = False
    changes: tuple[str, ...] = ()

    @cached_property
    def judge(self) -> Judge:
        return ensure_judge()

    @cached_property
    def scans(self) -> tuple[np.ndarray, np.ndarray]:
        return load_scans()

    @property
    def learnt(self) -> list[int]:
        """Indices of the scans that the judge learned from, as the edit models do."""
        return split(len(self.scans[0]))[0].tolist()

    @cached_property
    def held(self) -> Held:
        """Blotted scans of which neither the judge nor an edit model has seen one; settings were chosen on every second
        of them, and the others are reported."""
        scans = split(len(self.scans[0]))[1].tolist()[int(not self.choosing) :: 2]
        chosen = [(scan, blot) for blot in range(HELD_BLOTS) for scan in scans]
        papers, inks = [paper(self.scans[0][scan]) for scan, _ in chosen], [ink(*each) for each in chosen]
        return Held(
            source=_pixels([spill(*each) for each in zip(papers, inks, strict=True)]),
            clean=_pixels(papers),
            blot=torch.from_numpy(np.stack(inks) > 0)[:, None],
            digits=torch.from_numpy(self.scans[1][[scan for scan, _ in chosen]]),
        )

    @cached_property
    def data(self) -> Path:
        """The folder of the images that are trained on, and of the files that list them."""
        target = self.output / f"data-{_mark([BLOTS, SLOPPY, _DATA])}"
        if not target.is_dir():
            with whole(target) as folder:
                for name in FOLDERS:
                    (folder / name).mkdir()
                places = [(scan, blot) for blot in range(BLOTS) for scan in self.learnt]
                for place, (scan, blot) in enumerate(places):
                    edits = _edits(paper(self.scans[0][scan]), ink(scan, blot), place)
                    for name, pixels in edits.items():
                        Image.fromarray(pixels).save(folder / name / f"{scan:04d}-{blot}.png", compress_level=1)
                for name, sets in _DATA.items():
                    (folder / f"{name}.json").write_text(json.dumps(sets, indent=2), encoding="utf-8")
        return target

    def start(self, seed: int) -> Path:
        """The folder of the pipeline with a transformer at weights drawn from `seed`."""
        base = ensure_untrained()
        target = self.output / f"start-{_mark([NETWORK, base.name])}-{seed}"
        if not target.is_dir():
            with whole(target) as folder:
                build(base, seed).save_pretrained(folder, safe_serialization=True)
        return target

    def trained(self, arm: str, sections: dict[str, Any], start: Path, seed: int) -> tuple[Path, float]:
        """Train an arm from the pipeline in `start`, unless its result is there.

        Returns:
            The folder of the pipeline or of the LoRA, and the processor's seconds of the run.
        """
        document = {
            **sections,
            "model": {"pretrained_model_name_or_path": str(start), "pipeline_arguments": ARGUMENTS},
            "data": str(self.data / f"{sections['data']}.json"),
            "training": {**sections["training"], "seed": seed, "checkpoints_total_limit": 1},
            "validation": {"prompts": []},
            "logging": {"trackers": []},
            "cache_dir": str(self.output / "cache"),
        }
        plain = json.dumps([document, self.changes]).replace(str(self.output), "")
        folder = self.output / f"{arm.lower().replace(' ', '-')}-{seed}-{_mark(plain)}"
        done = folder / "seconds.json"
        if not done.is_file():
            file = self.output / f"{folder.name}.json"
            file.write_text(json.dumps({**document, "output_dir": str(folder)}, indent=2) + "\n", encoding="utf-8")
            began = time.process_time()
            resume = "latest" if any(folder.glob("checkpoint-*")) else None
            train(load_run(file, self.changes), resume=resume, progress=False)
            done.write_text(json.dumps(round(time.process_time() - began, 1)), encoding="utf-8")
        whole_pipeline = folder / "pipeline"
        return whole_pipeline if whole_pipeline.is_dir() else folder, json.loads(done.read_text(encoding="utf-8"))

    def scored(self, pipeline: Path, lora: Path | None = None) -> dict[str, float]:
        """Measure the edits of the held-out references by a stock pipeline, unless that was done."""
        file = (lora or pipeline) / f"edits-{_mark([self.choosing, HELD_BLOTS, STEPS, UNSEEN])}.json"
        if not file.is_file():
            measured = self.score(edit(stock(pipeline, lora), self.held.source))
            file.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def score(self, edits: Tensor) -> dict[str, float]:
        """Measure edits `[N, 3, 32, 32]` in [-1, 1] of the held-out references."""
        held = self.held
        score = self.judge.score(edits, held.digits)
        outside = ~held.blot.expand_as(edits)
        change, error = ((edits.clamp(-1, 1) - other).abs() / 2 for other in (held.source, held.clean))
        return {
            "blots_left": score.blot_rate,
            "digits_kept": score.digit_accuracy,
            "changed_outside": float(change[outside].mean()),
            "error_inside": float(error[~outside].mean()),
        }

    def given(self) -> dict[str, dict[str, float]]:
        """Measure what needs no training: the references as they are, the clean scans, and these as the autoencoder
        returns them."""
        vae = stock(self.start(0)).vae
        with torch.no_grad():
            returned = vae.decode(vae.encode(self.held.clean).latent_dist.mode()).sample
        rows = {
            "the reference as it is": self.held.source,
            "the clean scan": self.held.clean,
            "the clean scan through the autoencoder": returned,
        }
        return {name: self.score(pixels) for name, pixels in rows.items()}


def stock(folder: Path, lora: Path | None = None) -> FluxKontextPipeline:
    """Load a pipeline as any Diffusers user does, without flowhooks."""
    pipe = FluxKontextPipeline.from_pretrained(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def edit(pipe: FluxKontextPipeline, source: Tensor) -> Tensor:
    """Edit images `[N, 3, 32, 32]` in [-1, 1] as the instruction says; image i starts from seed `UNSEEN + i`."""
    parts = []
    for start in range(0, len(source), BATCH):
        some = source[start : start + BATCH]
        parts.append(
            pipe(
                image=(some + 1) / 2,
                prompt=[INSTRUCTION] * len(some),
                generator=[torch.Generator().manual_seed(UNSEEN + start + i) for i in range(len(some))],
                height=PIXELS,
                width=PIXELS,
                max_area=PIXELS**2,
                num_inference_steps=STEPS,
                output_type="pt",
                **ARGUMENTS,
            ).images
        )
    return torch.cat(parts).float() * 2 - 1


def paper(scan: np.ndarray) -> np.ndarray:
    """Return a scan, uint8 `[H, W]`, as an image `[H, W, 3]`."""
    return np.repeat(scan[..., None], 3, axis=2)


def ink(scan: int, blot: int) -> np.ndarray:
    """Return the opacity `[32, 32]` of one blot of a scan; none is one that the judge learned from."""
    return blot_opacity(np.random.default_rng([1, scan, blot]), PIXELS)


def _edits(clean: np.ndarray, opacity: np.ndarray, place: int) -> dict[str, np.ndarray]:
    """Return folder -> image of the edit at this place in the order."""
    blotted = spill(clean, opacity)
    wiped = np.where(opacity[..., None] > 0, np.uint8(255), clean)
    by_kind = {None: clean, LEFT: blotted, WIPED: wiped}
    return {
        "source": blotted,
        "edited": by_kind[SLOPPY[place % len(SLOPPY)]],
        "good": clean,
        "bad": by_kind[(LEFT, WIPED)[place % 2]],
        "where": (opacity > 0).astype(np.uint8) * 255,
    }


def _pixels(images: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _mark(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]

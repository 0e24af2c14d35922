"""Preference for one vendor's style, on the emoji of two: Flow-DPO, guarded or not, and SFT on the winners."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.emoji import PIXELS, STYLES, Emoji, ensure_emoji, load_emoji, picture, vocabulary
from benchmarks.evidence_edit import FIRST
from benchmarks.kept import kept
from flowhooks.config import load_run
from flowhooks.digits.judge import JudgeNetwork, frechet_distance, gaussian, infer
from flowhooks.digits.pipeline import encode, train_autoencoder
from flowhooks.digits.places import PIPELINE
from flowhooks.files import whole
from flowhooks.testing.text import clip_text_model, clip_tokenizer, t5_text_encoder, t5_tokenizer
from flowhooks.train import train

WINNER, LOSER = "google", "twitter"
_TOKENS, _WIDTH = 12, 64
NETWORK: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": _WIDTH,
    "pooled_projection_dim": _WIDTH,
    "axes_dims_rope": (8, 12, 12),
}
ARGUMENTS: dict[str, Any] = {"max_sequence_length": _TOKENS}
AUTOENCODER_STEPS = 1500
BASE: dict[str, Any] = {**FIRST, "data": "both", "training": {**FIRST["training"], "seed": 0}}
_LORA = {"type": "lora", "rank": 16, "alpha": 16}
_STEPS, _BATCH = 120, 16
RATE = 5e-4
_DPO = {"norm_type": "mean", "beta": 2000.0, "win_weight": 0.0, "stop_when": None}
DPO, SFT = "Flow-DPO", "SFT on the winners"
#: Arm -> its data, its method and its steps. A step of Flow-DPO costs 8 forwards of a batch, one of SFT 3.
ARMS: Mapping[str, tuple[str, dict[str, Any], int]] = {
    DPO: ("pairs", {"flow_dpo": _DPO}, _STEPS),
    f"{DPO}, win_weight": ("pairs", {"flow_dpo": {**_DPO, "win_weight": 1.0}}, _STEPS),
    SFT: ("winners", {"sft": {}}, round(_STEPS * 8 / 3)),
}
#: Images that are judged, and the steps each is drawn in; their seeds were looked at for no choice.
SAMPLES, SAMPLING_STEPS, UNSEEN, _AT_ONCE = 200, 10, 90_000, 100
JUDGE: dict[str, Any] = {"steps": 900, "batch": 64, "learning_rate": 4e-3, "seed": 0, "held_out": 0.2}


def build(emoji: list[Emoji], pixels: Tensor) -> FluxPipeline:
    """Build the pipeline, its autoencoder trained on `pixels`, its transformer at random weights."""
    words = vocabulary(emoji)
    clip, t5 = clip_tokenizer(words, max_length=_TOKENS), t5_tokenizer(words, max_length=_TOKENS)
    vae = train_autoencoder(pixels, steps=AUTOENCODER_STEPS, seed=PIPELINE["seed"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PIPELINE["seed"])
        encoders = clip_text_model(clip, _WIDTH), t5_text_encoder(t5, _WIDTH)
        for each in encoders:
            # With a smaller deviation the position outweighs the word, and all captions are alike.
            torch.nn.init.normal_(each.get_input_embeddings().weight, std=1.0)
        transformer = FluxTransformer2DModel(**NETWORK)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=PIPELINE["shift"]),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=clip,
        text_encoder_2=encoders[1],
        tokenizer_2=t5,
        transformer=transformer.eval(),
    )


@dataclass(frozen=True, kw_only=True)
class Style:
    """What all arms on the emoji share; everything is kept under `output`, an absolute path."""

    output: Path

    @cached_property
    def source(self) -> Path:
        return ensure_emoji()

    @cached_property
    def halves(self) -> tuple[list[Emoji], list[Emoji]]:
        """The emoji that models learn from, and those that the judge learns from."""
        emoji = load_emoji(self.source)
        order = np.random.default_rng(0).permutation(len(emoji))
        half = len(emoji) // 2
        return [emoji[i] for i in sorted(order[:half])], [emoji[i] for i in sorted(order[half:])]

    @cached_property
    def categories(self) -> list[str]:
        return sorted({each.category for half in self.halves for each in half})

    def pixels(self, vendor: str, emoji: list[Emoji]) -> Tensor:
        """Return one vendor's pictures `[N, 3, 32, 32]` in [-1, 1]."""
        stacked = np.stack([picture(self.source, vendor, each.code) for each in emoji])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1

    @cached_property
    def data(self) -> Path:
        """The folder of the pictures that models learn from, and of the files that list them."""
        target = self.output / "emoji-data"
        if not target.is_dir():
            with whole(target) as folder:
                for vendor in STYLES:
                    (folder / vendor).mkdir()
                    for each in self.halves[0]:
                        drawn = Image.fromarray(picture(self.source, vendor, each.code))
                        drawn.save(folder / vendor / f"{each.code}.png", compress_level=1)
                        (folder / vendor / f"{each.code}.txt").write_text(each.caption + "\n", encoding="utf-8")
                for name, sets in _SETS.items():
                    (folder / f"{name}.json").write_text(json.dumps(sets, indent=2), encoding="utf-8")
        return target

    @cached_property
    def start(self) -> Path:
        """The folder of the pipeline whose transformer has random weights."""
        target = self.output / f"emoji-start-{_mark([NETWORK, AUTOENCODER_STEPS])}"
        if not target.is_dir():
            learnt = self.halves[0]
            pixels = torch.cat([self.pixels(vendor, learnt) for vendor in STYLES])
            with whole(target) as folder:
                build([*learnt, *self.halves[1]], pixels).save_pretrained(folder, safe_serialization=True)
        return target

    @cached_property
    def base(self) -> Path:
        """The folder of the pipeline that learned both vendors' pictures."""
        return self._train("emoji-base", BASE, self.start) / "pipeline"

    @cached_property
    def judge(self) -> StyleJudge:
        return StyleJudge.fit(self)

    @cached_property
    def given(self) -> dict[str, dict[str, float]]:
        """What the judge says of real pictures, of these through the autoencoder, and of the base's."""
        learnt = self.halves[0][:: len(self.halves[0]) // SAMPLES][:SAMPLES]
        vae = stock(self.start).vae
        rows = {}
        for vendor, style in STYLES.items():
            pixels = self.pixels(vendor, learnt)
            with torch.no_grad():
                returned = vae.decode(encode(vae, pixels)).sample
            rows[style] = self.judge.score(pixels, learnt)
            rows[f"{style} through the autoencoder"] = self.judge.score(returned, learnt)
        rows["base"] = self._judged(None)
        return rows

    def row(self, arm: str, seed: int) -> dict[str, Any]:
        """Train an arm from the base and measure it, unless that was done."""
        data, method, steps = ARMS[arm]
        training = {"max_train_steps": steps, "train_batch_size": _BATCH, "learning_rate": RATE, "seed": seed}
        sections = {"adapter": _LORA, "data": data, "method": method, "training": training}
        judged = [SAMPLES, SAMPLING_STEPS, UNSEEN, JUDGE]
        key = {"arm": arm, "run": sections, "base": [BASE, NETWORK, AUTOENCODER_STEPS], "judged": judged}

        def measure() -> dict[str, Any]:
            began = time.process_time()
            folder = self._train(arm, sections, self.base)
            seconds = round(time.process_time() - began, 1)
            return {"arm": arm, "seed": seed, "seconds": seconds, **self._judged(folder)}

        return kept(self.output / "emoji.jsonl", key, measure)

    def _train(self, name: str, sections: Mapping[str, Any], start: Path) -> Path:
        document = {
            **sections,
            "model": {"pretrained_model_name_or_path": str(start), "pipeline_arguments": ARGUMENTS},
            "data": str(self.data / f"{sections['data']}.json"),
            "training": {**sections["training"], "checkpoints_total_limit": 1},
            "validation": {"prompts": []},
            "logging": {"trackers": [], "report": False},
            "cache_dir": str(self.output / "emoji-cache"),
        }
        mark = _mark(json.dumps(document).replace(str(self.output), ""))
        folder = self.output / f"{name.lower().replace(', ', '-').replace(' ', '-')}-{mark}"
        if not (folder / "done").is_file():
            file = self.output / f"{folder.name}.json"
            file.write_text(json.dumps({**document, "output_dir": str(folder)}, indent=2) + "\n", encoding="utf-8")
            resume = "latest" if any(folder.glob("checkpoint-*")) else None
            train(load_run(file), resume=resume, progress=False)
            (folder / "done").touch()
        return folder

    def _judged(self, lora: Path | None) -> dict[str, float]:
        learnt = self.halves[0][:: len(self.halves[0]) // SAMPLES][:SAMPLES]
        return self.judge.score(drawn(stock(self.base, lora), learnt), learnt)


_PAIRED = {"dataset_type": "conditioning", "conditioning_type": "reference_strict", "source_dataset_id": "winners"}
_SETS: dict[str, list[dict[str, Any]]] = {
    "both": [{"id": style.lower(), "instance_data_dir": vendor} for vendor, style in STYLES.items()],
    "winners": [{"id": "winners", "instance_data_dir": WINNER}],
    "pairs": [
        {"id": "winners", "instance_data_dir": WINNER, "conditioning_data": ["losers"]},
        {"id": "losers", "instance_data_dir": LOSER, **_PAIRED},
    ],
}


@dataclass(frozen=True, kw_only=True)
class StyleJudge:
    """Says which vendor drew a picture, and of which category it is.

    Args:
        mean, covariance: of its features of the winner's pictures that models learn from.
        held_out: accuracies on pictures that neither it nor a model learned from.
    """

    network: JudgeNetwork
    categories: list[str]
    mean: Tensor
    covariance: Tensor
    held_out: dict[str, float]

    @classmethod
    def fit(cls, style: Style) -> StyleJudge:
        """Train on four fifths of the half that models do not learn from."""
        emoji = style.halves[1]
        held = int(len(emoji) * JUDGE["held_out"])
        order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(JUDGE["seed"]))
        test, learnt = order[:held], order[held:]
        pixels = torch.stack([style.pixels(vendor, emoji) for vendor in (WINNER, LOSER)], 1)
        kinds = torch.tensor([style.categories.index(each.category) for each in emoji])
        network = _fit(pixels[learnt], kinds[learnt])
        right = []
        for side in (0, 1):
            category, loser, _ = infer(network, pixels[test, side])
            right.append((category.argmax(1) == kinds[test], (loser > 0) == bool(side)))
        held_out = {
            "emoji": held,
            "category_accuracy": torch.cat([each[0] for each in right]).double().mean().item(),
            "vendor_accuracy": torch.cat([each[1] for each in right]).double().mean().item(),
        }
        mean, covariance = gaussian(infer(network, style.pixels(WINNER, style.halves[0]))[2])
        return cls(network=network, categories=style.categories, mean=mean, covariance=covariance, held_out=held_out)

    def score(self, pixels: Tensor, emoji: list[Emoji]) -> dict[str, float]:
        """Measure images `[N, 3, 32, 32]` in [-1, 1] of these emoji."""
        category, loser, features = infer(self.network, pixels.clamp(-1, 1))
        wanted = torch.tensor([self.categories.index(each.category) for each in emoji])
        mean, covariance = gaussian(features)
        return {
            "winner_share": (loser <= 0).double().mean().item(),
            "category_accuracy": (category.argmax(1) == wanted).double().mean().item(),
            "frechet": frechet_distance(mean.numpy(), covariance.numpy(), self.mean.numpy(), self.covariance.numpy()),
        }


def _fit(pixels: Tensor, kinds: Tensor) -> JudgeNetwork:
    """Train on pairs `[N, 2, 3, 32, 32]`, winner first, of these categories `[N]`, disturbed as a generator might."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(JUDGE["seed"])
        network = JudgeNetwork().train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=JUDGE["learning_rate"], weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=JUDGE["learning_rate"], total_steps=JUDGE["steps"]
        )
        for _ in range(JUDGE["steps"]):
            chosen = torch.randint(len(pixels), (JUDGE["batch"],))
            side = torch.randint(2, (JUDGE["batch"],))
            images = pixels[chosen, side]
            blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            images = images + torch.rand(len(images), 1, 1, 1) * (blurred - images)
            down, across = (int(step) for step in torch.randint(0, 5, (2,)))
            images = F.pad(images, (2, 2, 2, 2), mode="replicate")[..., down : down + PIXELS, across : across + PIXELS]
            images = images + 0.1 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)
            category, loser, _ = network(images.clamp(-1, 1))
            loss = F.cross_entropy(category, kinds[chosen]) + F.binary_cross_entropy_with_logits(loser, side.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def stock(folder: Path, lora: Path | None = None) -> FluxPipeline:
    """Load a pipeline as any Diffusers user does, without flowhooks."""
    pipe = FluxPipeline.from_pretrained(folder)
    if lora is not None:
        pipe.load_lora_weights(lora)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def drawn(pipe: FluxPipeline, emoji: list[Emoji]) -> Tensor:
    """Draw these emoji, `[N, 3, 32, 32]` in [-1, 1]; image i starts from seed `UNSEEN + i`."""
    parts = []
    for first in range(0, len(emoji), _AT_ONCE):
        some = emoji[first : first + _AT_ONCE]
        parts.append(
            pipe(
                prompt=[each.caption for each in some],
                generator=[torch.Generator().manual_seed(UNSEEN + first + i) for i in range(len(some))],
                height=PIXELS,
                width=PIXELS,
                num_inference_steps=SAMPLING_STEPS,
                output_type="pt",
                **ARGUMENTS,
            ).images
        )
    return torch.cat(parts).float() * 2 - 1


def _mark(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]

"""Preference objectives and their guards on the embedded digits, at the recipe's rate and at more than is good for
it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.kept import kept
from flowhooks.config import load_run
from flowhooks.digits.judge import Judge, ensure_judge
from flowhooks.digits.model import ensure_model
from flowhooks.digits.pipeline import encode, read_pixels
from flowhooks.digits.places import example
from flowhooks.digits.report import asked_digits, draw, load_stock
from flowhooks.digits.scans import caption, ensure_data, load_scans
from flowhooks.manifest import HISTORY
from flowhooks.train import train

RECIPE = "flow_dpo/digits.json"
#: The recipe's rate, and how many times it.
RATE, TIMES = 1e-4, (1, 5, 20)
STEPS, BATCH, LOGGED = 200, 8, 10
#: Images that are judged, and the steps each is drawn in; their seeds were looked at for no choice.
SAMPLES, SAMPLING_STEPS, UNSEEN = 200, 10, 90_000
#: A published beta of means.
BETA = 2000.0
_MASK = {"type": "mask_reducer", "mask_dilate": 1}
_FIXED = {"type": "flow_dpo", "norm_type": "masked_mean", "beta": BETA, "win_weight": 0.0, "stop_when": None}
_RECIPE = {**_FIXED, "beta": 1.0, "auto_beta": True}
_ANCHOR = {"type": "anchor_regularizer", "role": "reference", "weight": 0.05}
_STOP = {"detector": "win_error", "limit": 1.5, "patience": 3}
#: Where the gradient factor is 0.05 under the beta that the recipe ends with at its own rate, 53.
CAP = 0.11
#: Of an objective that has guards, none is on.
_BARE = {"norm_type": "masked_mean", "win_weight": 0.0, "stop_when": None}
NO_GUARD, FIXED = "no guard", f"beta {BETA:,.0f}"
#: Arm -> its hooks beside the masks'. The first is the recipe as it stands, the next three have a guard each.
ARMS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    NO_GUARD: [_RECIPE, _ANCHOR],
    "margin_cap": [{**_RECIPE, "margin_cap": CAP}, _ANCHOR],
    "win_weight": [{**_RECIPE, "win_weight": 1.0}, _ANCHOR],
    "stop_when": [{**_RECIPE, "stop_when": _STOP}, _ANCHOR],
    "ipo": [{"type": "ipo", "beta": 100.0, **_BARE}],
    "linear_dpo": [{"type": "linear_dpo", "beta": 5000.0, **_BARE}],
    "mapo": [{"type": "mapo", "beta": 1000.0, "norm_type": "masked_mean"}],
    "kto": [{"type": "kto", "label": None, "beta": 1000.0, **_BARE}],
    FIXED: [_FIXED],
    f"{FIXED}, margin_cap": [{**_FIXED, "margin_cap": round(5.89 / BETA, 6)}],
    f"{FIXED}, win_weight": [{**_FIXED, "win_weight": 1.0}],
}
#: Arms that are trained at the first seed only.
ONCE = frozenset({FIXED, f"{FIXED}, margin_cap", f"{FIXED}, win_weight"})


@dataclass(frozen=True, kw_only=True)
class Digits:
    """What all arms on the digits share; everything is kept under `output`."""

    output: Path

    @cached_property
    def judge(self) -> Judge:
        return ensure_judge()

    @cached_property
    def base(self) -> Path:
        return ensure_model()

    @cached_property
    def probe(self) -> Probe:
        return Probe.of(self.base)

    @cached_property
    def before(self) -> dict[str, float]:
        """What the judge says of the base."""
        key = {"base": self.base.name, **_sampling()}
        return kept(self.output / "digits.jsonl", key, lambda: self._judged(load_stock(self.base)))

    def row(self, arm: str, times: int, seed: int) -> dict[str, Any]:
        """Train an arm and measure it, unless that was done."""
        hooks = [*ARMS[arm], _MASK]
        training = {
            "max_train_steps": STEPS,
            "train_batch_size": BATCH,
            "learning_rate": times * RATE,
            "log_every_steps": LOGGED,
            "seed": seed,
        }
        key = {"base": self.base.name, "hooks": hooks, "training": training, **_sampling()}
        found = kept(self.output / "digits.jsonl", key, lambda: self._trained(arm, hooks, training))
        return {**found, "arm": arm}

    def _trained(self, arm: str, hooks: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> dict[str, Any]:
        mark = hashlib.sha256(json.dumps([hooks, training]).encode()).hexdigest()[:8]
        folder = self.output / f"{arm.replace(' ', '-')}-{mark}"
        overrides = (
            f"hooks={json.dumps(hooks)}",
            *(f"training.{name}={value}" for name, value in training.items()),
            "validation={}",
            'logging={"trackers": [], "report": false}',
            f"output_dir={folder}",
        )
        began = time.process_time()
        resume = "latest" if any(folder.glob("checkpoint-*")) else None
        result = train(load_run(example(RECIPE), overrides, complete=True), resume=resume, progress=False)
        seconds = time.process_time() - began
        logged = [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]
        name = hooks[0]["type"]
        ratios = [line[f"{name}_policy_win_err"] / line[f"{name}_ref_win_err"] for line in logged if name != "mapo"]
        return {
            "arm": arm,
            "times": round(training["learning_rate"] / RATE),
            "seed": training["seed"],
            "steps": result.step,
            "stopped": result.stopped is not None,
            "loss": logged[-1]["loss"],
            "most_logged": max(ratios, default=None),
            "seconds": round(seconds, 1),
            **self._judged(load_stock(self.base, result.output_dir)),
        }

    def _judged(self, pipe: Any) -> dict[str, float]:
        pixels = draw(pipe, SAMPLES, first_seed=UNSEEN, steps=SAMPLING_STEPS, progress=False)
        score = self.judge.score(pixels, asked_digits(SAMPLES))
        return {
            "blot_rate": score.blot_rate,
            "digit_accuracy": score.digit_accuracy,
            "frechet": score.frechet,
            **self.probe.errors(pipe),
        }


def _sampling() -> dict[str, int]:
    return {"samples": SAMPLES, "sampling_steps": SAMPLING_STEPS, "first_seed": UNSEEN, "probed": Probe.COUNT}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measures the error of a flow on both sides of fixed pairs, at fixed noise and fixed sigmas, without flowhooks.

    Args:
        sides: latents `[N, 4, 8, 8]` of the preferred and of the rejected images.
        conditions: text conditions of the captions.
        own: the errors of the reference.
    """

    COUNT: ClassVar[int] = 256

    sides: Mapping[str, Tensor]
    conditions: tuple[Tensor, Tensor]
    own: Mapping[str, float]

    @classmethod
    @torch.no_grad()
    def of(cls, base: Path) -> Probe:
        """Encode pairs with the pipeline in `base`, which is the reference."""
        pipe, data = load_stock(base), ensure_data()
        digits = load_scans()[1][: cls.COUNT]
        shift, scale = pipe.vae.config.shift_factor, pipe.vae.config.scaling_factor
        sides = {
            side: (encode(pipe.vae, read_pixels(data / folder)[: cls.COUNT]) - shift) * scale
            for side, folder in (("win", "preferred"), ("lose", "rejected"))
        }
        texts, _, pooled, _ = pipe.encode_prompt(
            prompt=[caption(digit) for digit in digits], prompt_2=None, prompt_3=None, do_classifier_free_guidance=False
        )
        found = cls(sides=sides, conditions=(texts, pooled), own={})
        return cls(sides=sides, conditions=(texts, pooled), own=found._errors(pipe))

    def errors(self, pipe: Any) -> dict[str, float]:
        """Return `win_error` and `lose_error`, each over that of the reference: 1 is as good."""
        return {f"{side}_error": value / self.own[side] for side, value in self._errors(pipe).items()}

    @torch.no_grad()
    def _errors(self, pipe: Any) -> dict[str, float]:
        noise = torch.randn(self.sides["win"].shape, generator=torch.Generator().manual_seed(UNSEEN))
        order = torch.randperm(self.COUNT, generator=torch.Generator().manual_seed(UNSEEN))
        sigma = (order + 0.5) / self.COUNT
        mixed = sigma[:, None, None, None]
        found = {}
        for side, clean in self.sides.items():
            predicted = pipe.transformer(
                hidden_states=(1 - mixed) * clean + mixed * noise,
                timestep=1000 * sigma,
                encoder_hidden_states=self.conditions[0],
                pooled_projections=self.conditions[1],
            ).sample
            found[side] = (predicted - (noise - clean)).square().mean().item()
        return found

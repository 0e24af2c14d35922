"""Does DMD make the embedded pipeline draw in four steps, as a plain LoRA under the stock scheduler?"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.kept import kept
from benchmarks.spread import spread
from flowhooks.commands.demo import planned_lora
from flowhooks.digits.judge import ensure_judge, frechet_distance, gaussian, infer
from flowhooks.digits.model import ensure_model
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import asked_digits, draw, load_stock, machine
from flowhooks.digits.scans import resolve_data
from flowhooks.hooks.distribution_matching.dmd import jump_times
from flowhooks.train import train

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RECIPE = "dmd/digits.json"
STEPS, MANY = 4, 20
#: Images that are judged; their seeds were looked at for no choice.
SAMPLES, UNSEEN = 300, 90_000
RENOISE, EULER = "renoise", "euler"
_METHOD = "method.dmd"
#: Arm -> how the student samples, and what it changes of the recipe.
ARMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    EULER: (EULER, ()),
    RENOISE: (RENOISE, (f"{_METHOD}.student=renoise",)),
    "policy_every 1": (EULER, (f"{_METHOD}.policy_every=1",)),
    "judged_from 0.02": (EULER, (f"{_METHOD}.judged_from=0.02",)),
    "plain SFT": (EULER, ('method={"sft": {}}',)),
}
_QUIET = ("validation={}", 'logging={"trackers": [], "report": false}', "training.log_every_steps=50")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all arms share; everything is kept under `output`, an absolute path."""

    output: Path

    @cached_property
    def base(self) -> Path:
        return ensure_model()

    @cached_property
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the judge's features on the images that base and runs were trained on."""
        return gaussian(infer(ensure_judge().network, read_pixels(Path(resolve_data("digits:base"))))[2])

    def before(self, student: str, steps: int) -> dict[str, Any]:
        """What the judge says of the base, sampled as a student is."""
        return self._kept({"student": student, "steps": steps}, lambda: self._judged(None, student, steps))

    def row(self, arm: str, seed: int) -> dict[str, Any]:
        """Train an arm and judge it, unless that was done."""
        student, changes = ARMS[arm]
        overrides = (*changes, f"training.seed={seed}", *_QUIET)
        folder, run = planned_lora(self.output, self.base, overrides, RECIPE)

        def measured() -> dict[str, Any]:
            began = time.process_time()
            train(run, resume="latest" if any(folder.glob("checkpoint-*")) else None, progress=False)
            seconds = time.process_time() - began
            return {"seed": seed, "seconds": seconds, **self._judged(folder, student, STEPS)}

        return {**self._kept({"overrides": overrides}, measured), "arm": arm}

    def _kept(self, key: Mapping[str, Any], measure: Any) -> dict[str, Any]:
        whole = {"base": self.base.name, "samples": SAMPLES, "first_seed": UNSEEN, **key}
        return kept(self.output / "dmd.jsonl", whole, measure)

    def _judged(self, lora: Path | None, student: str, steps: int) -> dict[str, Any]:
        pipe = load_stock(self.base, lora) if lora else load_stock(self.base)
        stochastic = student == RENOISE
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            pipe.scheduler.config, stochastic_sampling=stochastic
        )
        # Unshifted: the pipeline's scheduler shifts it.
        pixels = draw(pipe, SAMPLES, first_seed=UNSEEN, sigmas=jump_times(steps, 1.0)[:-1].tolist(), progress=False)
        logits, _, features = infer(ensure_judge().network, pixels)
        mean, covariance = gaussian(features)
        return {
            "frechet": frechet_distance(mean.numpy(), covariance.numpy(), self.data[0].numpy(), self.data[1].numpy()),
            "digit_accuracy": float((logits.argmax(1) == asked_digits(SAMPLES)).double().mean()),
        }


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and write how far its images are from data."""
    bench = Bench(output=output.resolve())
    base = {
        f"{student}, {steps} steps": bench.before(student, steps)
        for student in (RENOISE, EULER)
        for steps in (STEPS, MANY)
    }
    rows = [bench.row(arm, seed) for seed in seeds for arm in ARMS if arms is None or arm in arms]
    facts = {"base": base, "rows": rows, "arms": {name: list(ARMS[name]) for name in ARMS}, "machine": machine()}
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "dmd.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (docs / "dmd.md").write_text(page(facts), encoding="utf-8")
    plot(facts, docs / "dmd.png")


def verdict(facts: Mapping[str, Any]) -> str:
    """Say how much of the way from few steps of the base to many of its own the students go, in the median."""
    parts = []
    many = facts["base"][f"{EULER}, {MANY} steps"]["frechet"]
    for arm in (EULER, RENOISE):
        found = [row["frechet"] for row in facts["rows"] if row["arm"] == arm]
        if found:
            few, middle = facts["base"][f"{arm}, {STEPS} steps"]["frechet"], statistics.median(found)
            parts.append(f"*{arm}* goes {(few - middle) / (few - many):.0%} of the way, from {few:.1f} to {middle:.1f}")
    if not parts:
        return "Neither student was trained."
    return f"From {STEPS} steps of the base to its {MANY} steps of *{EULER}*, {many:.1f}, {'; '.join(parts)}."


def page(facts: Mapping[str, Any]) -> str:
    """Return the page's text."""
    lines = ["| | Fréchet distance | digits | seconds | seeds |", "| --- | --- | --- | --- | --- |"]
    for name, found in facts["base"].items():
        lines.append(f"| base, {name} | {found['frechet']:.1f} | {found['digit_accuracy']:.1%} | | |")
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in facts["rows"]:
        by_arm.setdefault(row["arm"], []).append(row)
    for arm, rows in by_arm.items():
        cells = [
            spread([row["frechet"] for row in rows], "{:.1f}"),
            spread([row["digit_accuracy"] for row in rows], "{:.1%}"),
            spread([row["seconds"] for row in rows], "{:.0f}"),
            ", ".join(str(row["seed"]) for row in rows),
        ]
        lines.append(f"| {arm}, {STEPS} steps | {' | '.join(cells)} |")
    where = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    return f"""# Evidence: DMD on the embedded digits

Fréchet distance, in the judge's features, of {SAMPLES} generated images to the images that base and runs were trained
on, and the share whose digit is the one asked for.

{chr(10).join(lines)}

Median (lowest to highest) over training seeds. Every row samples the same prompts from the same seeds ({UNSEEN} and
up), no guidance, with the stock pipeline, `load_lora_weights` and `sigmas` evenly spaced; *renoise* under
`FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`, *euler* under the same without. *Seconds* are processor
time of the training.

*euler* is `examples/{RECIPE}` as it stands: a student of {STEPS} steps, `policy_every` 5. The others change one option,
with as many updates, and are sampled by *euler* unless they are *renoise*. *plain SFT* trains the same LoRA on the same
images. Settings were chosen on training seed 0 and other sampling seeds: `policy_every` 2 and 5 were tried, and
`judged_from`.

{verdict(facts)}

![Fréchet distance of each arm](dmd.png)

Reproduce: `python -m benchmarks.evidence dmd`. Measured on: {where}. Numbers: `dmd.json`.
"""


def plot(facts: Mapping[str, Any], file: Path) -> None:
    """Draw each arm's distances, beside the base's."""
    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    names = [f"base, {name}" for name in facts["base"]]
    values = [[found["frechet"]] for found in facts["base"].values()]
    for arm in dict.fromkeys(row["arm"] for row in facts["rows"]):
        names.append(f"{arm}, {STEPS} steps")
        values.append([row["frechet"] for row in facts["rows"] if row["arm"] == arm])
    for place, found in enumerate(values):
        axis.plot(found, [place] * len(found), "o", color="grey" if names[place].startswith("base") else "C0")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0)
    axis.set_xlabel("Fréchet distance")
    figure.savefig(file, dpi=150)

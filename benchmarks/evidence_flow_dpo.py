"""Does masked Flow-DPO stop a pipeline from spilling ink, and do mask and anchor matter?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

from flowhooks.commands.demo import trained_lora
from flowhooks.digits.judge import Score, ensure_judge
from flowhooks.digits.model import ensure_model
from flowhooks.digits.report import SAMPLES, STEPS, asked_digits, draw, load_stock, machine

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_ANCHOR = {"type": "anchor_regularizer", "role": "reference", "weight": 0.05}
_MASKED = {"type": "flow_dpo", "norm_type": "masked_mean", "auto_beta": True}
#: Arm -> overrides of examples/flow_dpo/digits.json.
ARMS: dict[str, tuple[str, ...]] = {
    "masked": (),
    "unmasked": ("hooks=" + json.dumps([{"type": "flow_dpo", "norm_type": "mean", "auto_beta": True}, _ANCHOR]),),
    "no anchor": ("hooks=" + json.dumps([_MASKED, {"type": "mask_reducer", "mask_dilate": 1}]),),
    "twice as long": ("training.max_train_steps=400",),
}
#: Sampling seeds that no setting was chosen on; the demo draws from others.
UNSEEN = 90_000
_MEASURES = {"blot_rate": "blot rate", "digit_accuracy": "digit accuracy", "frechet": "Fréchet distance"}


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and write what the judge says of each."""
    judge, base, digits = ensure_judge(), ensure_model(), asked_digits(SAMPLES)
    before = judge.score(draw(load_stock(base), title="base", first_seed=UNSEEN), digits)
    print("base", before, flush=True)
    found: dict[str, list[Score]] = {}
    for arm in arms or ARMS:
        for seed in seeds:
            lora, _ = trained_lora(output, base, True, overrides=(*ARMS[arm], f"training.seed={seed}"))
            score = judge.score(draw(load_stock(base, lora), title=f"{arm}, seed {seed}", first_seed=UNSEEN), digits)
            print(arm, seed, score, flush=True)
            found.setdefault(arm, []).append(score)
    docs.mkdir(parents=True, exist_ok=True)
    facts = {
        "base": asdict(before),
        "arms": {arm: [asdict(score) for score in scores] for arm, scores in found.items()},
        "overrides": {arm: ARMS[arm] for arm in found},
        "seeds": list(seeds),
        "sampling": {"count": SAMPLES, "first_seed": UNSEEN, "steps": STEPS, "guidance_scale": 1.0},
        "judge_held_out": judge.held_out,
        "machine": machine(),
    }
    (docs / "flow_dpo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (docs / "flow_dpo.md").write_text(_page(before, found, seeds, judge.held_out), encoding="utf-8")
    _plot(before, found, docs / "flow_dpo.png")


def verdict(before: Score, after: Sequence[Score]) -> tuple[bool, str]:
    """Whether the medians reach the goal: blots to less than half, digits down by at most three points."""
    blots = statistics.median(score.blot_rate for score in after)
    digits = statistics.median(score.digit_accuracy for score in after)
    reached = blots < before.blot_rate / 2 and before.digit_accuracy - digits <= 0.03
    sentence = (
        f"The median blot rate goes from {before.blot_rate:.1%} to {blots:.1%} "
        f"({blots / before.blot_rate:.2f} of the base's), digit accuracy from {before.digit_accuracy:.1%} to "
        f"{digits:.1%} ({(digits - before.digit_accuracy) * 100:+.1f} points)."
    )
    return reached, sentence


def _page(before: Score, found: dict[str, list[Score]], seeds: Sequence[int], held: dict[str, float]) -> str:
    rows = [f"| base | {before.blot_rate:.1%} | {before.digit_accuracy:.1%} | {before.frechet:.1f} |"]
    rows += [
        f"| {arm} | " + " | ".join(_spread([getattr(s, key) for s in scores], key) for key in _MEASURES) + " |"
        for arm, scores in found.items()
    ]
    reached, sentence = verdict(before, found["masked"]) if "masked" in found else (None, "The main arm was not run.")
    goal = {True: "Reached.", False: "**Not reached.**", None: ""}[reached]
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    body = "\n".join(rows)
    return f"""# Evidence: masked Flow-DPO on the embedded digits

Goal: the blot rate falls to less than half of the base's, digit accuracy by at most 3 points, in the median over
training seeds. {goal} {sentence}

|  | blot rate | digit accuracy | Fréchet distance |
| --- | --- | --- | --- |
{body}

Median (lowest to highest) over training seeds {", ".join(str(seed) for seed in seeds)}. Every row samples the same
{SAMPLES} prompts from the same seeds ({UNSEEN} and up), {STEPS} steps, no guidance, with the stock pipeline and
`load_lora_weights`. *masked* is `examples/flow_dpo/digits.json` as it stands; *unmasked* uses `mean` and no mask;
*no anchor* leaves out the anchor; *twice as long* trains 400 steps, the example's first setting, which was halved after
it had been measured on the demo's sampling seeds. The seeds of this table were looked at for no choice.

![blot rate, digit accuracy and Fréchet distance of each arm](flow_dpo.png)

The judge saw real scans only. Its recipe was fixed before any tuning; the blots were made larger once, after a first
run, and it was trained anew on them. On {held["pairs"]:.0f} held-out pairs it finds blots
with {held["blot_accuracy"]:.1%} accuracy and reads {held["digit_accuracy_clean"]:.1%} of clean digits. The Fréchet
distance is to all 1,797 clean scans in its features.

Reproduce: `python -m benchmarks.evidence flow_dpo`. Measured on: {where}. Numbers: `flow_dpo.json`.
"""


def _spread(values: list[float], key: str) -> str:
    form = "{:.1f}" if key == "frechet" else "{:.1%}"
    middle, low, high = (form.format(each(values)) for each in (statistics.median, min, max))
    return f"{middle} ({low} to {high})"


def _plot(before: Score, found: dict[str, list[Score]], file: Path) -> None:
    figure, axes = plt.subplots(1, len(_MEASURES), figsize=(10, 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, _MEASURES.items(), strict=True):
        axis.axhline(getattr(before, key), color="grey", linestyle="--", label="base")
        for place, scores in enumerate(found.values()):
            values: list[Any] = [getattr(score, key) for score in scores]
            axis.plot([place] * len(values), values, "o", color=f"C{place}", alpha=0.6)
            axis.plot([place - 0.2, place + 0.2], [statistics.median(values)] * 2, color=f"C{place}", linewidth=2)
        axis.set_xticks(range(len(found)), list(found), rotation=15)
        axis.set_xlim(-0.5, len(found) - 0.5)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)

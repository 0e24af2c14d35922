"""The page, the numbers and the plot of the evidence of an edit model."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.spread import spread

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

#: Measure -> its name, and how it is printed.
MEASURES = {
    "blots_left": ("blots left", "{:.1%}"),
    "digits_kept": ("digits kept", "{:.1%}"),
    "changed_outside": ("changed outside the blot", "{:.2%}"),
    "error_inside": ("error where the blot was", "{:.2%}"),
}
SECONDS = ("processor seconds", "{:.0f}")
BEFORE, DPO, EQUAL, SAME = "SFT", "masked Flow-DPO", "SFT on the good edits", "SFT on the same edits"


def write_page(docs: Path, facts: Mapping[str, Any]) -> None:
    """Write `edit.md`, `edit.json` and `edit.png` into a folder."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "edit.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (docs / "edit.md").write_text(page(facts), encoding="utf-8")
    plot(facts, docs / "edit.png")


def changes(facts: Mapping[str, Any], arm: str, other: str, measure: str) -> list[float]:
    """Return by how much an arm's measure is above another arm's, seed by seed."""
    arms = facts["arms"]
    return [a[measure] - b[measure] for a, b in zip(arms[arm], arms[other], strict=True)]


def verdict(facts: Mapping[str, Any], arm: str, other: str) -> str:
    """Say what an arm adds over another one: only what all seeds agree on is called more or fewer."""
    sentences = []
    for measure in MEASURES:
        less = measure != "digits_kept"
        moved = changes(facts, arm, other, measure)
        middle, low, high = (100 * each(moved) for each in (statistics.median, min, max))
        clear = high < 0 or low > 0
        word = ("better" if (middle < 0) is less else "worse") if clear else "not clearly different"
        sentences.append(f"{MEASURES[measure][0]} {middle:+.1f} ({low:+.1f} to {high:+.1f}), {word}")
    return f"*{arm}* against *{other}*: " + "; ".join(sentences) + "."


def page(facts: Mapping[str, Any]) -> str:
    """Return the page's text."""
    held, sampling = facts["judge_held_out"], facts["sampling"]
    first, after = (facts["runs"][arm]["training"] for arm in (BEFORE, DPO))
    against = [verdict(facts, DPO, other) for other in (BEFORE, EQUAL, SAME) if other in facts["arms"]]
    verdicts = "\n".join(f"* {sentence}" for sentence in against)
    where = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    return f"""# Evidence: an edit model that removes blots from digits

A `FluxKontextPipeline` of {facts["weights"] / 1e6:.1f} million weights around the autoencoder of the embedded digits
gets a blotted scan as its reference and the instruction "remove the blot". SFT trains the whole network from random
weights, {first["max_train_steps"]} steps of {first["train_batch_size"]}, on edits of which half are good, a quarter
leave the blot where it is, and a quarter wipe the digit away with it. From there a LoRA is trained in three ways of
equal cost:

* *{DPO}*: {after["max_train_steps"]} steps of {after["train_batch_size"]} pairs, the good edit against one
  that left the blot or wiped the digit, compared where the blot is, with an anchor;
* *{EQUAL}*: as much SFT on the preferred sides of these pairs;
* *{SAME}*: as much SFT on the edits of the first training.

What Flow-DPO adds, in points, as the median (lowest to highest) of the differences seed by seed; *better* and *worse*
are what all seeds agree on:

{verdicts}

{_table(facts)}

Median (lowest to highest) over training seeds {", ".join(str(seed) for seed in facts["seeds"])}, which also draw the
first weights. Every row edits the same {sampling["references"]} references from the same seeds
({sampling["first_seed"]} and up) in {sampling["steps"]} steps, with the stock pipeline and `load_lora_weights`. *Blots
left* and *digits kept* are what the judge of the embedded digits says of the results. *Changed outside the blot* is the
mean change of a pixel against the reference where that has no blot, *error where the blot was* the mean difference from
the clean scan where it has one, both in parts of the range from black to white. What the autoencoder makes of the clean
scan is the least that a model of its latents can reach.

![blots left, digits kept and both differences of each arm](edit.png)

Neither the edit models nor the judge learned from the scans of these references or from their blots; the autoencoder
saw all scans. Settings were chosen at one seed, on references from other held-out scans: how long each training is, and
of the rates 1e-4 and 5e-4 the one with which Flow-DPO did better, which the arms of SFT share. On
{held["pairs"]:.0f} held-out pairs the judge finds blots with
{held["blot_accuracy"]:.1%} accuracy and reads {held["digit_accuracy_clean"]:.1%} of the clean digits. A step of
Flow-DPO counts as 8 forwards of a batch (two sides, forward, backward as two, and once more without the adapter), one
of SFT as 3. The seconds are the processor's, caching included where a run was the first to need an image.

Reproduce: `python -m benchmarks.evidence edit`. Measured on: {where}. Numbers and whole runs: `edit.json`.
"""


def _table(facts: Mapping[str, Any]) -> str:
    columns = {**MEASURES, "seconds": SECONDS}
    lines = [["", *(name for name, _ in columns.values())], ["---"] * (1 + len(columns))]
    for name, row in facts["rows"].items():
        lines.append([name, *(form.format(row[key]) for key, (_, form) in MEASURES.items()), ""])
    for arm, found in facts["arms"].items():
        lines.append([arm, *(spread([row[key] for row in found], form) for key, (_, form) in columns.items())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(facts: Mapping[str, Any], file: Path) -> None:
    """Draw each measure of each arm, a dot for each seed and a bar at their median."""
    arms = facts["arms"]
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(13, 3.6), layout="constrained")
    for axis, (key, (title, _)) in zip(axes, MEASURES.items(), strict=True):
        for name, style in (("the reference as it is", "--"), ("the clean scan through the autoencoder", ":")):
            axis.axhline(100 * facts["rows"][name][key], color="grey", linestyle=style, label=name)
        for place, found in enumerate(arms.values()):
            values = [100 * row[key] for row in found]
            axis.plot([place] * len(values), values, "o", color=f"C{place}", alpha=0.6)
            axis.plot([place - 0.2, place + 0.2], [statistics.median(values)] * 2, color=f"C{place}", linewidth=2)
        axis.set_xticks(
            range(len(arms)), [arm.replace(" on the ", "\non the\n").replace(" Flow", "\nFlow") for arm in arms]
        )
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xlim(-0.5, len(arms) - 0.5)
        axis.set_title(f"{title}, %")
        if key != "digits_kept":
            axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(file, dpi=150)
    plt.close(figure)

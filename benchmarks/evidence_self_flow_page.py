"""What the Self-Flow measurements say, as a page with tables, a plot and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

PLAIN = "plain"
BETTER, WORSE, UNCLEAR, FEW = "better", "worse", "not distinguishable", "from too few seeds to tell"
Facts = Mapping[str, Any]


def write_page(docs: Path, facts: Facts) -> None:
    """Write ``self_flow.json``, ``self_flow.md`` and ``self_flow.png``."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "self_flow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (docs / "self_flow.md").write_text(page(facts), encoding="utf-8")
    _plot(facts, docs / "self_flow.png")


def compared(values: Sequence[float], others: Sequence[float], *, lower: bool) -> str:
    """``better`` or ``worse`` than the others where every value is on that side of every other one, and ``not told
    apart`` where the two ranges overlap; three seeds a side are the least that says anything. ``lower`` says which way
    is good."""
    if min(len(values), len(others)) < 3:
        return FEW
    below, above = max(values) < min(others), min(values) > max(others)
    if not below and not above:
        return UNCLEAR
    return BETTER if below == lower else WORSE


def frechet(facts: Facts, arm: str, stage: int) -> list[float]:
    """Of each training seed."""
    return [run["pictures"][str(stage)]["frechet"] for run in facts["arms"][arm]]


def probed(facts: Facts, arm: str, place: int) -> list[float]:
    """Accuracy of each training seed in the features of the block at a place."""
    return [list(run["probe"].values())[place] for run in facts["arms"][arm]]


def verdicts(facts: Facts) -> list[str]:
    """A sentence for each arm against plain training: images at every stage, then features of the student's block."""
    stages, student = facts["stages"], facts["blocks"]["student"]
    sentences = []
    for arm in facts["arms"]:
        if arm == PLAIN or PLAIN not in facts["arms"]:
            continue
        drawn = [(frechet(facts, arm, stage), frechet(facts, PLAIN, stage)) for stage in stages]
        found = [compared(*pair, lower=True) for pair in drawn]
        said = [f"{each} at {stage}" for each, stage in zip(found, stages, strict=True)]
        if len(set(found)) == 1:
            said = [f"{found[0]} at any number of steps"]
        features, known = probed(facts, arm, student), probed(facts, PLAIN, student)
        sentences.append(
            f"**{arm}**: images {', '.join(said)} ({_against(*drawn[-1], '{:.1f}')}), features "
            f"{compared(features, known, lower=False)} ({_against(features, known, '{:.1%}')})"
        )
    return sentences


def page(facts: Facts) -> str:
    """The Markdown."""
    stages, blocks, cost = facts["stages"], facts["blocks"], facts["cost"]
    count, seeds = facts["network"]["num_layers"], len(facts["seeds"])
    pictures = [
        [arm]
        + [_spread(frechet(facts, arm, stage)) for stage in stages]
        + [_spread([r["pictures"][str(stages[-1])]["digit_accuracy"] for r in runs], "{:.1%}")]
        + [f"{cost[arm]['seconds'] * 1000:.0f} ms, {cost[arm]['median']:.2f}"]
        for arm, runs in facts["arms"].items()
    ]
    last = count - 1
    untrained = [list(each.values()) for each in facts["untrained"]]
    places = (blocks["student"], blocks["teacher"], last)
    features = [["untrained", *(_spread([each[place] for each in untrained], "{:.1%}") for place in places)]]
    features += [[arm, *(_spread(probed(facts, arm, place), "{:.1%}") for place in places)] for arm in facts["arms"]]
    sampling, probing, encoder = facts["sampling"], facts["probe"], facts["encoder"]
    where = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    said = ";\n* ".join(verdicts(facts)) or "plain training was not run, so there is nothing to compare with"
    weights = f"{facts['weights'] / 1e6:.1f}"
    return f"""# Evidence: Self-Flow and other alignments on the embedded digits

A transformer of {count} blocks and {weights} M weights, trained whole from random weights. **Self-Flow** is the method:
two times in a sample, and the features after {blocks["student"] + 1} blocks drawn towards those of the averaged weights
after {blocks["teacher"] + 1} blocks on a cleaner view. *Two times alone* is `dual_times` without the alignment;
*alignment alone* is Self-Flow with `mask_ratio` 0: one time a sample, and the view at the lower of that time and a
second one as the teacher. *LayerSync* aligns with the later block of the same pass; *external* with the features of a
small vision transformer that was trained to read these digits (held-out accuracy {encoder["accuracy"]:.1%}): a teacher
that was given the digit of every image, which the others get by captions only.

## Images

Fréchet distance, in the judge's features, of {sampling["count"]} generated images to all clean scans; lower is better,
and as many of the scans themselves are at {facts["scans"]:.1f}. Then the share of images with the digit of the prompt
at the end, and the time of a training step with its ratio to plain training.

{_table(["", *(f"{stage} steps" for stage in stages), "digit accuracy", "a step"], pictures)}

## Features

Accuracy of a logistic regression on the mean of a block's image tokens, on {probing["held_out"]} scans that neither
it nor any pipeline nor the vision transformer was trained on, at sigma {probing["sigma"]} with one fixed noise and the
same prompt for all, which names no digit.

{_table(["", *(f"after block {place + 1} of {count}" for place in places)], features)}

## What was seen

Against plain training, features after block {blocks["student"] + 1}; in brackets the medians after {stages[-1]} steps.
"Better" and "worse" are said only where all training seeds of the one are beyond all of the other. Where nothing
differs that still happens by chance in {2 / comb(2 * seeds, seeds):.0%} of such comparisons, and there are
{(len(stages) + 1) * len(verdicts(facts))} here, not independent of one another.

* {said}.

## What it is worth

* The mechanism of Self-Flow is disputed. Its authors ([2603.06507](https://arxiv.org/abs/2603.06507)) credit tokens at
  different noise that must be inferred from one another; [2607.02508](https://arxiv.org/abs/2607.02508) blocks
  attention between the two groups, finds no loss and sometimes a gain, and takes the second time for an augmentation
  along the noise. That test is not made here. What is: the second time and the alignment one at a time, the latter
  close to what that paper calls SRA.
* {weights} M weights, 8 x 8 scans of ten digits, {stages[-1]} steps: this says how the hooks behave here, and nothing
  about large models, long training or natural images.
* Training ends early: all arms are still far from the {facts["scans"]:.1f} of the scans, and getting better. The number
  of steps is what little more than an hour of one core allowed.
* Nothing is tuned. Blocks and weights of the alignments are those of their papers or documentation, except that the
  authors' release of Self-Flow weighs 0.8, and that projectors are 256 wide. The learning rate is that of the embedded
  pipeline's own pretraining, tried once on plain training with other seeds.

Median (lowest to highest) over training seeds {", ".join(map(str, facts["seeds"]))}; a seed sets the first weights, the
order of the data and the noise, alike for all arms. Each arm is `examples/self_flow/digits.json` on this network, with
a constant learning rate, on four fifths of the scans, of which nine tenths are captioned by their digit; only the hooks
differ. The averaged weights are measured, by the stock pipeline: {sampling["steps"]} steps, no guidance, seeds
{sampling["first_seed"]} and up. Steps are timed in one process, the arms taking turns; *external* decodes every sample
with the VAE and runs its vision model at every step.

![Fréchet distance against steps and against cost, and accuracy of a linear reader by block](self_flow.png)

Reproduce: `python -m benchmarks.evidence self_flow`. Measured on: {where}. Numbers: `self_flow.json`.
"""


def _against(values: Sequence[float], others: Sequence[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} against {form.format(statistics.median(others))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    middle, low, high = (form.format(each(values)) for each in (statistics.median, min, max))
    if len(values) == 1:
        return f"{middle} (one seed)"
    return f"{low} and {high} (two seeds)" if len(values) == 2 else f"{middle} ({low} to {high})"


def _plot(facts: Facts, file: Path) -> None:
    figure, (steps, cost, blocks) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    stages = facts["stages"]
    for place, (arm, runs) in enumerate(facts["arms"].items()):
        columns = [frechet(facts, arm, stage) for stage in stages]
        spent = [stage * facts["cost"][arm]["median"] for stage in stages]
        accuracies = [probed(facts, arm, block) for block in range(len(runs[0]["probe"]))]
        depth = range(1, len(accuracies) + 1)
        for axis, across, values in ((steps, stages, columns), (cost, spent, columns), (blocks, depth, accuracies)):
            axis.plot(across, [statistics.median(v) for v in values], "o-", color=f"C{place}", label=arm)
            axis.fill_between(across, [min(v) for v in values], [max(v) for v in values], color=f"C{place}", alpha=0.15)
    for axis, across in ((steps, "training steps"), (cost, "time, in steps of plain training")):
        axis.set(xlabel=across, ylabel="Fréchet distance", yscale="log")
    blocks.set(xlabel="after block", ylabel="accuracy of a linear reader")
    steps.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)

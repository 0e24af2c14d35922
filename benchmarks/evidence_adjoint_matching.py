"""What does a reward cost in diversity when its gradient is followed for the same time in several ways?"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch

import flowhooks
from flowhooks.commands.demo import planned_lora, trained_lora
from flowhooks.config import Run
from flowhooks.digits.judge import Judge, ensure_judge, frechet_distance, gaussian, infer
from flowhooks.digits.model import ensure_model
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import SAMPLES, STEPS, asked_digits, draw, load_stock, machine
from flowhooks.digits.scans import caption, resolve_data
from flowhooks.rewards import build_reward

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RECIPE = "adjoint_matching/digits_legible.json"
#: Sampling seeds that no setting was chosen on.
UNSEEN = 90_000
BASE, ANCHOR, FREE, STOPPED, GATE = "base", "anchor", "free", "free, stopped", "gate"
_METHOD = "method.adjoint_matching"
#: Between the starts of the fourth and the third step from the end, of 12 as of 20.
SIGMA = 0.42
#: Arm -> what it changes of the recipe, the number of updates aside.
ARMS: Mapping[str, tuple[str, ...]] = {
    ANCHOR: (),
    FREE: (f"{_METHOD}.early=free",),
    STOPPED: (f"{_METHOD}.early=free",),
    GATE: (f"{_METHOD}.early=gate", f'{_METHOD}.truncate={{"sigma_max": {SIGMA}}}'),
    "untruncated": (f"{_METHOD}.truncate=null",),
    "lookahead": (f"{_METHOD}.early=free", f"{_METHOD}.adjoint=lookahead"),
    "DRaFT-K": (
        f"{_METHOD}.early=free",
        f"{_METHOD}.adjoint=full",
        f'{_METHOD}.regularizer={{"2": 1e-6}}',
        f"{_METHOD}.reward_scale=1",
        f"{_METHOD}.clip_quantile=1",
    ),
}
#: Arm -> updates that take as long as the recipe's; but for one that is stopped.
UPDATES: Mapping[str, int] = {FREE: 50, STOPPED: 20, GATE: 50, "untruncated": 21, "lookahead": 34, "DRaFT-K": 44}
KEPT, GAINED = 0.8, 0.5
_SECONDS = "processor_seconds.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was drawn by one model.

    Args:
        reward: mean over the images.
        diversity: of images of one digit: the trace of the covariance of the judge's features, mean over digits.
        frechet: distance to the images that the base was trained on, in the judge's features.
        digit_accuracy: share of images whose digit is the one asked for.
        seconds: processor time of the training; 0 for the base.
    """

    reward: float
    diversity: float
    frechet: float
    digit_accuracy: float
    seconds: float = 0.0


class Ruler:
    """Draws with a pipeline, always the same prompts from the same seeds, and measures."""

    def __init__(self, judge: Judge, reward: Any, first_seed: int, *, samples: int = SAMPLES, steps: int = STEPS):
        self.judge, self.reward, self.first_seed = judge, reward, first_seed
        self.samples, self.steps = samples, steps
        self.digits = asked_digits(samples)
        self.prompts = [caption(int(digit)) for digit in self.digits]
        self.data = gaussian(infer(judge.network, read_pixels(Path(resolve_data("digits:base"))))[2])

    def __call__(self, pipe: Any, title: str, seconds: float = 0.0) -> Measured:
        pixels = draw(pipe, self.samples, title=title, first_seed=self.first_seed, steps=self.steps)
        logits, _, features = infer(self.judge.network, pixels)
        values = self.reward((pixels / 2 + 0.5).clamp(0, 1), self.prompts, [{}] * self.samples)
        (mean, covariance), data = gaussian(features), self.data
        return Measured(
            reward=float(values.mean()),
            diversity=within(features, self.digits),
            frechet=frechet_distance(mean.numpy(), covariance.numpy(), data[0].numpy(), data[1].numpy()),
            digit_accuracy=float((logits.argmax(1) == self.digits).double().mean()),
            seconds=seconds,
        )


def within(features: torch.Tensor, classes: torch.Tensor) -> float:
    """Variance of features `[N, D]` among those of one of the classes `[N]`, summed over D, mean over classes."""
    parts = [features[classes == each].double().var(0).sum() for each in classes.unique()]
    return float(torch.stack(parts).mean())


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and measure."""
    base = ensure_model()
    found: dict[str, list[Measured]] = {arm: [] for arm in ARMS if arms is None or arm in arms}
    runs = {arm: planned_lora(output, base, overrides(arm, seeds[0]), RECIPE)[1] for arm in ARMS}
    ruler = Ruler(ensure_judge(), build_reward(_target(runs[ANCHOR])["rewards"][0]), UNSEEN)
    before = ruler(load_stock(base), BASE)
    print(BASE, before, flush=True)
    for seed in seeds:
        for arm, measured in found.items():
            folder, seconds = timed_lora(output, base, overrides(arm, seed))
            pipe = load_stock(base, folder)
            with flowhooks.adapter_gate(pipe, SIGMA) if arm == GATE else nullcontext():
                measured.append(ruler(pipe, f"{arm}, seed {seed}", seconds))
            print(arm, seed, measured[-1], flush=True)
        publish(docs, before, found, seeds[: len(next(iter(found.values())))], runs)


def overrides(arm: str, seed: int) -> tuple[str, ...]:
    """Of the recipe, for an arm at a training seed."""
    updates = (f"training.max_train_steps={UPDATES[arm]}",) if arm in UPDATES else ()
    return (*ARMS[arm], *updates, f"training.seed={seed}", "validation.prompts=[]")


def timed_lora(output: Path, base: Path, changes: tuple[str, ...]) -> tuple[Path, float]:
    """The folder of the LoRA, trained at one go unless it is there, and the processor time that took."""
    folder, _ = planned_lora(output, base, changes, RECIPE)
    file = folder / _SECONDS
    if not file.is_file():
        start = time.process_time()
        trained_lora(output, base, True, rebuild=True, overrides=changes, recipe=RECIPE)
        file.write_text(json.dumps(time.process_time() - start), encoding="utf-8")
    return folder, json.loads(file.read_text(encoding="utf-8"))


def publish(
    docs: Path,
    before: Measured,
    found: Mapping[str, Sequence[Measured]],
    seeds: Sequence[int],
    runs: Mapping[str, Run],
) -> None:
    """Write ``adjoint_matching.json``, ``adjoint_matching.md`` and ``adjoint_matching.png``."""
    docs.mkdir(parents=True, exist_ok=True)
    facts = {
        "base": asdict(before),
        "arms": {arm: [asdict(each) for each in measured] for arm, measured in found.items()},
        "overrides": {arm: ARMS[arm] for arm in found},
        "updates": {arm: runs[arm].training["max_train_steps"] for arm in found},
        "seeds": list(seeds),
        "sampling": {"count": SAMPLES, "first_seed": UNSEEN, "steps": STEPS, "guidance_scale": 1.0},
        "machine": machine(),
    }
    (docs / "adjoint_matching.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (docs / "adjoint_matching.md").write_text(_page(before, found, seeds, runs), encoding="utf-8")
    _plot(before, found, docs / "adjoint_matching.png")


def verdict(before: Measured, found: Mapping[str, Sequence[Measured]]) -> tuple[bool, str]:
    """Whether ``anchor`` keeps enough of the base's diversity at enough of the gain of ``free``, in the median."""

    def kept(arm: str) -> float:
        return statistics.median(each.diversity / before.diversity for each in found[arm])

    def gain(arm: str) -> float:
        return (statistics.median(each.reward for each in found[arm]) - before.reward) / whole

    whole = statistics.median(each.reward for each in found[FREE]) - before.reward
    sentence = (
        f"it keeps {kept(ANCHOR):.0%} of the base's diversity (goal {KEPT:.0%}; *free* keeps {kept(FREE):.0%}) at "
        f"{gain(ANCHOR):.0%} of the gain in reward of *free* (goal {GAINED:.0%})"
    )
    others = [f"*{arm}* keeps {kept(arm):.0%} at {gain(arm):.0%}" for arm in (STOPPED, GATE) if arm in found]
    return kept(ANCHOR) >= KEPT and gain(ANCHOR) >= GAINED, "; ".join([sentence, *others])


def _target(run: Run) -> dict[str, Any]:
    return next(hook.options for hook in run.hooks if hook.type == "adjoint_target")


def _page(
    before: Measured, found: Mapping[str, Sequence[Measured]], seeds: Sequence[int], runs: Mapping[str, Run]
) -> str:
    rows = [f"| base | {before.reward:.3f} | 100% | {before.frechet:.1f} | {before.digit_accuracy:.1%} | | |"]
    for arm, measured in found.items():
        cells = [
            _spread([each.reward for each in measured], ".3f"),
            _spread([each.diversity / before.diversity for each in measured], ".0%"),
            _spread([each.frechet for each in measured], ".1f"),
            _spread([each.digit_accuracy for each in measured], ".1%"),
            str(runs[arm].training["max_train_steps"]),
            _spread([each.seconds for each in measured], ".0f"),
        ]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    body = "\n".join(rows)
    reached, sentence = verdict(before, found) if {ANCHOR, FREE} <= set(found) else (None, "not every arm was run")
    goal = {True: "Reached", False: "**Not reached**", None: "Not run"}[reached]
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    numbers = ", ".join(str(seed) for seed in seeds)
    return f"""# Evidence: adjoint matching on the embedded digits

The reward is the log-probability, at temperature 4, that the judge assigns to the digit of the prompt. It can be
hacked: images that the judge is surest of are few. Every arm follows its gradient for about the same processor time.

| | reward | diversity within a digit | Fréchet distance | digit accuracy | updates | seconds |
| --- | --- | --- | --- | --- | --- | --- |
{body}

Median (lowest to highest) over training seeds {numbers}. *Diversity* is the variance of the judge's features among
images of one digit, as a share of the base's. The Fréchet distance is to the images that the base was trained on,
in the judge's features. *Seconds* are processor time of the training. Every row samples the same {SAMPLES} images from
the same seeds ({UNSEEN} and up), {STEPS} steps, no guidance, with the stock pipeline.

*anchor* is `examples/{RECIPE}` as it stands: lean co-states in the last 3 of 12 steps,
earlier ones held at the base's velocity. *free* does not visit those; *free, stopped* is the same after
{UPDATES[STOPPED]} updates, to tell an anchor from climbing less; *gate* keeps the adapter off in them, above sigma
{SIGMA}, in training as in the table's images (`flowhooks.adapter_gate`); *untruncated* reaches all 12; *lookahead*
takes the reward's gradient at the end of a straight line, without co-states; *DRaFT-K* back-propagates through the last
3 steps, with next to no cost of the control. Settings were chosen on training seed 0 and other sampling seeds, updates
so that times are alike. The reward's scale was fixed after a first run of the table, where it was found from the first
batch and differed fourfold between seeds. Reward, diversity and Fréchet distance are of one judge: whether another
network would agree was not tested.

Goal, for *anchor*, in the median. {goal}: {sentence}.

![Reward against diversity, and Fréchet distance](adjoint_matching.png)

Reproduce: `python -m benchmarks.evidence adjoint_matching`. Measured on: {where}. Numbers: `adjoint_matching.json`.
"""


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (format(each(values), form) for each in (statistics.median, min, max))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _plot(before: Measured, found: Mapping[str, Sequence[Measured]], file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(before.reward, 1, "o", color="grey", label=BASE)
    right.plot(before.reward, before.frechet, "o", color="grey")
    for place, (arm, measured) in enumerate(found.items()):
        rewards = [each.reward for each in measured]
        shares = [each.diversity / before.diversity for each in measured]
        left.plot(rewards, shares, "o", color=f"C{place}", alpha=0.7, label=arm)
        right.plot(rewards, [each.frechet for each in measured], "o", color=f"C{place}", alpha=0.7)
    left.axhline(KEPT, color="grey", linestyle=":")
    left.set_ylabel("diversity within a digit, share of the base's")
    left.set_ylim(0, 1.1)
    right.set_ylabel("Fréchet distance")
    right.set_yscale("log")
    for axis in (left, right):
        axis.set_xlabel("reward")
    left.legend(frameon=False, loc="lower left")
    figure.savefig(file, dpi=150)
    plt.close(figure)

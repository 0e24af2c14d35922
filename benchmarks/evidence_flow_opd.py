"""Does one student of two teachers who want opposite things come to know both, and does the anchor keep it sane?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from torch import Tensor

from flowhooks.adapters.names import LORA_FILE
from flowhooks.checks.planning import forwards, plan_run
from flowhooks.commands.demo import trained_lora
from flowhooks.config import Run, load_run
from flowhooks.digits.judge import Judge, ensure_judge, frechet_distance, gaussian, infer
from flowhooks.digits.model import ensure_model, example
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import SAMPLES, STEPS, asked_digits, draw, load_stock, machine
from flowhooks.digits.scans import caption, resolve_data
from flowhooks.rewards import build_reward

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

#: Task -> recipe of its teacher; the recipe's reward is the task's.
TEACHERS = {"legible": "flow_grpo/digits_legible.json", "bold": "flow_grpo/digits_bold.json"}
STUDENT = "flow_opd/digits.json"
#: Sampling seeds that no setting was chosen on.
UNSEEN = 90_000
BASE, MERGE, WITH, WITHOUT = "base", "merge", "student", "student, no anchor"
SHORT, MIXED = "mixed rewards, short", "mixed rewards"
ROWS = (*(f"teacher {task}" for task in TEACHERS), MERGE, WITH, WITHOUT, SHORT, MIXED)
GOAL = 0.95
#: Of each task's reward among eight images of one prompt, as the base generates them in training.
SPREADS = {"legible": 0.3, "bold": 0.03}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was drawn by one model.

    Args:
        rewards: task -> mean of its reward over the images of its prompts.
        frechet: distance to the images that the base was trained on, in the judge's features.
        own_frechet: task -> that of the images of its prompts to those that the base was trained on with them.
        digit_accuracy: share of images whose digit is the one asked for.
    """

    rewards: Mapping[str, float]
    frechet: float
    own_frechet: Mapping[str, float]
    digit_accuracy: float

    @property
    def drift(self) -> float:
        """Mean over tasks of ``own_frechet``."""
        return statistics.mean(self.own_frechet.values())


class Ruler:
    """Draws with a pipeline, always the same prompts from the same seeds, and measures."""

    def __init__(self, judge: Judge, tasks: Mapping[str, Sequence[str]], rewards: Mapping[str, Any], first_seed: int):
        self.judge, self.rewards, self.first_seed = judge, rewards, first_seed
        self.digits = asked_digits(SAMPLES)
        self.prompts = [caption(int(digit)) for digit in self.digits]
        self.rows = {task: [i for i, prompt in enumerate(self.prompts) if prompt in own] for task, own in tasks.items()}
        folder = Path(resolve_data("digits:base"))
        features = infer(judge.network, read_pixels(folder))[2]
        shown = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.png"))]
        self.data = gaussian(features)
        self.own = {
            task: gaussian(features[[i for i, words in enumerate(shown) if words in own]])
            for task, own in tasks.items()
        }

    def __call__(self, pipe: Any, title: str) -> Measured:
        pixels = draw(pipe, title=title, first_seed=self.first_seed)
        logits, _, features = infer(self.judge.network, pixels)
        shown = (pixels / 2 + 0.5).clamp(0, 1)
        means = {}
        for task, rows in self.rows.items():
            values = self.rewards[task](shown[rows], [self.prompts[i] for i in rows], [{}] * len(rows))
            means[task] = float(values.mean())
        return Measured(
            rewards=means,
            frechet=_distance(features, self.data),
            own_frechet={task: _distance(features[rows], self.own[task]) for task, rows in self.rows.items()},
            digit_accuracy=float((logits.argmax(1) == self.digits).double().mean()),
        )


def _distance(features: Tensor, data: tuple[Tensor, Tensor]) -> float:
    """Fréchet distance of images of ``features`` ``[N, D]`` to data of this mean and covariance."""
    mean, covariance = gaussian(features)
    return frechet_distance(mean.numpy(), covariance.numpy(), data[0].numpy(), data[1].numpy())


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train teachers, students and the mixed run at every seed, or reuse what `output` holds, and measure."""
    base = ensure_model()
    found: dict[str, list[Measured]] = {
        row: [] for row in ROWS if arms is None or row in arms or row.startswith("teacher")
    }
    costs: dict[str, int] = {}
    ruler: Ruler | None = None
    before: Measured | None = None
    for seed in seeds:
        more = (f"training.seed={seed}", "validation.prompts=[]")
        taught = {
            task: trained_lora(output, base, True, overrides=more, recipe=recipe) for task, recipe in TEACHERS.items()
        }
        if ruler is None or before is None:
            ruler = _ruler({task: run for task, (_, run) in taught.items()}, UNSEEN)
            before = ruler(load_stock(base), BASE)
            print(BASE, before, flush=True)
        for row in found:
            pipe, costs[row] = _model(row, output, base, taught, more)
            found[row].append(ruler(pipe, f"{row}, seed {seed}"))
            print(row, seed, found[row][-1], flush=True)
        publish(docs, before, found, costs, seeds[: len(found[ROWS[0]])])


def publish(
    docs: Path,
    before: Measured,
    found: Mapping[str, Sequence[Measured]],
    costs: Mapping[str, int],
    seeds: Sequence[int],
) -> None:
    """Write ``flow_opd.json``, ``flow_opd.md`` and ``flow_opd.png``."""
    docs.mkdir(parents=True, exist_ok=True)
    facts = {
        "base": asdict(before),
        "rows": {row: [asdict(each) for each in measured] for row, measured in found.items()},
        "fractions": {row: fractions(before, found, row) for row in found},
        "forwards": costs,
        "seeds": list(seeds),
        "sampling": {"count": SAMPLES, "first_seed": UNSEEN, "steps": STEPS, "guidance_scale": 1.0},
        "machine": machine(),
    }
    (docs / "flow_opd.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (docs / "flow_opd.md").write_text(_page(before, found, costs, seeds), encoding="utf-8")
    _plot(before, found, docs / "flow_opd.png")


def fractions(before: Measured, found: Mapping[str, Sequence[Measured]], row: str) -> list[dict[str, float]]:
    """Of each seed, task -> the share of its teacher's gain over the base that a row reaches on the task's prompts."""
    shares = []
    for place, own in enumerate(found[row]):
        shares.append({})
        for task in before.rewards:
            start, end = before.rewards[task], found[f"teacher {task}"][place].rewards[task]
            shares[-1][task] = (own.rewards[task] - start) / (end - start)
    return shares


def verdict(before: Measured, found: Mapping[str, Sequence[Measured]]) -> tuple[bool, list[str]]:
    """Whether the goal is reached, and a sentence for each part of it: shares in the median, and with the anchor nearer
    to the data in the median, by task at every seed too."""
    student, reached, sentences = fractions(before, found, WITH), True, []
    for task in before.rewards:
        share = statistics.median(each[task] for each in student)
        reached &= share >= GOAL
        sentences.append(f"it reaches {share:.0%} of the gain of the teacher {task} (goal {GOAL:.0%})")
    own = average(student)
    for rival in (MERGE, SHORT, MIXED):
        other = average(fractions(before, found, rival))
        reached &= statistics.median(own) > statistics.median(other)
        wins = sum(a > b for a, b in zip(own, other, strict=False))
        sentences.append(
            f"on the average of both it is at {statistics.median(own):.0%}, {rival} at "
            f"{statistics.median(other):.0%} ({wins} of {len(other)} seeds)"
        )
    for what, of in (("by task", lambda each: each.drift), ("of all images", lambda each: each.frechet)):
        near, far = ([of(each) for each in found[row]] for row in (WITH, WITHOUT))
        closer = [b - a for a, b in zip(near, far, strict=True)]
        reached &= statistics.median(near) < statistics.median(far)
        if what == "by task":
            reached &= min(closer) > 0
        sentences.append(
            f"the Fréchet distance {what} is {statistics.median(near):.1f} with the anchor and "
            f"{statistics.median(far):.1f} without, of one seed {_spread(closer, '.1f')} less"
        )
    return reached, sentences


def mixed_overrides(runs: Mapping[str, Run], *, short: bool) -> tuple[str, ...]:
    """Of the first teacher's recipe: all teachers' rewards, each divided by its spread, at the lowest of the teachers'
    learning rates, for as many forwards as the teachers have together, or ``short`` for those of the shortest."""
    blocks = [{**_reward(run), "weight": round(1 / SPREADS[task], 2)} for task, run in runs.items()]
    own = next(iter(runs.values()))
    spent = (min if short else sum)(_forwards(run) for run in runs.values())
    changed = {
        "method.flow_grpo.rewards": json.dumps(blocks),
        "training.max_train_steps": spent // (_forwards(own) // own.training["max_train_steps"]),
        "training.learning_rate": min(run.training["learning_rate"] for run in runs.values()),
    }
    return tuple(f"{key}={value}" for key, value in changed.items())


def _model(
    row: str, output: Path, base: Path, taught: Mapping[str, tuple[Path, Run]], more: tuple[str, ...]
) -> tuple[Any, int]:
    """The stock pipeline of a row, and the forwards of single images that its training took."""
    spent = sum(_forwards(run) for _, run in taught.values())
    for task, (folder, run) in taught.items():
        if row == f"teacher {task}":
            return load_stock(base, folder), _forwards(run)
    if row == MERGE:
        return merged(base, [folder for folder, _ in taught.values()]), spent
    student = (*more, *(f"method.flow_opd.teachers.{task}={folder}" for task, (folder, _) in taught.items()))
    if row in (SHORT, MIXED):
        runs = {task: run for task, (_, run) in taught.items()}
        overrides, recipe = (*more, *mixed_overrides(runs, short=row == SHORT)), next(iter(TEACHERS.values()))
        spent = 0
    else:
        overrides, recipe = (*student, *(("method.flow_opd.anchor_weight=0",) if row == WITHOUT else ())), STUDENT
    folder, run = trained_lora(output, base, True, overrides=overrides, recipe=recipe)
    return load_stock(base, folder), spent + _forwards(run)


def merged(base: Path, folders: Sequence[Path]) -> Any:
    """The stock pipeline with the mean of the changes that adapters make, exactly."""
    pipe = load_stock(base)
    names = [f"teacher_{place}" for place in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        pipe.load_lora_weights(folder, weight_name=LORA_FILE, adapter_name=name)
    pipe.set_adapters(names, [1 / len(names)] * len(names))
    return pipe


def _forwards(run: Run) -> int:
    """Of single images, in the whole run."""
    method = next(hook.options for hook in run.hooks if hook.type == "on_policy_rollout")
    each = forwards(run, plan_run(run, run.provides))
    return each * method["group_size"] * run.training["train_batch_size"] * run.training["max_train_steps"]


def _reward(run: Run) -> dict[str, Any]:
    return dict(next(hook.options["rewards"][0] for hook in run.hooks if hook.type == "flow_grpo"))


def _ruler(runs: Mapping[str, Run], first_seed: int) -> Ruler:
    student = load_run(example(STUDENT))
    asked = next(hook.options["prompts"] for hook in student.hooks if hook.type == "on_policy_rollout")
    tasks = {task: [entry["prompt"] for entry in asked if entry["task"] == task] for task in runs}
    rewards = {task: build_reward(_reward(run)) for task, run in runs.items()}
    return Ruler(ensure_judge(), tasks, rewards, first_seed)


def average(shares: Sequence[Mapping[str, float]]) -> list[float]:
    """Of each seed, over tasks; more than the teacher's gain counts as all of it, so that going on and on with one task
    does not pay for losing another."""
    return [statistics.mean(min(share, 1.0) for share in each.values()) for each in shares]


def _page(
    before: Measured,
    found: Mapping[str, Sequence[Measured]],
    costs: Mapping[str, int],
    seeds: Sequence[int],
) -> str:
    cells = " | ".join(f"{before.rewards[task]:.3f} (0 %)" for task in TEACHERS)
    rows = [f"| base | {cells} | 0 % | {before.drift:.1f} | {before.frechet:.1f} | {before.digit_accuracy:.1%} | |"]
    for row, measured in found.items():
        shares = fractions(before, found, row)
        cells = " | ".join(
            f"{statistics.median(each.rewards[task] for each in measured):.3f} "
            f"({_spread([share[task] for share in shares], '.0%')})"
            for task in TEACHERS
        )
        name = row if len(measured) == len(seeds) else f"{row} ({len(measured)} of {len(seeds)} seeds)"
        rows.append(
            f"| {name} | {cells} | {_spread(average(shares), '.0%')} | "
            f"{_spread([each.drift for each in measured], '.1f')} | "
            f"{_spread([each.frechet for each in measured], '.1f')} | "
            f"{_spread([each.digit_accuracy for each in measured], '.1%')} | {costs[row] / 1000:.0f} |"
        )
    body = "\n".join(rows)
    whole = set(ROWS) <= set(found)
    reached, sentences = verdict(before, found) if whole else (None, ["not every row was run"])
    goal = {True: "Reached", False: "**Not reached**", None: "Not run"}[reached]
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    numbers = ", ".join(str(seed) for seed in seeds)
    return f"""# Evidence: Flow-OPD on the embedded digits

Two teachers want opposite things of the images: *legible* was rewarded for digits that the judge can read
(log-probability at temperature 4), which takes blots away; *bold* for ink on the paper, which adds some. Each was
trained by Flow-GRPO on all ten digits. *Legible* teaches the student odd digits and *bold* even ones.

| | legible, on odd digits | bold, on even digits | average | Fréchet by task | of all | digit accuracy | 10³ forwards |
| --- | --- | --- | --- | --- | --- | --- | --- |
{body}

Mean reward, and in brackets the share of the gain of the task's own teacher of the same training seed; the *average* is
of the two shares, each counted up to 100 %, so that overshooting one task does not pay for losing the other. The
Fréchet distance is to the images that the base was trained on, in the judge's features: *by task* the mean of that of
the odd digits and that of the even ones, each to the scans of these digits; *of all* that of all images at once, in
which the blots that one task takes away make up for those that the other adds. Median (lowest to highest) over training
seeds {numbers}. Every row samples the same {SAMPLES} images from the same seeds ({UNSEEN} and up),
{STEPS} steps, no guidance, with the stock pipeline. *student* is `examples/{STUDENT}` as it stands; *no anchor* has
`anchor_weight` 0; *merge* is the mean of the teachers' changes, exactly; *mixed rewards* is one Flow-GRPO run on both
rewards, each divided by its spread among images of one prompt, for as many forwards as both teachers together, and
*short* for those of the shorter one: with more, it goes on with boldness, which has no end, until nothing can be read.
Forwards are of single images, in training; those of merge and students include the teachers'.

Settings of teachers and students were chosen on training seed 0 and other sampling seeds. Three things were changed in
favour of a fair comparison after an earlier mixed run of seed 0 had been seen, in the table's own images: it has the
lower rate of the two teachers, the short one was added, and shares above 100 % no longer enter the average. An earlier
table had the distance of all images only, where the anchor made no difference that three seeds could show; the
distance by task and the anchor's weight were then chosen on training seed 0 and other sampling seeds. There an anchor
of 0.05 cost more than 5 % of boldness, and an adapter trained on the base's own images by plain SFT, mixed in at the
anchor's share, did no better than the base.

Goal, for *student*: shares in the median, and lower distances with the anchor, that by task at every seed. {goal}:
{"; ".join(sentences)}.

![Share of each teacher's gain, and Fréchet distance by task](flow_opd.png)

Reproduce: `python -m benchmarks.evidence flow_opd`. Measured on: {where}. Numbers: `flow_opd.json`.
"""


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (format(each(values), form) for each in (statistics.median, min, max))
    return middle if len(values) == 1 else f"{middle}; {low} to {high}"


def _plot(before: Measured, found: Mapping[str, Sequence[Measured]], file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, (row, measured) in enumerate(found.items()):
        shares = fractions(before, found, row)
        # What went astray is shown at the edge.
        across, up = ([min(max(share[task], -0.75), 1.55) for share in shares] for task in TEACHERS)
        left.plot(across, up, "o", color=f"C{place}", alpha=0.7, label=row)
        right.plot(
            [place] * len(measured), [min(each.drift, 295) for each in measured], "o", color=f"C{place}", alpha=0.6
        )
        middle = min(statistics.median(each.drift for each in measured), 295)
        right.plot([place - 0.2, place + 0.2], [middle] * 2, color=f"C{place}", linewidth=2)
    left.plot(0, 0, "o", color="grey", label=BASE)
    for line in (left.axhline, left.axvline):
        line(GOAL, color="grey", linestyle=":")
    left.set_xlim(-1.9, 1.3)
    left.set_ylim(-0.8, 1.6)
    left.set_xlabel("share of the gain in legibility, odd digits")
    left.set_ylabel("share of the gain in boldness, even digits")
    left.legend(frameon=False, loc="lower left")
    right.axhline(before.drift, color="grey", linestyle="--")
    right.set_xticks(range(len(found)), list(found), rotation=30, ha="right")
    right.set_title("Fréchet distance by task (cut off at 300)")
    right.set_ylim(0, 300)
    figure.savefig(file, dpi=150)
    plt.close(figure)

"""Does AnyFlow make the embedded pipeline draw in few steps, and which of its targets does it?"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

import flowhooks
from flowhooks.checks.planning import forwards, plan_run
from flowhooks.commands.demo import trained_lora
from flowhooks.digits.judge import Judge, ensure_judge, frechet_distance, gaussian, infer
from flowhooks.digits.model import ensure_model
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import SAMPLES, draw, load_stock, machine
from flowhooks.digits.scans import PIXELS, resolve_data
from flowhooks.manifest import MODULES

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RECIPE = "anyflow/digits.json"
COUNTS, MANY = (1, 2, 4, 8), 50
#: Sampling seeds that no setting was chosen on.
UNSEEN = 90_000
_TARGET = "method.anyflow.target_mode="
#: Arm -> overrides of the recipe.
ARMS: dict[str, tuple[str, ...]] = {
    "flow_map": (),
    "online_teacher, K = 8": (f"{_TARGET}online_teacher", "method.anyflow.teacher_rollout_steps=8"),
    "online_teacher, K = 1": (f"{_TARGET}online_teacher",),
    "shortcut": (f"{_TARGET}shortcut",),
    "plain SFT": ('method={"sft": {}}',),
}
Curve = dict[int, float]


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and write how far each step count is from data."""
    judge, base = ensure_judge(), ensure_model()
    data = _statistics(judge, read_pixels(Path(resolve_data("digits:base"))))
    before = {steps: _distance(judge, load_stock(base), steps, data) for steps in (*COUNTS, 20, MANY)}
    print("base", _rounded(before), flush=True)
    found: dict[str, list[Curve]] = {}
    costs: dict[str, int] = {}
    for arm in arms or ARMS:
        for seed in seeds:
            overrides = (*ARMS[arm], f"training.seed={seed}", "validation.prompts=[]")
            folder, run = trained_lora(output, base, True, overrides=overrides, recipe=RECIPE)
            curve = _curve(judge, base, folder, data)
            print(arm, seed, _rounded(curve), flush=True)
            found.setdefault(arm, []).append(curve)
            costs[arm] = forwards(run, plan_run(run, run.provides))
    publish(docs, before, found, costs, seeds)


def publish(
    docs: Path,
    before: Mapping[int, float],
    found: Mapping[str, Sequence[Curve]],
    costs: Mapping[str, int],
    seeds: Sequence[int],
) -> None:
    """Write ``anyflow.json``, ``anyflow.md`` and ``anyflow.png``."""
    docs.mkdir(parents=True, exist_ok=True)
    facts = {
        "base": before,
        "arms": found,
        "forwards_per_step": costs,
        "overrides": {arm: ARMS[arm] for arm in found},
        "seeds": list(seeds),
        "sampling": {"count": SAMPLES, "first_seed": UNSEEN, "guidance_scale": 1.0},
        "machine": machine(),
    }
    (docs / "anyflow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (docs / "anyflow.md").write_text(_page(before, found, costs, seeds), encoding="utf-8")
    _plot(before, found, docs / "anyflow.png")


def verdict(before: Mapping[int, float], after: Sequence[Curve]) -> tuple[bool, list[str]]:
    """Whether the medians reach the goal, and a sentence for each part of it."""
    middle = {steps: statistics.median(curve[steps] for curve in after) for steps in COUNTS}
    reached, sentences = True, []
    for steps in (1, 2, 4):
        closed = (before[steps] - middle[steps]) / (before[steps] - before[MANY])
        reached &= closed >= 0.6
        sentences.append(f"at {steps} it closes {closed:.0%} of the gap to the base at {MANY} (goal 60 %)")
    spread = max(curve[8] for curve in after) - min(curve[8] for curve in after)
    reached &= middle[8] <= before[8] + spread
    sentences.append(f"at 8 it is at {middle[8]:.1f}, the base at {before[8]:.1f}")
    rises = [f"{a} to {b}" for a, b in zip(COUNTS, COUNTS[1:], strict=False) if middle[b] > middle[a]]
    reached &= not rises
    sentences.append(f"the curve rises from {', '.join(rises)}" if rises else "the curve never rises")
    return reached, sentences


def _curve(judge: Judge, base: Path, folder: Path, data: Any) -> Curve:
    if not (folder / MODULES).is_file():
        pipe = load_stock(base, folder)
        return {steps: _distance(judge, pipe, steps, data) for steps in COUNTS}
    pipe = load_stock(base)
    with flowhooks.attach(pipe, folder, height=PIXELS, width=PIXELS):
        return {steps: _distance(judge, pipe, steps, data) for steps in COUNTS}


def _distance(judge: Judge, pipe: Any, steps: int, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    mean, covariance = _statistics(judge, draw(pipe, title=f"{steps} steps", first_seed=UNSEEN, steps=steps))
    return frechet_distance(mean.numpy(), covariance.numpy(), data[0].numpy(), data[1].numpy())


def _statistics(judge: Judge, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return gaussian(infer(judge.network, pixels)[2])


def _rounded(curve: Mapping[int, float]) -> dict[int, float]:
    return {steps: round(value, 1) for steps, value in curve.items()}


def _page(
    before: Mapping[int, float],
    found: Mapping[str, Sequence[Curve]],
    costs: Mapping[str, int],
    seeds: Sequence[int],
) -> str:
    rows = ["| base | " + " | ".join(f"{before[steps]:.1f}" for steps in COUNTS) + " | |"]
    for arm, curves in found.items():
        cells = [_spread([curve[steps] for curve in curves]) for steps in COUNTS]
        rows.append(f"| {arm} | {' | '.join(cells)} | {costs[arm]} |")
    body = "\n".join(rows)
    reached, sentences = verdict(before, found["flow_map"]) if "flow_map" in found else (None, ["it was not run"])
    goal = {True: "Reached", False: "**Not reached**", None: "Not run"}[reached]
    where = ", ".join(f"{key} {value}" for key, value in machine().items())
    return f"""# Evidence: AnyFlow on the embedded digits

Fréchet distance, in the judge's features, of {SAMPLES} generated images to the images that base and runs were trained
on (half of them with blots, as the base generates them). Lower is better; the base at 20 steps is at {before[20]:.1f},
at {MANY} steps at {before[MANY]:.1f}.

| | 1 step | 2 steps | 4 steps | 8 steps | forwards a training step |
| --- | --- | --- | --- | --- | --- |
{body}

Median (lowest to highest) over training seeds {", ".join(str(seed) for seed in seeds)}. Every arm is
`examples/{RECIPE}` with another target: the same base, LoRA, optimiser, number of steps and batch; plain SFT has no
second time. Images are generated from the same seeds ({UNSEEN} and up), without guidance, by the stock pipeline.
Settings were chosen on training seed 0 and other sampling seeds.

Goal, for `flow_map`, in the median. {goal}: {"; ".join(sentences)}.

![Fréchet distance against steps](anyflow.png)

Reproduce: `python -m benchmarks.evidence anyflow`. Measured on: {where}. Numbers: `anyflow.json`.
"""


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f} (one seed)"
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _plot(before: Mapping[int, float], found: Mapping[str, Sequence[Curve]], file: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(list(before), list(before.values()), "o--", color="grey", label="base")
    for place, (arm, curves) in enumerate(found.items()):
        columns = [[curve[steps] for curve in curves] for steps in COUNTS]
        axis.plot(COUNTS, [statistics.median(column) for column in columns], "o-", color=f"C{place}", label=arm)
        axis.fill_between(COUNTS, [min(c) for c in columns], [max(c) for c in columns], color=f"C{place}", alpha=0.2)
    axis.set_xscale("log", base=2)
    axis.set_xticks([*COUNTS, 20, MANY], [str(steps) for steps in (*COUNTS, 20, MANY)])
    axis.set_xlabel("sampling steps")
    axis.set_ylabel("Fréchet distance")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)

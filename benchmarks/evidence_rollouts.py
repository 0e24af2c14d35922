"""What do methods on rewards need for the same reward, in forwards of the network and in seconds, and what does it cost
in diversity?"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers import SD3Transformer2DModel

from benchmarks.evidence_adjoint_matching import Ruler
from benchmarks.kept import kept
from benchmarks.spread import spread
from flowhooks.commands.demo import planned_lora
from flowhooks.digits.judge import ensure_judge
from flowhooks.digits.model import ensure_model
from flowhooks.digits.report import load_stock, machine
from flowhooks.rewards import build_reward
from flowhooks.train import train

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

REWARD = {"type": "flowhooks.digits.rewards:Legibility", "temperature": 4.0}
#: Images that are judged, and the steps each is drawn in; their seeds were looked at for no choice.
SAMPLES, SAMPLING_STEPS, UNSEEN = 200, 10, 90_000
#: How often a run is judged on its way.
MARKS = 6
GRPO, NFT = "GRPO", "NFT"
#: Share of GRPO's forwards in which NFT is to reach GRPO's reward.
GOAL = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Says how a method is trained.

    Args:
        recipe: run in `examples/`.
        steps: optimiser steps, a multiple of MARKS.
        changes: of the recipe, beside its reward, steps and seed.
    """

    recipe: str
    steps: int
    changes: Mapping[str, Any] = field(default_factory=dict)

    def overrides(self, seed: int) -> tuple[str, ...]:
        method = self.recipe.partition("/")[0]
        changed = {
            f"method.{method}.rewards": [REWARD],
            "training.max_train_steps": self.steps,
            "training.checkpointing_steps": self.steps // MARKS,
            "training.checkpoints_total_limit": None,
            "training.seed": seed,
            "training.log_every_steps": 10,
            "validation": {},
            "logging": {"trackers": [], "report": False},
            **self.changes,
        }
        return tuple(f"{key}={json.dumps(value)}" for key, value in changed.items())


#: Arm -> its training, all at a rate of 1e-3. For GRPO 2e-3 was tried too, on seed 0 and other sampling seeds.
ARMS: Mapping[str, Arm] = {
    GRPO: Arm(recipe="flow_grpo/digits_legible.json", steps=60),
    "GRPO, 4 clipped updates": Arm(
        recipe="flow_grpo/digits_legible.json",
        steps=96,
        changes={"method.flow_grpo.updates_per_rollout": 4, "method.flow_grpo.clip_range": 0.01},
    ),
    NFT: Arm(recipe="diffusion_nft/digits.json", steps=72, changes={"training.learning_rate": 1e-3}),
    "AWM": Arm(recipe="awm/digits.json", steps=72, changes={"training.learning_rate": 1e-3}),
    "CRD": Arm(recipe="crd/digits.json", steps=72, changes={"training.learning_rate": 1e-3}),
    "DGPO": Arm(recipe="dgpo/digits.json", steps=72, changes={"training.learning_rate": 1e-3}),
    "online DPO": Arm(recipe="online_dpo/digits.json", steps=72, changes={"training.learning_rate": 1e-3}),
    "adjoint matching": Arm(recipe="adjoint_matching/digits_legible.json", steps=42),
}


@dataclass
class Count:
    """Counts samples that the network sees: a batch of 8 is 8 forwards.

    Args:
        forwards: all of them.
        with_gradient: those that are kept for a backward pass.
    """

    forwards: int = 0
    with_gradient: int = 0


@contextmanager
def counted() -> Iterator[Count]:
    """Count what the digits' network is given inside the block."""
    found, plain = Count(), SD3Transformer2DModel.forward

    @wraps(plain)
    def counting(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.forwards += len(hidden_states)
        found.with_gradient += len(hidden_states) * torch.is_grad_enabled()
        return plain(self, hidden_states, *args, **kwargs)

    SD3Transformer2DModel.forward = counting
    try:
        yield found
    finally:
        SD3Transformer2DModel.forward = plain


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all arms share; everything is kept under `output`.

    Args:
        output: an absolute path.
        first_seed: of the images that are judged.
    """

    output: Path
    first_seed: int = UNSEEN

    @cached_property
    def base(self) -> Path:
        return ensure_model()

    @cached_property
    def ruler(self) -> Ruler:
        reward = build_reward(REWARD)
        return Ruler(ensure_judge(), reward, self.first_seed, samples=SAMPLES, steps=SAMPLING_STEPS)

    @cached_property
    def before(self) -> dict[str, Any]:
        """What the judge says of the base."""
        return self._kept({"arm": None}, lambda: self._judged(None))

    def row(self, name: str, seed: int) -> dict[str, Any]:
        """Train an arm and judge it at every mark, unless that was done."""
        return {**self._kept({"arm": asdict(ARMS[name]), "seed": seed}, lambda: self._trained(name, seed)), "arm": name}

    def _kept(self, key: Mapping[str, Any], measure: Any) -> dict[str, Any]:
        sampling = {"samples": SAMPLES, "sampling_steps": SAMPLING_STEPS, "first_seed": self.first_seed}
        whole = {"base": self.base.name, "reward": REWARD, **sampling, **key}
        return kept(self.output / "rollouts.jsonl", whole, measure)

    def _trained(self, name: str, seed: int) -> dict[str, Any]:
        arm = ARMS[name]
        folder, run = planned_lora(self.output, self.base, arm.overrides(seed), arm.recipe)
        began = time.process_time()
        with counted() as count:
            train(run, progress=False)
        seconds = time.process_time() - began
        marks = []
        for step in range(arm.steps // MARKS, arm.steps + 1, arm.steps // MARKS):
            share = step / arm.steps
            judged = self._judged(folder / f"checkpoint-{step}")
            marks.append({"step": step, "forwards": share * count.forwards, "seconds": share * seconds, **judged})
        return {"seed": seed, "steps": arm.steps, **asdict(count), "seconds": seconds, "marks": marks}

    def _judged(self, lora: Path | None) -> dict[str, Any]:
        measured = asdict(self.ruler(load_stock(self.base, lora) if lora else load_stock(self.base), "judged"))
        del measured["seconds"]
        return measured


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every seed, or reuse what `output` holds, and write what the judge says of each."""
    bench = Bench(output=output.resolve())
    rows = [bench.row(arm, seed) for seed in seeds for arm in ARMS if arms is None or arm in arms]
    facts = {
        "base": bench.before,
        "rows": rows,
        "arms": {name: asdict(arm) for name, arm in ARMS.items()},
        "machine": machine(),
    }
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "rollouts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (docs / "rollouts.md").write_text(page(facts), encoding="utf-8")
    plot(facts, docs / "rollouts.png")


def reached(row: Mapping[str, Any], reward: float, before: float) -> float | None:
    """Return the forwards after which a run first has a reward, between two marks on the line through both; None where
    it never has."""
    last = (0.0, before)
    for mark in row["marks"]:
        if mark["reward"] >= reward:
            share = (reward - last[1]) / (mark["reward"] - last[1]) if mark["reward"] > last[1] else 1.0
            return float(last[0] + max(share, 0.0) * (mark["forwards"] - last[0]))
        last = mark["forwards"], mark["reward"]
    return None


def page(facts: Mapping[str, Any]) -> str:
    """Return the page's text."""
    by_arm = _by_arm(facts["rows"])
    before = facts["base"]
    diversity = before["diversity"]
    lines = [
        "| arm | reward | diversity within a digit | Fréchet | digits | forwards | with gradient | seconds "
        "| forwards to GRPO's reward | seeds |",
        "| --- " * 10 + "|",
        f"| base | {before['reward']:.3f} | 100% | {before['frechet']:.1f} | {before['digit_accuracy']:.1%} "
        "| | | | | |",
    ]
    level = _level(by_arm)
    for arm, rows in by_arm.items():
        ends = [row["marks"][-1] for row in rows]
        needed = [reached(row, level, before["reward"]) for row in rows] if level is not None else []
        met = [each for each in needed if each is not None]
        to_level = f"{spread(met, '{:,.0f}')}" if met else ""
        if level is not None and len(met) < len(rows):
            to_level = f"{to_level} ({len(rows) - len(met)} of {len(rows)} never)".strip()
        cells = [
            spread([end["reward"] for end in ends], "{:.3f}"),
            spread([end["diversity"] / diversity for end in ends], "{:.0%}"),
            spread([end["frechet"] for end in ends], "{:.1f}"),
            spread([end["digit_accuracy"] for end in ends], "{:.1%}"),
            f"{rows[0]['forwards']:,}",
            f"{rows[0]['with_gradient']:,}",
            spread([row["seconds"] for row in rows], "{:.0f}"),
            to_level,
            ", ".join(str(row["seed"]) for row in rows),
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    where = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    recipes = "\n".join(
        f"* *{name}*: `examples/{arm['recipe']}`, {arm['steps']} updates"
        + "".join(f", `{key.removeprefix('training.')}` {json.dumps(value)}" for key, value in arm["changes"].items())
        for name, arm in facts["arms"].items()
        if name in by_arm
    )
    return f"""# Evidence: methods on rewards

The reward is the log-probability, at temperature 4, that the judge gives to the digit of the prompt. It can be hacked:
images that the judge is surest of are few.

{chr(10).join(lines)}

Median (lowest to highest) over training seeds. Every row judges {SAMPLES} images from the same seeds ({UNSEEN} and up),
{SAMPLING_STEPS} steps, no guidance, with the stock pipeline and `load_lora_weights`. A *forward* is one sample seen by
the network once, in rollouts and in updates, with its gradient or without; a backward pass is not counted. *Seconds*
are processor time of the training; the rewards of rollouts and writing checkpoints are part of it.
*Diversity* is the variance of the judge's features among images of one digit, as a share of the base's.

{recipes}

All train at a rate of 1e-3. For GRPO 2e-3 was tried too, on training seed 0 and other sampling seeds, and ended lower;
no other setting was compared. Reward, diversity and Fréchet distance are of one judge: whether another network would
agree was not tested.

{verdict(facts)}

![reward against forwards and against seconds, diversity against reward](rollouts.png)

Reproduce: `python -m benchmarks.evidence rollouts`. Measured on: {where}. Numbers: `rollouts.json`.
"""


def verdict(facts: Mapping[str, Any]) -> str:
    """Say whether NFT reaches the reward of GRPO in the share of forwards that was set as the goal."""
    by_arm = _by_arm(facts["rows"])
    level = _level(by_arm)
    if level is None or NFT not in by_arm:
        return "The goal, NFT at GRPO's reward in a third of the forwards, was not measured."
    whole = by_arm[GRPO][0]["forwards"]
    needed = [reached(row, level, facts["base"]["reward"]) for row in by_arm[NFT]]
    goal = (
        f"The goal is that NFT has GRPO's last reward, {level:.3f} in the median, in at most a third of its forwards."
    )
    if None in needed:
        never = sum(each is None for each in needed)
        return f"{goal} **Not reached**: {never} of {len(needed)} runs of NFT never have it."
    shares = [each / whole for each in needed if each is not None]
    graded = [
        share * whole / row["forwards"] * row["with_gradient"] for share, row in zip(shares, by_arm[NFT], strict=True)
    ]
    word = "Reached" if statistics.median(shares) <= GOAL else "**Not reached**"
    return (
        f"{goal} {word}: it has it after {spread(shares, '{:.0%}')} of them. Both sample groups of 8 in 6 steps, and "
        "that is most of what either costs, so the rest is in what an update does: of the forwards with a gradient, "
        f"GRPO took {by_arm[GRPO][0]['with_gradient']:,} and NFT, up to there, {spread(graded, '{:,.0f}')}."
    )


def _by_arm(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(row)
    return found


def _level(by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> float | None:
    """Return the reward that GRPO ends with, in the median."""
    if GRPO not in by_arm:
        return None
    return statistics.median(row["marks"][-1]["reward"] for row in by_arm[GRPO])


def plot(facts: Mapping[str, Any], file: Path) -> None:
    """Draw the reward on the way, and what it costs in diversity."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    before = facts["base"]
    for place, (arm, rows) in enumerate(_by_arm(facts["rows"]).items()):
        for axis, key in ((axes[0], "forwards"), (axes[1], "seconds")):
            along = [0.0, *(statistics.median(row["marks"][i][key] for row in rows) for i in range(MARKS))]
            rewards = [[before["reward"]], *([row["marks"][i]["reward"] for row in rows] for i in range(MARKS))]
            axis.plot(along, [statistics.median(each) for each in rewards], "o-", color=f"C{place}", label=arm)
            axis.fill_between(along, [min(each) for each in rewards], [max(each) for each in rewards], alpha=0.15)
            axis.set_xlabel(key)
            axis.set_ylabel("reward")
        for row in rows:
            marks = row["marks"]
            shares = [1.0, *(mark["diversity"] / before["diversity"] for mark in marks)]
            axes[2].plot(
                [before["reward"], *(mark["reward"] for mark in marks)], shares, "-", color=f"C{place}", alpha=0.6
            )
    axes[2].set_xlabel("reward")
    axes[2].set_ylabel("diversity within a digit, share of the base's")
    axes[2].set_ylim(0)
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=150)

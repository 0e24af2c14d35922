"""Do preference runs run away, and what holds them? ``python -m benchmarks.running_away`` trains the digits on pairs at
20 times the recipe's rate and 100 times a published beta, with each guard and each objective, and prints the error on
the preferred side over that of the reference, of the weights that the run ended with and of what it logged. 1 is the
reference; a run whose weights are above 1.5 on the fixed pairs has run away. It exits with 1 where an arm with the
default guards has.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence_preferences_digits import Probe
from flowhooks.config import load_run
from flowhooks.digits.model import ensure_model
from flowhooks.digits.report import load_stock
from flowhooks.hooks.preference_spec import PATIENCE
from flowhooks.manifest import HISTORY
from flowhooks.printing import say
from flowhooks.quiet import quiet_libraries
from flowhooks.train import train

RECIPE = Path(__file__).parents[1] / "examples/flow_dpo/digits.json"
#: The recipe's rate is 1e-4; 2,000 is a published beta of means.
RATE, BETA = 20 * 1e-4, 100 * 2000.0
DEFAULT = {"type": "flow_dpo", "norm_type": "mean", "beta": BETA}
DPO = {**DEFAULT, "stop_when": None}
#: The winner error over the reference's, on fixed pairs at fixed noise and sigmas, above which a run has run away.
AWAY = 1.5
STOP = {"detector": "win_error", "limit": 1.2, "patience": 1}
#: Arm -> the objective.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "default": DEFAULT,
    "default, auto-beta": {**DEFAULT, "auto_beta": True},
    "no guard": DPO,
    "auto-beta": {**DPO, "auto_beta": True},
    "margin_cap": {**DPO, "margin_cap": 5.89 / BETA},
    "win_weight": {**DPO, "win_weight": 1.0},
    "margin_cap, win_weight": {**DPO, "margin_cap": 5.89 / BETA, "win_weight": 1.0},
    "stop_when": {**DPO, "stop_when": STOP},
    "ipo": {"type": "ipo", "beta": 100.0, "stop_when": None},
    "linear_dpo": {"type": "linear_dpo", "beta": BETA, "stop_when": None},
    "default, linear_dpo": {"type": "linear_dpo", "beta": BETA},
    "linear_dpo, win_weight": {"type": "linear_dpo", "beta": BETA, "win_weight": 1.0, "stop_when": None},
    "mapo": {"type": "mapo", "beta": BETA},
    "kto": {"type": "kto", "label": None, "beta": BETA, "stop_when": None},
}


def ratios(history: Path, name: str) -> Iterator[float]:
    """The error on the preferred side over that of the reference, at each logged step."""
    for line in history.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        win, reference = (values.get(f"{name}_{who}_win_err") for who in ("policy", "ref"))
        # An objective without a reference is compared with where it began.
        yield win / reference if win and reference else win if win else math.nan


def lasting(found: Sequence[float]) -> float:
    """Return the largest value that `PATIENCE` logged steps in a row reach: one of a small batch is noise."""
    return max(min(found[first : first + PATIENCE]) for first in range(max(1, len(found) - PATIENCE + 1)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.running_away", description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--output", type=Path, default=Path("runs/running_away"), help="folder that is not there yet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    measured = f"winner error over the reference's on {Probe.COUNT} fixed pairs | logged last | most | most that lasted"
    say(f"| arm | seed | steps | {measured} |")
    say("|---|---|---|---|---|---|---|")
    away, base = False, ensure_model()
    probe = Probe.of(base)
    for arm in arguments.arms:
        objective = ARMS[arm]
        for seed in arguments.seeds:
            folder = arguments.output / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
            overrides = (
                f"hooks={json.dumps([objective])}",
                f"training.max_train_steps={arguments.steps}",
                f"training.train_batch_size={arguments.batch}",
                f"training.learning_rate={RATE}",
                f"training.seed={seed}",
                "training.log_every_steps=10",
                "validation={}",
                f"output_dir={folder}",
            )
            with quiet_libraries():
                result = train(load_run(RECIPE, overrides, complete=True), progress=False)
            found = list(ratios(folder / HISTORY, str(objective["type"])))
            if objective["type"] == "mapo":
                found = [each / found[0] for each in found]
            # What was logged after the step that the run went back to is in the file.
            kept = [each for each, line in zip(found, _steps(folder / HISTORY), strict=True) if line <= result.step]
            stopped = f", {result.stopped.split(':')[0]}" if result.stopped else ""
            error = probe.errors(load_stock(base, result.output_dir))["win_error"]
            numbers = f"{error:.3f} | {kept[-1]:.3f} | {max(found):.3f} | {lasting(found):.3f}"
            say(f"| {arm} | {seed} | {result.step:,}{stopped} | {numbers} |", flush=True)
            away |= arm.startswith("default") and not error < AWAY
    return int(away)


def _steps(history: Path) -> list[int]:
    return [json.loads(line)["step"] for line in history.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())

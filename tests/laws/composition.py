"""Which methods run together: every pair, planned as ``check`` plans it, and the page that says so.

``python -m tests.laws.composition > docs/compose.md`` makes the page. No model and no data are needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowhooks.checks.planning import plan_run
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError
from flowhooks.hooks.planning import step_cost
from flowhooks.kernel.plan import Plan
from flowhooks.methods import METHODS

_DRAWN = {"prompts": ["one", "a photo of two"], "num_inference_steps": 4}
_REWARDS = [{"type": "clip_score", "model": "a/model"}]
#: What a method cannot do without. A method that is not here runs on its defaults.
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "adjoint_matching": {**_DRAWN, "rewards": _REWARDS},
    "awm": {**_DRAWN, "group_size": 2, "rewards": _REWARDS},
    "crd": {**_DRAWN, "group_size": 2, "rewards": _REWARDS},
    "dgpo": {**_DRAWN, "group_size": 2, "rewards": _REWARDS},
    "diffusion_nft": {**_DRAWN, "group_size": 2, "rewards": _REWARDS},
    "flow_grpo": {**_DRAWN, "group_size": 2, "rewards": _REWARDS},
    "flow_opd": {**_DRAWN, "teachers": {"b": "a/teacher"}},
    "kto": {"label": None},
    "online_dpo": {**_DRAWN, "group_size": 2, "rewards": _REWARDS},
    "self_flow": {"block_index": 0, "teacher_block_index": 1},
}
DATA = frozenset({"data:image", "data:rejected", "data:mask"})


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods in one run.

    Args:
        first, second: their names.
        plan: what they run as; None where they are refused.
        reason: why they are refused; empty where they run.
    """

    first: str
    second: str
    plan: Plan | None
    reason: str


def pairs() -> Iterator[Pair]:
    """Every two methods, with the options that they cannot do without and data that has all sides."""
    for first, second in itertools.combinations(METHODS, 2):
        methods = {name: dict(REQUIRED.get(name, {})) for name in (first, second)}
        document = {"method": methods, "training": {"use_ema": True}, "adapter": {"rank": 4}}
        try:
            planned = plan_run(resolve_run(document, Path("run.json")), DATA)
        except ConfigError as error:
            yield Pair(first=first, second=second, plan=None, reason="; ".join(p.message for p in error.problems))
        else:
            yield Pair(first=first, second=second, plan=planned, reason="")


def reason_alone(pair: Pair) -> str:
    """The reason without the names before it and the advice after it, which are those of every pair."""
    return pair.reason.split(" cannot be trained in one run: ", 1)[1].rsplit("; train one after", 1)[0]


def in_words(plan: Plan) -> str:
    """What the total of a run holds."""
    replaced = next((each for each in plan.order if "objective" in each.slots), None)
    target = next((each for each in plan.order if "target:main" in each.slots), None)
    base = replaced or target
    terms = ["the flow-matching loss" if base is None else f"the loss of `{base.method or base.type}`"]
    for each in plan.order:
        if "penalty" in each.slots and each.type == "flow_matching_loss":
            terms.append("`weight` of `sft` times the flow-matching loss on the data")
        elif "penalty" in each.slots and each.passes:
            twice = sum(other.type == each.type for other in plan.order) > 1
            near = f" near `{each.options['role']}`" if twice else ""
            terms.append(f"`{each.type}` of `{each.method}`{near}")
    drawn = any("source" in each.slots for each in plan.order)
    cost = step_cost(plan)
    part = "chunk" if cost.chunks == 1 else "chunks"
    chunks = f"; a step has {cost.chunks} generated {part} and 1 of data" if drawn and cost.on_data else ""
    return " + ".join(terms) + chunks


def page() -> str:
    """``docs/compose.md``."""
    found = list(pairs())
    names = METHODS
    lookup = {(pair.first, pair.second): pair for pair in found}
    lines = [
        _INTRODUCTION,
        "",
        "| | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in names:
        cells = []
        for column in names:
            pair = lookup.get((row, column)) or lookup.get((column, row))
            cells.append("" if pair is None else "runs" if pair.plan is not None else "refused")
        lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
    lines += ["", "## What runs together", "", "| methods | the total loss of a step |", "|---|---|"]
    lines += [f"| `{p.first}` + `{p.second}` | {in_words(p.plan)} |" for p in found if p.plan is not None]
    lines += ["", "## What is refused", "", "| methods | why |", "|---|---|"]
    lines += [f"| `{p.first}` + `{p.second}` | {reason_alone(p)} |" for p in found if p.plan is None]
    return "\n".join(lines) + "\n" + _REST


_INTRODUCTION = """# Methods together

A run may name several methods, side by side in `method`. Either both losses are in the total, each with its own
gradient, or `flowhooks check` refuses the two and says why. `python -m tests.laws.composition` makes this page from the
plan that `check` makes, and a test compares every row with what a step really computes."""

_REST = """
Two methods that cannot share a run can be trained in two runs, one after the other: the second run starts from the
first one's result with `adapter.init_from`. Its reference is then still the base model, with its adapter off.

## `sft` beside another method

`sft` alone is plain flow matching. Beside another method it adds the ordinary flow-matching loss of the images of the
data, `weight` times (1 unless you write it), masked where the data has masks:

```json
{
  "method": {
    "flow_dpo": {"beta": 2.0},
    "sft": {"weight": 0.2}
  }
}
```

* Beside `flow_dpo` it scores the prediction of the preferred side that is made anyway, and costs no forward.
* Beside `anyflow` and `self_flow` it runs the network once more, at one noise level for the whole sample.
* Beside a method that generates its samples, a step has one more chunk: the batch of the data, at the noise levels of
  `timestep_schedule` with its defaults. The losses of the generated chunks are shares of the method's loss, as
  without `sft`; the whole loss of the data is added to them, times `weight`. Such a run needs `data`. Where the method
  has `prompts` of its own, captions of the data are used for its images only. The logged `loss` is the sum.

`sft_loss` in the logs is the weighted term. In a run that is written as hooks, use the hook
[`flow_matching_loss`](options.md#hooksflow_matching_loss). Beside a hook of your own that replaces the loss,
add it yourself.

## Data and generated samples

Pairs, masks, intervals and two noise levels belong to images of the data. A method that generates its samples has none
of them, so the plan refuses them beside it. The message gives the method's name where the run names a method, and the
hook's type where the run names a hook.

## The self-test of Flow-DPO

Before the first update the policy without its adapter must be the reference. With a new adapter that means a margin of
exactly 0 and a loss of ln 2. With `adapter.init_from` the policy starts elsewhere, and the reference is the base model:
the test switches the adapter off and compares predictions bit by bit. The message names a hook that changes the policy
and not the reference.
"""


if __name__ == "__main__":
    print(page(), end="")

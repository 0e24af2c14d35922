"""Options and declarations that objectives of preferences share. Free of torch; their class is in ``preference``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flowhooks.documents.spec import closed_object, option
from flowhooks.hooks.spec import PAIRS, HookSpec
from flowhooks.kernel.plan import MAIN_VIEW, POLICY

#: The views of a pair.
WIN, LOSE = MAIN_VIEW, "rejected"
NORM_TYPE = (
    "How the error of a sample becomes one number. `sum` and `mean` go over all latent elements. `masked_mean` "
    "is the sum over the mask divided by the mask's own sum (at least 1), or `mean` where there is no mask."
)
ONE_TARGET = (
    "a pair is scored against one target, `e - x0`, on both sides and under both models, and {other} replaces it on "
    "the preferred side of the policy"
)
#: Values of `reference` that are no adapter's place.
BASE, INIT, EMA = "base", "init", "ema"


def reference_role(reference: str) -> str:
    """Return the role of the network that plays an option `reference`."""
    return {BASE: "reference", EMA: "ema", INIT: "adapter:init"}.get(reference, "adapter:reference")


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A sign that a preference run goes wrong, read from what is logged.

    Args:
        over: the metric, without the name of the objective.
        under: a metric that it is divided by; empty for none.
        limit: where it is on by default.
        above: whether it is on above the limit; else below.
        means: what it says of the run.
    """

    over: str
    under: str = ""
    limit: float
    above: bool = True
    means: str


#: What a run can end by, in `stop_when`.
DETECTORS: Mapping[str, Detector] = {
    "win_error": Detector(
        over="policy_win_err",
        under="ref_win_err",
        limit=1.2,
        means="the error on the preferred side over that of the reference",
    ),
    "lose_only": Detector(
        over="lose_only_pct",
        limit=50.0,
        means="the percentage of pairs whose preferred side got worse at a margin above 0",
    ),
    "saturated": Detector(over="gradient_factor", limit=0.05, above=False, means="the gradient factor"),
    "drift": Detector(over="drift", limit=0.5, means="the distance from the reference over its size"),
}
PATIENCE = 3
#: The value of `stop_when` that watches where a run has a step to go back to, and by which rule.
AUTO = "auto"
AUTO_STOP: Mapping[str, Any] = {"detector": "win_error", "limit": 1.5, "patience": PATIENCE}
_STOP = closed_object(
    {
        "detector": {
            "description": "What is watched. "
            + " ".join(
                f"`{name}`: {each.means}, {'above' if each.above else 'below'} {each.limit:g}."
                for name, each in DETECTORS.items()
            ),
            "enum": list(DETECTORS),
        },
        "limit": {
            "description": "Where the detector is on; `null` is its own limit.",
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": 1_000_000,
            "default": None,
        },
        "patience": {
            "description": "Logged steps in a row at which it must be on.",
            "type": "integer",
            "minimum": 1,
            "maximum": 1_000_000,
            "default": PATIENCE,
        },
    },
    required=["detector"],
)


class PreferenceSpec(HookSpec):
    """Learns from images that people prefer to others. An objective derives from it, beside its own folder."""

    slots = {"reduce", "objective", "metrics"}
    wants = {"mask"}
    excludes = {"rollout": PAIRS, "target:main": ONE_TARGET}
    page = "preferences.md"
    #: Whether it has a formula for pairs of which neither side is preferred.
    takes_ties: ClassVar[bool] = False
    #: Whether `beta` multiplies differences of errors, so that it means as much as their reduction.
    beta_of_errors: ClassVar[bool] = True

    norm_type: Literal["sum", "mean", "masked_mean"] = option(NORM_TYPE, default="mean")
    sft_loss_weight: float = option(
        "Weight of the ordinary flow-matching loss on the preferred side, unmasked, which is added.",
        default=0.0,
        minimum=0,
        maximum=1_000_000,
    )


class ComparedSpec(PreferenceSpec):
    """Learns from how much less the policy errs than a reference."""

    needs = {"view:rejected", "role:reference"}
    passes = ((WIN, POLICY), (LOSE, POLICY), (WIN, "reference"), (LOSE, "reference"))
    words = {
        "needs": "`view:rejected`, `role:reference`, or `role:ema` with `reference: ema`",
        "gives": "`role:adapter:init` with `reference: init`, `role:adapter:reference` with that of an adapter",
    }
    #: Those of :data:`DETECTORS` whose metrics this objective logs.
    detectors: ClassVar[tuple[str, ...]] = ("win_error", "lose_only", "drift")

    reference: str = option(
        "The model that the policy is compared with. `base`: its adapter off. `init`: the adapter of "
        "`adapter.init_from`, as it was at the start. `ema`: the average of the trained weights that "
        "`training.use_ema` keeps. Else a file, folder or Hub id of a frozen adapter on the base.",
        default=BASE,
        format="path",
        minLength=1,
        examples=[BASE, INIT, EMA, "runs/sft"],
    )
    win_weight: float = option(
        "Protects what is preferred: weight of a penalty where the policy errs more on it than the reference. At 1 it "
        "is pulled back as strongly as it is pulled at the start.",
        default=0.0,
        minimum=0,
        maximum=1_000_000,
    )
    stop_when: Mapping[str, Any] | str | None = option(
        "Ends the run where a detector stays on, and goes back to the last logged step at which it was off. "
        f"`{AUTO}` is `{json.dumps(AUTO_STOP)}`, where an adapter is trained. Detectors: "
        + ", ".join(f"`{name}` ({each.means})" for name, each in DETECTORS.items())
        + ". `null` never ends it.",
        default=AUTO,
        schema={**_STOP, "pattern": f"^{AUTO}$"},
    )

    @property
    def sides(self) -> tuple[str, ...]:
        """The views that are compared."""
        return WIN, LOSE

    @property
    def role(self) -> str:
        """The role that the reference plays."""
        return reference_role(self.reference)

    @property
    def stop_rule(self) -> Mapping[str, Any] | None:
        """What the run ends by, where it has a step to go back to; None never ends it."""
        return self.stop_when if self.stop_when is None or isinstance(self.stop_when, Mapping) else AUTO_STOP

    def declares(self) -> Mapping[str, Any]:
        own = self.role.startswith("adapter:")
        return {
            "needs": {"view:rejected", "role:reference" if own else f"role:{self.role}"},
            "gives": {f"role:{self.role}"} if own else set(),
            "passes": tuple((view, role) for role in (POLICY, self.role) for view in self.sides),
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        watched = str((self.stop_rule or {}).get("detector"))
        if watched in DETECTORS and watched not in self.detectors:
            yield (
                "stop_when.detector",
                f"`{self.type}` logs no {DETECTORS[watched].means}; take one of {self.detectors}",
            )


class PairSpec(ComparedSpec):
    """Learns from pairs by how much better than a reference the policy tells their sides apart."""

    margin_cap: float | None = option(
        "A pair whose margin is above this, in units of `norm_type`, has no gradient: it is apart enough. It does not "
        "protect the preferred side on its own. `null` sets no cap.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )

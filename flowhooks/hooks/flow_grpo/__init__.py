"""Flow-GRPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from flowhooks.documents.spec import option, properties_of
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY
from flowhooks.rewards.registry import masked_by

#: (option, value) -> the paper that it is of.
_VARIANTS = {
    ("combine", "decoupled"): "gdpo2026",
    ("ratio", "guarded"): "grpoguard2025",
    ("trust", "divergence"): "flowdppo2026",
}


class FlowGRPOSpec(HookSpec, type="flow_grpo", title="Flow-GRPO"):
    """Policy gradient on rewards: images of one prompt compete, along stochastic steps."""

    slots = {"objective", "penalty", "metrics"}
    needs = {"rollout"}
    excludes = {
        "target:main": "the loss of {name} is made of rewards and asks for no target, so {other} would do nothing",
        "adapter_gate": "{name} samples in stochastic steps, and a gate needs deterministic ones",
    }
    passes = (("main", POLICY),)
    papers = ("liu2025flowgrpo", *_VARIANTS.values())
    page = "flow_grpo.md"
    words = {"needs": "`rollout`; with `kl_weight`: `role:reference`"}

    rewards: Sequence[Any] = option(
        "One block per reward, with `type`, the options of that reward, and `weight`.",
        minItems=1,
        items={"$ref": "../reward.schema.json"},
    )
    advantage_clip: float = option(
        "Advantages are clipped to this size, above and below 0.", default=5.0, exclusiveMinimum=0, maximum=1_000_000
    )
    combine: Literal["sum", "decoupled"] = option(
        "How several rewards become one advantage. `sum`: their weighted sum is compared within the group. "
        "`decoupled`: each is normalised within the group, and their weighted sum over the batch (GDPO).",
        default="sum",
    )
    spread: Literal["group", "batch"] = option(
        "With `combine` `sum`: what rewards are divided by, less the mean of their group: the standard deviation of "
        "each group, or of the whole batch.",
        default="group",
    )
    ratio: Literal["plain", "guarded"] = option(
        "With `updates_per_rollout` above 1: how far a step has become more likely since it was sampled. `plain`: the "
        "ratio of densities. `guarded`: the same without its bias, to the power of the step's deviation (GRPO-Guard).",
        default="plain",
    )
    trust: Literal["clip", "divergence"] = option(
        "With `updates_per_rollout` above 1: where a sample stops to count. `clip`: where its ratio leaves "
        "`clip_range` in the direction of its advantage. `divergence`: where its step is `divergence_threshold` or "
        "more from the sampled one and would go further (Flow-DPPO).",
        default="clip",
    )
    clip_range: float = option(
        "With `trust` `clip`: ratios count from 1 - this to 1 + this.", default=1e-4, exclusiveMinimum=0, maximum=1
    )
    divergence_threshold: float = option(
        "With `trust` `divergence`: the KL divergence per element from which a step goes no further.",
        default=1e-5,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    kl_weight: float = option(
        "Weight of the KL divergence, per element, of each stochastic step from that of the base; 0 costs nothing.",
        default=0.0,
        minimum=0,
        maximum=1_000_000,
    )
    kl_form: Literal["exact", "released"] = option(
        "`exact`: the divergence of the two steps. `released`: that times the step's length in sigma, as Flow-GRPO's "
        "code has it.",
        default="exact",
    )

    @classmethod
    def cites(cls, block: Mapping[str, Any]) -> tuple[str, ...]:
        return ("liu2025flowgrpo", *(paper for (name, value), paper in _VARIANTS.items() if block.get(name) == value))

    def declares(self) -> Mapping[str, Any]:
        needs = {*type(self).needs, *masked_by(self.rewards)}
        if not self.kl_weight:
            return {"needs": needs}
        return {
            "needs": {*needs, "role:reference"},
            "passes": (*type(self).passes, ("main", "reference")),
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.combine == "decoupled" and self.spread != "group":
            yield "spread", "is about `combine` 'sum'; 'decoupled' has both spreads, so leave this out"
        if self.trust != "clip" and self.clip_range != _default("clip_range"):
            yield "clip_range", f"is about `trust` 'clip', and that is {self.trust!r}; leave one of them out"
        if self.trust != "divergence" and self.divergence_threshold != _default("divergence_threshold"):
            yield (
                "divergence_threshold",
                f"is about `trust` 'divergence', and that is {self.trust!r}; set it, or leave this out",
            )
        if not self.kl_weight and self.kl_form != "exact":
            yield "kl_form", "is the form of a divergence of `kl_weight` 0; give that a weight, or leave this out"

    @property
    def of_later_updates(self) -> list[str]:
        """The names of options that are set and count in later updates on a rollout only."""
        named = ("ratio", "trust", "clip_range", "divergence_threshold")
        return [name for name in named if getattr(self, name) != _default(name)]


def _default(name: str) -> Any:
    return properties_of(FlowGRPOSpec)[name]["default"]

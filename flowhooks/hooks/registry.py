"""The hooks flowhooks ships: name -> class path and declaration. Free of torch; the classes are imported when a run
is built.

One entry per hook, and its order here breaks ties in a plan. A test holds each declaration's slots to the methods its
class defines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowhooks.documents.imports import foreign_options, imported, subclass_of
from flowhooks.errors import ConfigError, Problem
from flowhooks.kernel.plan import EVERY_VIEW, POLICY, Declaration
from flowhooks.sampling.prompts import visited_places

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """Where a hook's class lives and what it declares under given options."""

    path: str
    declare: Callable[[Options], dict[str, Any]]


_PAIRS = "pairs come from the data, and {other} trains on samples that it draws"
_FLOW_MAP = (
    "a flow map is learned on intervals between noise and an image of the data, and {other} trains on samples that it "
    "draws, step by step"
)
_FEATURES = (
    "features are compared at the noisy images of the data, and {other} trains on samples that the pipeline draws with "
    "its own guidance"
)
_TWIN = "Self-Flow gives every token a time of its own, TwinFlow each sample one interval"


def _anchor(options: Options) -> dict[str, Any]:
    if not options["weight"]:
        return {"slots": {"penalty", "metrics"}}
    role, own = options["role"], options["adapter"] is not None
    return {
        "slots": {"penalty", "metrics"},
        "needs": {"role:reference" if own else f"role:{role}"},
        "gives": {f"role:{role}"} if own else set(),
        "passes": ((EVERY_VIEW, POLICY), (EVERY_VIEW, role)),
    }


def _intervals(options: Options) -> dict[str, Any]:
    own_sigma = options["r_timestep_sampler"] == "mixture"
    return {
        "slots": {"views", "metrics"},
        "excludes": {"rollout": _FLOW_MAP},
        "needs": {"second_time"} | (set() if own_sigma else {"sigma"}),
        "gives": {"r_sigma"} | ({"sigma"} if own_sigma else set()),
    }


def _target(options: Options) -> dict[str, Any]:
    mode, on_reference = options["target_mode"], options["velocity"] == "reference"
    built = mode in ("flow_map", "shortcut")
    roles = {"role:ema"} if mode == "shortcut" else set()
    if mode == "online_teacher" or (built and on_reference):
        roles |= {"role:reference"}
    asked = {"linear": 0, "online_teacher": options["teacher_rollout_steps"], "flow_map": 1, "shortcut": 2}[mode]
    return {
        "slots": {"target:main", "error", "metrics"},
        "excludes": {"rollout": _FLOW_MAP},
        "needs": {"r_sigma", *roles},
        "passes": (("main", POLICY),),
        "queries": asked + (built and on_reference) + (options["guidance_scale"] != 1),
    }


def _matching(options: Options) -> dict[str, Any]:
    if not options["weight"]:
        return {"slots": {"penalty", "metrics"}}
    return {
        "slots": {"penalty", "metrics"},
        "excludes": {"rollout": _FLOW_MAP},
        "needs": {"second_time", "role:reference"},
        "gives": {"role:critic"},
        # The jumps, the teacher, the critic, and the critic again where it is trained.
        "queries": options["jumps"] + 3,
    }


def _trajectory(options: Options) -> dict[str, Any]:
    return {
        "slots": {"target:main", "metrics"},
        "excludes": {"rollout": _FLOW_MAP},
        "needs": {"r_sigma", "role:ema"},
        "passes": (("main", POLICY),),
        # The average's jumps, the policy in full precision, and with guidance the average at t.
        "queries": options["estimate_order"] + 1 + bool(options["enhanced_ratio"]),
    }


def _twin(options: Options) -> dict[str, Any]:
    if not options["adversarial_weight"]:
        return {"slots": {"penalty", "metrics"}}
    return {
        "slots": {"penalty", "metrics"},
        "excludes": {"rollout": _FLOW_MAP},
        "needs": {"second_time"},
        "gives": {"negative_times"},
        # The sample, the negative branch, and where samples are corrected both branches at once.
        "queries": 2 + bool(options["rectification_weight"]),
    }


def _alignment(options: Options) -> dict[str, Any]:
    if not options["weight"]:
        return {"slots": {"penalty", "metrics"}}
    on_base, on_average = (options["source"] == source for source in ("backbone", "self_flow"))
    needs = {"role:reference"} if on_base else {"role:ema", "token_sigma"} if on_average else set()
    return {
        "slots": {"penalty", "metrics"},
        "needs": needs,
        "gives": {"alignment_loss"},
        "passes": (("main", POLICY), *([("main", "reference")] if on_base else [])),
        "queries": int(on_average),
        "excludes": {"rollout": _FEATURES, **({"twin_flow": _TWIN, "twin_flow_target": _TWIN} if on_average else {})},
    }


def _rollout(options: Options) -> dict[str, Any]:
    steps = options["num_inference_steps"]
    window = options["window"] if options["sampler"] != "ode" else None
    places = visited_places(steps, options["train_fraction"], window)
    chunks = min(options["visits"] or len(places), len(places))
    if options["last_steps"] is not None:
        chunks = min(options["last_steps"] + options["early_visits"], steps)
    elif options["sigma_max"] is not None:
        chunks = steps
    return {
        "slots": {"source"},
        "needs": set() if options["prompts"] is not None else {"data:image"},
        "gives": {"sigma", "rollout"},
        "queries": steps,
        "chunks": chunks,
    }


def _teacher(options: Options) -> dict[str, Any]:
    names = list(options["teachers"])
    return {
        "slots": {"views", "target:main", "objective", "metrics"},
        "needs": {"sigma", "role:reference"},
        "wants": {"rollout"},
        "gives": {f"role:adapter:{name}" for name in names},
        "passes": (("main", POLICY),),
        # Prompts of one batch may be routed to all of them, and to the base.
        "queries": len(names) if options["routes"] is None else len(set(options["routes"].values())),
    }


def _adjoint(options: Options) -> dict[str, Any]:
    return {
        "slots": {"views", "target:main", "metrics"},
        "needs": {"rollout", "role:reference"},
        "passes": (("main", POLICY),),
        # The base; with full co-states the policy too, and once more where rollouts are guided.
        "queries": 3 if options["adjoint"] == "full" else 1,
    }


def _data_loss(options: Options) -> dict[str, Any]:
    needs = {"data:image"} | ({"data:mask"} if options["masked"] else set())
    shared = {"slots": {"data", "penalty"}}
    if options["prediction"] == "data":
        return {**shared, "needs": {*needs, "rollout"}, "queries": 1}
    drawn = {"rollout": "it reads a prediction on the data; beside {other} set its `prediction` to 'data'"}
    if options["prediction"] == "own":
        return {**shared, "needs": {*needs, "sigma"}, "wants": {"r_sigma"}, "queries": 1, "excludes": drawn}
    times = "beside {other} the prediction on `main` is not made at one noise level; set its `prediction` to 'own'"
    return {
        **shared,
        "needs": {*needs, "sigma"},
        "passes": (("main", POLICY),),
        "excludes": {**drawn, "r_sigma": times, "token_sigma": times},
    }


HOOKS: Mapping[str, Entry] = {
    "on_policy_rollout": Entry("flowhooks.hooks.on_policy:OnPolicyRollout", _rollout),
    "timestep_schedule": Entry(
        "flowhooks.hooks.timestep_schedule:TimestepSchedule",
        lambda options: {"slots": {"views"}, "gives": {"sigma", "density"}},
    ),
    "time_conditioning": Entry(
        "flowhooks.hooks.time_conditioning:TimeConditioningEnabler",
        lambda options: {"gives": {"second_time"}},
    ),
    "interval_times": Entry("flowhooks.hooks.interval_times:IntervalTimes", _intervals),
    "target_replacer": Entry("flowhooks.hooks.target_replacer:TargetReplacer", _target),
    "dual_times": Entry(
        "flowhooks.hooks.dual_times:DualTimes",
        lambda options: {
            "slots": {"views"},
            "needs": {"density"},
            "gives": {"token_sigma"},
            "excludes": {
                "interval_times": "an interval starts at one noise level, and {name} gives the tokens of a sample two",
                "rollout": "two noise levels are put on an image of the data, and {other} trains on samples that it "
                "draws, at the levels that its sampler goes through",
            },
        },
    ),
    "mask_reducer": Entry(
        "flowhooks.hooks.mask_reducer:MaskReducer",
        lambda options: {
            "slots": {"views", "error", "metrics"},
            "needs": {"data:mask"},
            "gives": {"mask"},
            "excludes": {
                "rollout": "a mask belongs to an image of the data, and {other} trains on samples that it draws"
            },
        },
    ),
    "paired_views": Entry(
        "flowhooks.hooks.paired_views:PairedViews",
        lambda options: {
            "slots": {"views"},
            "needs": {"sigma", "data:rejected"},
            "wants": {"mask", "r_sigma", "token_sigma"},
            "gives": {"view:rejected"},
            "excludes": {"rollout": _PAIRS},
        },
    ),
    "flow_dpo": Entry(
        "flowhooks.hooks.flow_dpo:FlowDPO",
        lambda options: {
            "slots": {"reduce", "objective", "metrics"},
            "needs": {"view:rejected", "role:reference"},
            "wants": {"mask"},
            "excludes": {
                "rollout": _PAIRS,
                "target:main": "a pair is scored against one target, `e - x0`, on both sides and under both models, "
                "and {other} replaces it on the preferred side of the policy",
            },
            "passes": (
                ("main", POLICY),
                ("rejected", POLICY),
                ("main", "reference"),
                ("rejected", "reference"),
            ),
        },
    ),
    "teacher_velocity": Entry("flowhooks.hooks.teacher_velocity:TeacherVelocity", _teacher),
    "flow_grpo": Entry(
        "flowhooks.hooks.flow_grpo:FlowGRPO",
        lambda options: {
            "slots": {"objective", "metrics"},
            "needs": {"rollout"},
            "excludes": {
                "target:main": "the loss of {name} is made of rewards and asks for no target, so {other} would do "
                "nothing",
                "adapter_gate": "{name} draws with chance, and a gate goes with steps that have none",
            },
            "passes": (("main", POLICY),),
        },
    ),
    "adjoint_target": Entry("flowhooks.hooks.adjoint_target:AdjointTarget", _adjoint),
    "adapter_gate": Entry(
        "flowhooks.hooks.adapter_gate:AdapterGate",
        lambda options: {"needs": {"rollout", "role:reference"}},
    ),
    "anchor_regularizer": Entry("flowhooks.hooks.anchor_regularizer:AnchorRegularizer", _anchor),
    "flow_matching_loss": Entry("flowhooks.hooks.flow_matching_loss:FlowMatchingLoss", _data_loss),
    "distribution_matching": Entry("flowhooks.hooks.distribution_matching:DistributionMatching", _matching),
    "twin_flow_target": Entry("flowhooks.hooks.twin_flow_target:TwinFlowTarget", _trajectory),
    "twin_flow": Entry("flowhooks.hooks.twin_flow:TwinFlow", _twin),
    "feature_alignment": Entry("flowhooks.hooks.feature_alignment:FeatureAlignment", _alignment),
}

#: Need -> the hook that is added, with its defaults, when a run does not name one that gives it.
PROVIDERS: Mapping[str, str] = {
    "sigma": "timestep_schedule",
    "density": "timestep_schedule",
    "rollout": "on_policy_rollout",
    "token_sigma": "dual_times",
    "second_time": "time_conditioning",
    "r_sigma": "interval_times",
    "view:rejected": "paired_views",
}


def declare(type: str, options: Options, where: str, cls: Any = None, *, method: str = "") -> Declaration:
    """The declaration of a hook under its (validated, complete) options.

    Args:
        method: the method that stands for the hook; empty for one that was written itself.
        cls: the class of a hook that is not in the registry; imported from ``type`` when left out.

    Raises:
        ConfigError: the type is neither shipped nor the import path ``package.module:Class`` of a hook, or that hook's
            schema does not accept the options.
    """
    if type in HOOKS:
        fields = HOOKS[type].declare(options)
        place = list(HOOKS).index(type)
    else:
        if cls is None:
            cls = hook_class(type, where)
            options = foreign_options(dict(options), cls, None, where)
        fields = cls.declaration(options)
        place = len(HOOKS)
    frozen = {key: frozenset(fields.get(key, ())) for key in ("slots", "needs", "wants", "gives")}
    rank = (place, json.dumps(dict(options), sort_keys=True, default=str))
    return Declaration(
        type=type,
        where=where,
        method=method,
        rank=rank,
        passes=tuple(fields.get("passes", ())),
        queries=int(fields.get("queries", 0)),
        chunks=int(fields.get("chunks", 1)),
        excludes=dict(fields.get("excludes", {})),
        **frozen,
    )


def imply(defaults: Callable[[str], Options]) -> Callable[[str, str], Declaration | None]:
    """For :func:`flowhooks.kernel.plan.plan`: the default giver of a need, with options from ``defaults(type)``."""

    def default_hook(need: str, who: str) -> Declaration | None:
        type = PROVIDERS.get(need)
        if type is None:
            return None
        return declare(type, defaults(type), f"(implied by {who})")

    return default_hook


def undeclared(type: str, where: str) -> Declaration:
    """What stands for a hook of the user's own where nothing may be imported: a hook in no slot."""
    return Declaration(type=type, where=where, rank=(len(HOOKS), ""))


def hook_class(type: str, where: str) -> Any:
    """Import the class of a hook, shipped or third-party.

    Raises:
        ConfigError: no such hook; it cannot be imported, or is no subclass of :class:`flowhooks.Hook`.
    """
    # Needs torch, as every hook does.
    from flowhooks.kernel.hook import Hook

    path = HOOKS[type].path if type in HOOKS else type
    if ":" not in path:
        known = ", ".join(repr(t) for t in HOOKS)
        raise ConfigError(
            Problem(f"{type!r} is not a hook; known: {known}; or an import path 'package.module:Class'", path=where)
        )
    try:
        return imported(path, subclass_of(Hook), "subclass of flowhooks.Hook")
    except ImportError as error:
        raise ConfigError(Problem(f"cannot import the hook {type!r}: {error}", path=where)) from error

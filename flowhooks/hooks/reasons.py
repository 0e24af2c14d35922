"""Says which hooks cannot be in one run, and why: conflicts, and needs that no hook meets. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowhooks.errors import Problem
from flowhooks.kernel.plan import ANY_DATA, SLOTS, Declaration


def faults(hooks: Sequence[Declaration], given: frozenset[str]) -> list[Problem]:
    """Return why these hooks cannot be in one run whose data and training give ``given``."""
    return [*_clashes(hooks), *_unmet(hooks, given), *_idle(hooks)]


#: What two hooks clash over, in the order in which a reason is preferred -> the reason, when neither hook states one.
_CLASHES: Mapping[str, str] = {
    "objective": "each brings a loss that takes the place of the ordinary one, and a run has one such loss",
    "target": "each says what the network should predict, and a prediction has one target",
    "reduce": "each says how the error of a sample becomes one number, and a run has one way",
    "source": "each generates the samples that it trains on, and a step has one rollout",
    "data": "each trains on the data beside a rollout, and a step has one such part",
    "sigma": "each chooses the noise levels of the samples, and a sample has one",
}


def _clashes(hooks: Sequence[Declaration]) -> list[Problem]:
    """One problem for each two methods, or hooks, that cannot be in one run; a reason that a hook states goes first."""
    problems: dict[frozenset[str], Problem] = {}
    pairs = [(first, second) for i, second in enumerate(hooks) for first in hooks[:i]]
    for first, second in pairs:
        for hook, other in ((second, first), (first, second)):
            reason = _stated(hook, other)
            if reason is not None:
                problems.setdefault(_pair(first, second), _clash(other, hook, reason))
    over = {pair: _claims(pair[0]) & _claims(pair[1]) for pair in pairs}
    for slot, reason in [*_CLASHES.items(), ("", "")]:
        for (first, second), claims in over.items():
            taken = sorted(claim for claim in claims if not slot or claim.split(":")[0] == slot)
            if taken:
                words = reason or f"each gives {taken[0]!r}, and a run has one"
                problems.setdefault(_pair(first, second), _clash(first, second, words))
    return list(problems.values())


def _pair(first: Declaration, second: Declaration) -> frozenset[str]:
    return frozenset({first.method or first.where, second.method or second.where})


def _claims(hook: Declaration) -> frozenset[str]:
    """What only one hook of a run may write or give."""
    return frozenset(s for s in hook.slots if SLOTS[s.split(":")[0]] == "one") | hook.gives


def _stated(hook: Declaration, other: Declaration) -> str | None:
    """Why ``hook`` says that it cannot be in one run with ``other``."""
    for what, reason in hook.excludes.items():
        if what == other.type or what in other.gives or what in other.slots:
            return reason.format(name=_name(hook), other=_name(other))
    return None


def _clash(first: Declaration, second: Declaration, reason: str) -> Problem:
    if first.method and second.method:
        message = (
            f"{_name(first)} and {_name(second)} cannot be trained in one run: {reason}; train one after the other, "
            "the second run with the first one's result as `adapter.init_from`"
        )
    else:
        message = f"{_name(second)} cannot be in one run with {_name(first)} (at {first.where}): {reason}; remove one"
    return Problem(message, path=second.where)


def _name(hook: Declaration) -> str:
    """Return the name that the user wrote for the hook: its method, or its own type."""
    return f"`{hook.method or hook.type}`"


_WORDS = {
    "data:image": "images",
    "data:rejected": "a rejected side of the data",
    "data:mask": "masks in the data",
    "role:reference": "a reference",
    "role:ema": "an average of the weights",
    "group_noise": "one noise for all samples of a group",
    "goodness": "scored samples",
}
_REMEDY = {
    "data:rejected": "add a conditioning data set with conditioning_type 'reference_strict' and name it in "
    "conditioning_data, or name a column of the images' own table in rejected_column",
    "data:mask": "add a conditioning data set with conditioning_type 'mask' or 'segmentation' and name it in "
    "conditioning_data, or name a column of the images' own table in mask_column",
    "data": "name the column that holds it under {name!r} in the `columns` of every image data set",
    "role:reference": "the reference is the model with its adapter off, so give the run an 'adapter' section",
    "role:old": "add a lagged_copy hook",
    "role:sampler": "add a lagged_copy hook with `role` 'sampler'",
    "group_noise": "set `noise` of the ends hook to 'group'",
    "goodness": "name a method that learns from them, such as awm, crd, dgpo or diffusion_nft, or leave out "
    "`least_weight`",
    "role:ema": "set training.use_ema to true",
    "role:adapter": "name it in the `teachers` of a teacher_velocity hook, or use 'reference' or 'ema'",
}


def _unmet(hooks: Sequence[Declaration], given: frozenset[str]) -> list[Problem]:
    available = given | {g for d in hooks for g in d.gives}
    problems = []
    for d in hooks:
        for need in sorted(d.needs - available):
            if ANY_DATA in given and need.startswith("data:"):
                continue
            kind, _, name = need.rpartition(":")
            remedy = _REMEDY.get(need, _REMEDY.get(kind, "add a hook that gives it")).format(name=name)
            message = f"{_name(d)} needs {_WORDS.get(need, repr(need))}, which nothing in this run gives; {remedy}"
            problems.append(Problem(message, path=d.where))
    return problems


def _idle(hooks: Sequence[Declaration]) -> list[Problem]:
    """Refuses generated states without a hook that learns from them: they have no clean image and noise."""
    if any(slot in ("objective", "target:main") for d in hooks for slot in d.slots):
        return []
    message = (
        "generates samples, and nothing in this run learns from them; name a method that does: flow_opd, flow_grpo, "
        "adjoint_matching, online_dpo, diffusion_nft, awm, dgpo or crd"
    )
    return [Problem(f"{_name(d)} {message}", path=d.where) for d in hooks if "source" in d.slots]

"""An adapter that is off above a noise level: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec


class AdapterGateSpec(HookSpec, type="adapter_gate", title="Adapter gate"):
    """The adapter is off in steps that start above a sigma, in rollouts as in validation; the sigma is noted in the
    adapter's file."""

    needs = {"rollout", "role:reference"}
    page = "adjoint_matching.md#truncation"

    sigma: float = option(
        "The adapter is off in steps that start above this sigma, in (0, 1]; 1 is pure noise. The rollout must be "
        "visited at or below it (`sigma_max`), without `early_visits`.",
        exclusiveMinimum=0,
        maximum=1,
    )

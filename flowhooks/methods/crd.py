"""CRD: scored samples of a copy of their own, and a divergence from the guided base that grows with the reward."""

from __future__ import annotations

from flowhooks.hooks.crd import CRDSpec
from flowhooks.methods.scored import anchored, lagged, sampled
from flowhooks.methods.spec import Method, Part


class CRDMethod(Method, type="crd", title="Centred reward distillation method"):
    """Centred reward distillation: rewards of whole samples, fitted by what they gain over the old model. Expands to
    ends, lagged_copy for the old model and for the sampler, crd and anchor_regularizer."""

    parts = (
        sampled(by="sampler"),
        lagged("old", growth=0.005, least=0.25, most=0.999),
        lagged("sampler"),
        Part(hook=CRDSpec),
        anchored(0.1, least=1e-4, guidance=4.5),
    )

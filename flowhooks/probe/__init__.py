"""Learn how a stock pipeline speaks to its network by running it once, instead of porting it.

What is learned says how images become latents and latents become what the network takes: :class:`Layout` holds those
shapes, and whatever must fit them, masks included, is brought to them here.
"""

from __future__ import annotations

from flowhooks.probe.conditioning import Condition
from flowhooks.probe.contract import PipelineContract
from flowhooks.probe.layout import Layout
from flowhooks.probe.learn import probe
from flowhooks.probe.model import FlowModel
from flowhooks.probe.tokens import Tokens, TokenSigma

__all__ = ["Condition", "FlowModel", "Layout", "PipelineContract", "TokenSigma", "Tokens", "probe"]

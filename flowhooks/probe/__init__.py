"""Learn how a stock pipeline calls its network by running it once, instead of porting it.

The result says how images become latents and latents become the network's input: :class:`Layout` holds those
shapes, and this room converts to them whatever must fit, masks included.
"""

from __future__ import annotations

from flowhooks.probe.conditioning import Condition
from flowhooks.probe.contract import PipelineContract
from flowhooks.probe.layout import Layout
from flowhooks.probe.learn import probe
from flowhooks.probe.model import FlowModel
from flowhooks.probe.tokens import Tokens, TokenSigma

__all__ = ["Condition", "FlowModel", "Layout", "PipelineContract", "TokenSigma", "Tokens", "probe"]

"""Learn how a stock pipeline speaks to its network by running it once, instead of porting it."""

from __future__ import annotations

from flowhooks.probe.conditioning import Condition
from flowhooks.probe.contract import PipelineContract
from flowhooks.probe.layout import Layout
from flowhooks.probe.learn import probe
from flowhooks.probe.model import FlowModel
from flowhooks.probe.tokens import Tokens, TokenSigma

__all__ = ["Condition", "FlowModel", "Layout", "PipelineContract", "TokenSigma", "Tokens", "probe"]

"""Help tests, ours and others', with tiny pipelines of the real classes, and the analytic Gaussian flow."""

from __future__ import annotations

from flowhooks.batch import NoCondition
from flowhooks.testing.gaussian import GaussianFlow, GaussianModel
from flowhooks.testing.tiny import PIPELINES, tiny

__all__ = ["GaussianFlow", "GaussianModel", "NoCondition", "PIPELINES", "tiny"]

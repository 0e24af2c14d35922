"""Refuses hooks that a network which is one of two experts cannot serve."""

from __future__ import annotations

from flowhooks.errors import ModelError
from flowhooks.kernel.step import Model


def require_whole_path(kind: str, model: Model) -> None:
    """Raises ModelError where ``model`` is not called from pure noise to data, which the hook ``kind`` needs."""
    if model.sigma_range != (0.0, 1.0):
        raise ModelError(
            f"'{kind}' generates samples from pure noise, but the network that is trained is only called at sigma "
            f"{model.sigma_range}; train pipelines of two experts without this hook"
        )

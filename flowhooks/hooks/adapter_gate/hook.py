"""Trains an adapter for the end of the trajectory only: it is off in steps above a sigma, in rollouts, visits and
validation. Its file holds the sigma for later sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowhooks.adapters.names import GATE_KEY
from flowhooks.errors import ModelError
from flowhooks.hooks.adapter_gate import AdapterGateSpec
from flowhooks.hooks.on_policy_rollout.hook import RolloutSource
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.sampling.gate import adapter_gate


class AdapterGate(AdapterGateSpec, Hook):
    """Switches the adapter off wherever the pipeline takes a step that starts above ``sigma``.

    Raises:
        ModelError: on attaching, a rollout that is visited above it, where nothing would be trained.
        AdapterError: on attaching, a run without an adapter.
    """

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        source: RolloutSource = session.source
        if source.sigma_max is None or source.sigma_max > self.sigma or source.early_visits:
            raise ModelError(
                f"`adapter_gate` keeps the adapter off above sigma {self.sigma}, so nothing is trained there; set "
                "`sigma_max` of `on_policy_rollout` to it or less, without `early_visits`"
            )
        with adapter_gate(session.model.pipe, self.sigma):  # type: ignore[attr-defined]
            session.adapter.notes[GATE_KEY] = repr(self.sigma)
            yield

"""A whole update of a run, as the trainer makes it in a step that is not logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.kernel import Batch, Session
from flowhooks.train.guard import FiniteGuard
from flowhooks.train.liveness import Liveness
from flowhooks.train.optimization import Optimization


@contextmanager
def updating(
    model: Any, document: Mapping[str, Any], batches: Callable[[int], Batch | None], *, first: bool = True
) -> Iterator[tuple[Session, Callable[[], int]]]:
    """Attach a run inside the block; gives its session, and what makes one update and returns its forwards.

    Args:
        batches: micro-step -> its data; None for a run that samples its own.
        first: whether it is one of the first updates of the run, in which gradients are watched.
    """
    torch.manual_seed(0)
    run = resolve_run(dict(document), Path("run.json"), allow_imports=True)
    with flowhooks.attach(model, run) as session:
        optimization, guard = Optimization(run, list(session.parameters().values())), FiniteGuard()
        liveness = Liveness(session, model.transformer, nullcontext)
        if first:
            optimization.before = liveness.note
        was = model.transformer.training
        model.transformer.train()

        def update() -> int:
            micro_step, made = session.micro_step, 0
            for result in session.steps(batches(micro_step), log=False):
                guard.loss(result.loss, micro_step, result.files)
                optimization.backward(result.loss)
                made += result.passes
            optimization.step(guard)
            session.updated()
            return made

        try:
            with liveness.watching() if first else nullcontext():
                yield session, update
        finally:
            model.transformer.train(was)

"""Attach hooks to a stock pipeline, in somebody's own loop or in ours::

    with flowhooks.attach(pipe, "run.json") as session:
        for batch in loader:
            loss = session.step(batch).loss
            loss.backward()
            ...

Leaving the block takes everything off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from flowhooks import config
from flowhooks.adapters import Adapter, build_adapter
from flowhooks.config import Run
from flowhooks.hooks.build import build_assembly
from flowhooks.kernel import distributed
from flowhooks.kernel.average import WeightAverage
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.probe import FlowModel, probe

Hooks = Sequence[Hook | Mapping[str, Any]]


@contextmanager
def attach(
    pipe: Any,
    run: Run | Mapping[str, Any] | str | Path | Hooks,
    *,
    adapter: Adapter | Mapping[str, Any] | None = None,
    seed: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Iterator[Session]:
    """Attach a run's hooks and adapter to a pipeline; detach both, without a trace, on leaving.

    Args:
        pipe: a Diffusers flow-matching pipeline, or a :class:`flowhooks.probe.FlowModel` of one.
        run: a run file, its contents, or a list of hooks: :class:`flowhooks.kernel.Hook` objects or ``{"type": ...}``
            blocks.
        adapter: an adapter already on the transformer, or an ``adapter`` section; default: the run's own.
        seed: of every random number; default: the run's own, or 0.
        height, width: pixels at which to probe; default: the pipeline's own.

    Raises:
        ConfigError: the run is not valid, or its hooks conflict.
        ModelError: the pipeline cannot be learnt.
        AdapterError: the adapter does not fit.
    """
    resolved = _resolve(run, adapter)
    arguments = resolved.model["pipeline_arguments"]
    model = pipe
    if not isinstance(pipe, FlowModel):
        component = resolved.model["component"]
        model = probe(pipe, height=height, width=width, arguments=arguments, component=component)
    given: Sequence[Any] = run if isinstance(run, Sequence) and _is_hooks(run) else resolved.hooks
    with ExitStack() as stack:
        fitted = _fit_adapter(model, resolved, adapter, stack)
        parameters = _trained(model, resolved, fitted, stack)
        roles: dict[str, Callable[[], AbstractContextManager]] = {}
        if fitted is not None:
            roles["reference"] = fitted.disabled
        if resolved.training["use_ema"]:
            roles["ema"] = lambda: session.averaged()
        provides = {"data:image", "data:rejected", "data:mask"} if resolved.data is None else resolved.provides
        assembly = build_assembly(given, {*provides, *(f"role:{name}" for name in roles)}, str(resolved.source))
        session = Session(
            model=model,
            assembly=assembly,
            roles=roles,
            parameters=parameters,
            seed=resolved.training["seed"] if seed is None else seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            fresh=fitted is not None and fitted.fresh,
            batch_views=resolved.training["batch_views"],
            all_reduce=distributed.all_reduce,
        )
        session.adapter = fitted
        assembly.attach(session, stack)
        if resolved.training["use_ema"]:
            session.average = WeightAverage(session.parameters(), resolved.training["ema_decay"])
        yield session


def _is_hooks(run: Any) -> bool:
    return isinstance(run, Sequence) and not isinstance(run, (str, bytes))


def _resolve(run: Any, adapter: Any) -> Run:
    if isinstance(run, Run):
        return run
    if isinstance(run, (str, Path)):
        return config.load_run(Path(run))
    document = {"hooks": []} if _is_hooks(run) else dict(run)
    if isinstance(adapter, Mapping):
        document["adapter"] = dict(adapter)
    return config.resolve_run(document, Path("attach()"))


def _fit_adapter(model: FlowModel, run: Run, adapter: Any, stack: ExitStack) -> Adapter | None:
    """The adapter that is trained. One that the caller made is left to the caller."""
    if adapter is not None and not isinstance(adapter, Mapping):
        return adapter
    if run.adapter is None:
        return None
    built = build_adapter(model.transformer, run.adapter)
    stack.callback(built.detach)
    return built


def _trained(model: FlowModel, run: Run, adapter: Adapter | None, stack: ExitStack) -> dict[str, nn.Parameter]:
    if run.training["trainable"] == "adapter":
        return dict(adapter.named_parameters()) if adapter is not None else {}
    flags = [(p, p.requires_grad) for p in model.transformer.parameters()]
    stack.callback(lambda: [p.requires_grad_(flag) for p, flag in flags])
    model.transformer.requires_grad_(True)
    return {f"transformer.{name}": p for name, p in model.transformer.named_parameters()}

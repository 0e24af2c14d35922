"""Load the pipeline of a finished run, or of a model with a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flowhooks.adapters import load_adapter
from flowhooks.adapters.fit import adapter_below
from flowhooks.adapters.targets import is_adapted
from flowhooks.attaching import attach, trained_hooks
from flowhooks.config import resolve_run
from flowhooks.config.run import offload_share, read_run
from flowhooks.errors import AdapterError, FlowhooksWarning, ModelError
from flowhooks.flow_map.loader import FlowMap, put_back, told_experts
from flowhooks.manifest import MODULES, RUN
from flowhooks.pipeline import best_device, load_pipeline
from flowhooks.probe.runs import find_networks, first_network
from flowhooks.reading import user_path
from flowhooks.sampling.flow_map_steps import first_order, telling
from flowhooks.sampling.gate import adapter_gate
from flowhooks.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Restored:
    """Holds a pipeline on the best device, and what a run trained for it.

    Args:
        stage: on which the components take turns, inside :meth:`turns`; None where all are on the device.
        share: of the blocks of a network, 0 to 1, that stay on the host.
        arguments: arguments of its calls.
        component: the network that the run trained.
        adapter: file or folder of an adapter, if any.
        modules: folder of trained hook modules, if any.
        below: sigma above which the adapter is off, for steps that start there; None if it never is.
        allow_imports: whether the modules may belong to hooks that are named by an import path.
    """

    pipe: Any
    arguments: Mapping[str, Any]
    component: str
    adapter: Path | None
    modules: Path | None
    below: float | None
    allow_imports: bool
    stage: Stage | None = None
    share: float = 0.0

    @contextmanager
    def turns(self) -> Iterator[None]:
        """Let the components take turns on the device inside the block, if that was asked for. What is trained is
        attached inside."""
        with ExitStack() as stack:
            if self.stage is not None:
                stack.enter_context(self.stage.offloading(self.share, every=1, component=None))
                stack.enter_context(self.stage.open())
            yield

    @contextmanager
    def trained(self) -> Iterator[Any]:
        """Yield the pipeline with everything attached; with a scheduler that samples flow maps, if it is one.

        Raises:
            AdapterError, ModelError: it does not fit.
        """
        with ExitStack() as stack:
            if self.adapter is not None:
                network = getattr(self.pipe, self.component, None)
                if not isinstance(network, nn.Module):
                    raise ModelError(
                        f"a {type(self.pipe).__name__} has no network {self.component!r}, which this run "
                        "trained; its base model was another"
                    )
                stack.callback(load_adapter(network, self.adapter, pipeline=self.pipe).detach)
            if self.below is not None:
                stack.enter_context(adapter_gate(self.pipe, self.below))
            if self.modules is not None:
                session: Any = stack.enter_context(attach(self.pipe, self.modules, allow_imports=self.allow_imports))
                if session.model.interval is not None:
                    stack.enter_context(first_order(self.pipe, session.model.interval))
            yield self.pipe


def load_flow_map(pipe: Any, folder: str | Path, *, allow_imports: bool = False) -> FlowMap:
    """Put the flow map in a folder onto a pipeline for good: the modules that its run trained, its adapter, and a
    scheduler that tells the network where each step ends.

    Args:
        pipe: a Diffusers pipeline of the model that the run trained. Pipelines that are made of its components
            afterwards (``from_pipe``) get the scheduler with them; others need a ``FlowMapScheduler`` of their own.
        folder: output folder of a run with a second time, or a checkpoint in it.
        allow_imports: whether the folder may name hooks by import paths.

    Returns:
        What takes everything off again, by ``close()`` or at the end of a ``with`` block. It need not be kept.

    Raises:
        ModelError: the folder holds no flow map, or one of another network.
        AdapterError: the adapter does not fit, or another one is on already.
        ConfigError: the folder names code without permission.
    """
    with ExitStack() as stack:
        scheduler, folder = pipe.scheduler, Path(folder)
        if any(is_adapted(network) for network in find_networks(pipe).values()):
            raise AdapterError(
                f"{folder}: an adapter is on this pipeline already; take it off, by `close()` of what `load_flow_map` "
                "returned or by `unload_lora_weights`, and put others on after the flow map, which has one of its own"
            )
        session: Any = stack.enter_context(attach(pipe, folder, allow_imports=allow_imports))
        interval = session.model.interval
        if interval is None:
            raise ModelError(
                f"{folder}: trained no second time beside its network, so its adapter is all there is; use "
                "`pipe.load_lora_weights`, or `flowhooks.attach` for other adapters"
            )
        if session.adapter is not None and (below := adapter_below(folder)) is not None:
            stack.enter_context(adapter_gate(pipe, below))
        pipe.scheduler = telling(pipe.scheduler)
        stack.callback(put_back, pipe, scheduler)
        told_experts(pipe, interval.network, FlowhooksWarning)
        interval.holder = FlowMap(stack.pop_all())
        return interval.holder


def restore_pipeline(
    model_or_run: str,
    lora: str | None,
    dtype: str,
    below: float | None = None,
    *,
    allow_imports: bool = False,
    offload: bool = False,
) -> Restored:
    """Load what a name refers to.

    Args:
        model_or_run: a run's output folder, whose weights are loaded onto its base model; or a model folder, a Hub id,
            ``digits``.
        lora: an adapter to use, in place of the run's own.
        dtype: fp32, bf16 or fp16.
        below: sigma of the adapter's gate; None: what its file says.
        allow_imports: whether the run's modules may belong to hooks that are named by an import path.
        offload: let components take turns on the device; a run that kept blocks on the host does so in any case.

    Raises:
        ConfigError: the run's own files are not valid, or name code without permission.
        ModelError, AdapterError: it does not exist, or does not fit.
    """
    folder = user_path(model_or_run)
    is_run = (folder / RUN).is_file()
    section, own = read_run(folder) if is_run else (_defaults(model_or_run), None)
    modules = folder if is_run and lora is None and (folder / MODULES).is_file() else None
    if modules is not None:
        # Before the weights, which take long to load, or must be fetched.
        trained_hooks(modules, allow_imports=allow_imports)
    pipe = load_pipeline({**section, "dtype": dtype})
    device = best_device()
    adapter, share = Path(lora) if lora is not None else own, offload_share(section)
    stage = Stage(pipe, device) if offload or share else None
    return Restored(
        pipe=pipe if stage is not None else pipe.to(device),
        stage=stage,
        share=share,
        arguments=section["pipeline_arguments"],
        component=section["component"] or first_network(pipe),
        adapter=adapter,
        modules=modules,
        below=adapter_below(adapter) if below is None and adapter is not None else below,
        allow_imports=allow_imports,
    )


def _defaults(name: str) -> dict[str, Any]:
    """Return a complete ``model`` section for a name."""
    return dict(
        resolve_run({"model": {"pretrained_model_name_or_path": name}, "hooks": []}, Path("flowhooks sample")).model
    )

"""Attach hooks to a stock pipeline, in the user's own loop or in ours::

    with flowhooks.attach(pipe, "run.json") as session:
        for batch in loader:
            loss = session.step(batch).loss
            loss.backward()
            ...

Leaving the block detaches everything again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from flowhooks import config
from flowhooks.adapters import Adapter, build_adapter, load_adapter
from flowhooks.adapters.names import ADAPTER_FILES
from flowhooks.adapters.peft_adapter import PeftAdapter
from flowhooks.adapters.targets import is_adapted
from flowhooks.adapters.training import TrainingAdapter
from flowhooks.config import Run
from flowhooks.config.run import model_section
from flowhooks.distributed import processes
from flowhooks.errors import AdapterError, ConfigError, FlowhooksWarning, ModelError, Problem
from flowhooks.hooks.build import build_assembly, resolved_hooks
from flowhooks.hooks.registry import hook_class
from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import ANY_DATA
from flowhooks.kernel.session import Session
from flowhooks.manifest import MODULES, RUN
from flowhooks.modules_file import load_modules, read_manifest
from flowhooks.probe import FlowModel, probe
from flowhooks.probe.references import picture_argument

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
    allow_imports: bool = False,
) -> Iterator[Session]:
    """Attach a run's hooks and adapter to a pipeline; detach both, without a trace, on exit.

    Args:
        pipe: a Diffusers flow-matching pipeline, or a :class:`flowhooks.probe.FlowModel` of one.
        run: a run file, its contents, or a list of hooks: :class:`flowhooks.kernel.Hook` objects or ``{"type": ...}``
            blocks; or the output folder of a finished run, or a checkpoint in it, whose adapter and trained modules, if
            any, are attached (an adapter that is attached already stays).
        adapter: an adapter already on the transformer, or an ``adapter`` section; default: the run's own. For a
            finished run it cannot be given.
        seed: seed of every random number; default: the run's own, or 0.
        height: pixels at which to probe; default: the pipeline's own, or those of the finished run.
        width: the same for the width.
        allow_imports: whether the run, or the folder, may name code by import paths; a :class:`flowhooks.config.Run`
            was checked for this when it was read.

    Raises:
        ConfigError: the run is not valid, names code without permission, or its hooks conflict; an ``adapter`` for a
            finished run.
        ModelError: the pipeline cannot be learned.
        AdapterError: the adapter does not fit.
    """
    if isinstance(run, (str, Path)) and Path(run).is_dir():
        if adapter is not None:
            message = (
                "a finished run brings its own adapter, or leaves one that is on already where it is; leave `adapter` "
                "out"
            )
            raise ConfigError(Problem(message, str(run)))
        with _restored(pipe, Path(run), seed=seed, height=height, width=width, allow_imports=allow_imports) as session:
            yield session
        return
    resolved = _resolve(run, adapter, allow_imports)
    hooks: Sequence[Any] = resolved.hooks
    if isinstance(run, Sequence) and _is_hooks(run):
        # Before the pipeline runs: a block that is not valid, or names code, is reported at once.
        hooks = resolved_hooks(run, allow_imports=allow_imports)
    with ExitStack() as stack:
        model = _probed(pipe, resolved, height, width)
        fitted = _fit_adapter(model, resolved, adapter, stack)
        provides = {ANY_DATA} if resolved.data is None else set(resolved.provides)
        assembly = _assembled(resolved, hooks, fitted, provides)
        yield _session(model, resolved, assembly, fitted, seed, stack, start=_start(resolved, adapter))


@contextmanager
def attach_planned(model: FlowModel, run: Run, assembly: Assembly, prompt_cache: Any = None) -> Iterator[Session]:
    """Attach hooks that are built already, and the run's adapter; detach both on exit.

    Args:
        prompt_cache: see :class:`flowhooks.kernel.Session`.

    Raises:
        ModelError: a hook cannot be attached to this pipeline.
        AdapterError: the adapter does not fit.
    """
    with ExitStack() as stack:
        fitted = _fit_adapter(model, run, None, stack)
        yield _session(model, run, assembly, fitted, None, stack, start=_start(run, None), prompt_cache=prompt_cache)


def _assembled(run: Run, hooks: Sequence[Any], adapter: Adapter | None, provides: set[str]) -> Assembly:
    roles = set() if adapter is None else {"role:reference"}
    implied = run.every_hook[len(run.hooks) :]
    return build_assembly([*hooks, *implied], provides | roles, str(run.source))


def _probed(pipe: Any, run: Run, height: int | None, width: int | None, frames: int | None = None) -> FlowModel:
    if isinstance(pipe, FlowModel):
        return pipe
    arguments, component = run.model["pipeline_arguments"], run.model["component"]
    named = () if run.data is None else run.data.arguments
    references = [argument or picture_argument(pipe) for argument in named]
    sizes = {"height": height, "width": width, "frames": frames}
    return probe(pipe, **sizes, arguments=arguments, component=component, references=references)


def _session(
    model: FlowModel,
    run: Run,
    assembly: Assembly,
    adapter: Adapter | None,
    seed: int | None,
    stack: ExitStack,
    start: Path | None = None,
    prompt_cache: Any = None,
) -> Session:
    """Attach the hooks, to be detached by the stack, and return the session; hook modules start from the run in
    ``start``."""
    parameters = _trained(model, run, adapter, stack)
    training_adapter = _training_adapter(model, run, stack)
    session = Session(
        model=model,
        assembly=assembly,
        roles={} if adapter is None else {"reference": partial(_base, adapter, assembly)},
        parameters=parameters,
        adapter=adapter,
        training_adapter=training_adapter,
        seed=run.training["seed"] if seed is None else seed,
        processes=processes(),
        batch_views=run.training["batch_views"],
        batch_size=run.training["train_batch_size"],
        accumulation=run.training["gradient_accumulation_steps"],
        prompt_cache=prompt_cache,
    )
    stack.enter_context(assembly.within(lambda hook: hook.attached(session)))
    _bring(session.parameters().values(), model)
    if start is not None:
        _start_modules(start / MODULES, assembly)
    for hook in assembly.hooks:
        hook.started(session)
    if run.training["compile"] == "blocks":
        # Last: what is learned from the network, and put onto it, is not compiled.
        from flowhooks.probe.compiling import compiled_blocks

        stack.enter_context(model.weight_names.written())
        session.compilation = stack.enter_context(
            compiled_blocks(
                model.transformer,
                model.anatomy.blocks,
                backend=run.training["compile_backend"],
                roles=lambda: len(session.roles),
            )
        )
    return session


@contextmanager
def _restored(
    pipe: Any, folder: Path, *, seed: int | None, height: int | None, width: int | None, allow_imports: bool
) -> Iterator[Session]:
    """Attach the hooks of a finished run that trained modules, with these modules, and its adapter unless one is
    attached already."""
    manifest: dict[str, Any] | None = None
    if (folder / MODULES).is_file() or not _has_adapter(folder):
        run, manifest = trained_hooks(folder, allow_imports=allow_imports)
    else:
        run = _adapter_alone(folder)
    size = {} if manifest is None else manifest["size"]
    if manifest is not None:
        # Before the pipeline runs, at sizes that it may not have.
        name = manifest["component"] or "transformer"
        found = pipe.transformer if isinstance(pipe, FlowModel) else getattr(pipe, name, None)
        if manifest["network"] != type(found).__name__:
            raise ModelError(
                f"{folder / MODULES}: was trained for {manifest['network']}, this pipeline has a {type(found).__name__}"
            )
    with ExitStack() as stack:
        model = _probed(pipe, run, height or size.get("height"), width or size.get("width"), frames=size.get("frames"))
        network = model.transformer
        adapter = None
        if _has_adapter(folder):
            if is_adapted(network):
                message = f"{folder}: its adapter is not attached, as one is attached already and used in its place"
                warnings.warn(message, FlowhooksWarning, stacklevel=4)
            else:
                adapter = load_adapter(network, folder, pipeline=model.pipe)
                stack.callback(adapter.detach)
        assembly = _assembled(run, run.hooks, adapter, {ANY_DATA})
        session = _session(model, run, assembly, adapter, seed, stack)
        if manifest is not None:
            load_modules(folder / MODULES, session.assembly)
        yield session


def _bring(parameters: Iterable[nn.Parameter], model: FlowModel) -> None:
    """Bring what is trained to the device. It was made where its layers are: on the host, if these are offloaded.
    Shards are there."""
    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(model.device)


def _has_adapter(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def _adapter_alone(folder: Path) -> Run:
    """Return a run without hooks, for a folder whose run trained nothing beside its adapter. Only the model section of
    its run.json is read."""
    section = model_section(folder) if (folder / RUN).is_file() else {}
    told = {key: section[key] for key in ("component", "pipeline_arguments") if key in section}
    return config.resolve_run({"model": told, "hooks": []}, folder / RUN)


def trained_hooks(folder: Path, *, allow_imports: bool) -> tuple[Run, dict[str, Any]]:
    """Return the hooks that trained modules in a finished run, as a run with these hooks only, and the manifest of
    their file.

    The folder may be untrusted: nothing is built from it here, and nothing that it names is imported unless that is
    allowed.

    Args:
        folder: folder with ``flowhooks_modules.safetensors``.
        allow_imports: whether it may list hooks by import paths.

    Raises:
        ModelError: the file is missing, or was not written by flowhooks.
        ConfigError: it lists a hook that is not valid, or trains nothing, or is named by an import path without
            permission.
    """
    file = folder / MODULES
    manifest = read_manifest(file)
    section = {name: manifest[name] for name in ("component", "pipeline_arguments")}
    run = config.resolve_run({"model": section, "hooks": manifest["hooks"]}, file, allow_imports=allow_imports)
    # No run writes other hooks there, so there is no reason to build one.
    idle = [hook for hook in run.hooks if hook_class(hook.type, hook.where).modules is Hook.modules]
    if idle:
        raise ConfigError(
            [
                Problem(f"{hook.type!r} trains nothing of its own, so no run wrote it here", str(file), hook.where)
                for hook in idle
            ]
        )
    return run, manifest


@contextmanager
def _base(adapter: Adapter, assembly: Assembly) -> Iterator[None]:
    """Run the model as it was before anything was attached to it, inside the block."""
    with adapter.disabled(), assembly.disabled():
        yield


def _is_hooks(run: Any) -> bool:
    return isinstance(run, Sequence) and not isinstance(run, (str, bytes))


def _resolve(run: Any, adapter: Any, allow_imports: bool) -> Run:
    if isinstance(run, Run):
        return run
    if isinstance(run, (str, Path)):
        if Path(run).suffix == ".safetensors":
            message = (
                "is a file of weights, not a run; give the folder of the run that it is in, or, for an adapter of no "
                "run, load it with `pipe.load_lora_weights` or `flowhooks.adapters.load_adapter`"
            )
            raise ConfigError(Problem(message, str(run)))
        return config.load_run(Path(run), allow_imports=allow_imports)
    document = {"hooks": []} if _is_hooks(run) else dict(run)
    if isinstance(adapter, Mapping):
        document["adapter"] = dict(adapter)
    return config.resolve_run(document, Path("attach()"), allow_imports=allow_imports)


def _fit_adapter(model: FlowModel, run: Run, adapter: Any, stack: ExitStack) -> Adapter | None:
    """Return the adapter that is trained. One that the caller made is left to the caller."""
    if adapter is not None and not isinstance(adapter, Mapping):
        return adapter
    if run.adapter is None:
        return None
    built = build_adapter(model.transformer, run.adapter, pipeline=model.pipe)
    stack.callback(built.detach)
    _bring(built.parameters(), model)
    if built.fresh and isinstance(built, PeftAdapter):
        # Where blocks are offloaded it was measured on the host, whose sums differ in the last bit.
        built.measure(model.device)
    return built


def _training_adapter(model: FlowModel, run: Run, stack: ExitStack) -> TrainingAdapter | None:
    """Hold the run's training adapter on the network until the stack ends, if it has one."""
    told = None if run.adapter is None else run.adapter["training_adapter"]
    if told is None:
        return None
    try:
        held = TrainingAdapter(model, told["path"], strength=told["strength"])
    except AdapterError as error:
        raise AdapterError(f"`adapter.training_adapter`: {error}") from error
    stack.enter_context(held.attached())
    return held


def _start(run: Run, adapter: Any) -> Path | None:
    """Return the folder of a finished run that this one starts from, including what its hooks trained. A file is the
    adapter only."""
    if run.adapter is None or run.adapter["init_from"] is None or isinstance(adapter, Adapter):
        return None
    folder = Path(run.adapter["init_from"])
    return folder if (folder / MODULES).is_file() else None


def _start_modules(file: Path, assembly: Assembly) -> None:
    read_manifest(file)
    try:
        load_modules(file, assembly, whole=False)
    except ModelError as error:
        raise ModelError(
            f"{error} To start from the adapter beside it only, set `adapter.init_from` to the adapter's file."
        ) from error


def _trained(model: FlowModel, run: Run, adapter: Adapter | None, stack: ExitStack) -> dict[str, nn.Parameter]:
    if run.training["trainable"] == "adapter":
        return dict(adapter.named_parameters()) if adapter is not None else {}
    flags = [(p, p.requires_grad) for p in model.transformer.parameters()]
    stack.callback(lambda: [p.requires_grad_(flag) for p, flag in flags])
    model.transformer.requires_grad_(True)
    return {f"transformer.{name}": p for name, p in model.transformer.named_parameters()}

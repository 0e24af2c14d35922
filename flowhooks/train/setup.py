"""Do everything between a run file and the first step, in the order that finds mistakes before they cost time."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Subset

from flowhooks.adapters.names import MAGNITUDE
from flowhooks.attaching import attach_planned
from flowhooks.checks import Examined, examine
from flowhooks.checks.labels import label_warnings
from flowhooks.checks.machine import machine_warnings
from flowhooks.checks.optimizers import optimizer_warnings
from flowhooks.checks.output import LATEST
from flowhooks.checks.planning import plan_run, text_encoders_stay
from flowhooks.checks.quantization import quantization_warnings
from flowhooks.checks.references import prompt_arguments
from flowhooks.checks.sharding import sharding_of
from flowhooks.config import Run
from flowhooks.config.run import offload_share
from flowhooks.data import (
    Audit,
    CachedDataset,
    PromptCache,
    Schedule,
    Stream,
    build_cache,
    data_loader,
    holdout,
    streams,
)
from flowhooks.data.buckets import small_bucket_warning
from flowhooks.data.shards import human_bytes, total_bytes
from flowhooks.errors import ConfigError, DataError, FlowhooksWarning, model_errors_at
from flowhooks.hooks.build import assemble
from flowhooks.hooks.registry import HOOKS
from flowhooks.kernel.plan import Plan
from flowhooks.manifest import read_manifest
from flowhooks.pipeline import attention_backend, load_pipeline
from flowhooks.printing import say
from flowhooks.probe import FlowModel, probe
from flowhooks.probe.offloading import idle_settings
from flowhooks.probe.recomputing import gradient_checkpointing
from flowhooks.probe.references import picture_argument
from flowhooks.probe.runs import find_networks
from flowhooks.sharding import mesh_of
from flowhooks.stage import Stage
from flowhooks.train import rng
from flowhooks.train.agreement import aside, raise_on_all_ranks
from flowhooks.train.background import Background
from flowhooks.train.checkpoint import Checkpoints
from flowhooks.train.identity import identity, require_same
from flowhooks.train.job import Job
from flowhooks.train.launch import accelerated
from flowhooks.train.lock import locked
from flowhooks.train.optimization import Optimization
from flowhooks.train.optimizers import try_optimizer
from flowhooks.train.outputs import sweep_outputs, write_run
from flowhooks.train.rewards import ask_servers
from flowhooks.train.validation import Validation, ValidationImages
from flowhooks.train.watchdog import Watchdog


@contextmanager
def prepared(
    run: Run,
    resume: str | None,
    progress: bool,
    rebuild_cache: bool = False,
    examined: Examined | None = None,
    again: str | None = None,
) -> Iterator[Job]:
    """Yield a job that is ready for its next step; on exit, restore the pipeline and close the trackers.

    Args:
        examined: result of :func:`flowhooks.checks.examine` for the run, if it was computed already.
        again: the command that resumes the run; None writes one without overrides.

    Raises:
        ConfigError, DataError, ModelError, AdapterError, CheckpointError: something is wrong; where possible, before
            weights load.
    """
    examined = examined or examine(run, resume)
    audited = examined.audit
    again = again or shlex.join(["flowhooks", "train", str(run.source), "--resume", LATEST])
    watchdog = Watchdog(run.training["watchdog_seconds"], Path(run.output_dir), again)
    # Options that only the classes of an optimiser and of hooks can check are checked before weights load.
    try_optimizer(run)
    assembly = assemble(_planned(run, examined), str(run.source))
    with ExitStack() as stack:
        stack.enter_context(watchdog.open())
        watchdog.mark("meeting the other processes")
        accelerator = stack.enter_context(accelerated(run))
        watchdog.meet()
        watchdog.mark("looking for checkpoints")
        with raise_on_all_ranks(ConfigError):
            if accelerator.is_main_process:
                stack.enter_context(locked(Path(run.output_dir)))
        group = stack.enter_context(aside())
        checkpoints = Checkpoints(Path(run.output_dir), run.training["checkpoints_total_limit"], group)
        source = _starting_point(checkpoints, resume)
        sentences = (
            *audited.warnings,
            *label_warnings(run, audited.records),
            *machine_warnings(run),
            *optimizer_warnings(run),
            *quantization_warnings(run),
        )
        for line in sentences if accelerator.is_main_process else ():
            warnings.warn(line, FlowhooksWarning, stacklevel=2)
        kept, held = holdout.split(audited.records, run.validation["holdout"], run.training["seed"], str(run.source))
        drawn = streams(audited.records, kept)
        few = small_bucket_warning(drawn, run.training["train_batch_size"] * accelerator.num_processes)
        if few and accelerator.is_main_process:
            warnings.warn(few, FlowhooksWarning, stacklevel=2)
        identified = identity(run, audited, accelerator.num_processes)
        # Before weights load: a checkpoint of another run, or an output folder that cannot be written to, need no
        # model to be found.
        if source is not None:
            require_same(read_manifest(source).identity, identified, str(source))
        with raise_on_all_ranks(ConfigError):
            if accelerator.is_main_process:
                checkpoints.sweep()
                sweep_outputs(run)
                if source is not None and resume != LATEST:
                    checkpoints.go_back(source)
                write_run(run)

        with raise_on_all_ranks(ConfigError), watchdog.paused("asking the servers of rewards"):
            ask_servers(run)
        with watchdog.paused("loading the pipeline"):
            pipe = load_pipeline(run.model)
        parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        stack.enter_context(watchdog.counting(parts))
        watchdog.mark("learning the pipeline")
        stage = Stage(pipe, accelerator.device)
        recomputed = run.model["gradient_checkpointing"]
        share, component = offload_share(run.model), run.model["component"]
        networks = find_networks(pipe)
        for line in idle_settings(networks[component or next(iter(networks))], share, int(recomputed)):
            if accelerator.is_main_process:
                warnings.warn(line, FlowhooksWarning, stacklevel=2)
        with model_errors_at(run.source, "$.model.offload"):
            stack.enter_context(stage.offloading(share, int(recomputed), component))
        sharding = sharding_of(os.environ)
        if sharding is not None:
            stage.shard(mesh_of(accelerator.device.type, accelerator.num_processes, sharding.copies))
        stack.enter_context(stage.open())
        model = _probed(run, pipe, audited, stack)
        dataset: Any = []
        if audited.records:
            watchdog.mark("making the cache")
            dataset = _cached(run, model, audited, progress, accelerator.is_main_process, rebuild_cache)
        watchdog.mark("encoding prompts and attaching the method")
        images = ValidationImages(run=run, model=model)
        # Only the main process draws.
        shown = progress and accelerator.is_main_process
        prompts = partial(PromptCache, model, run.cache_dir, progress=shown, rebuild=rebuild_cache)
        drawing = accelerator.is_main_process or sharding is not None
        encoded = images.encode(stage, prompts()) if drawing else True
        stage.settle(model.component)
        offload = run.model["checkpoint_offload"]
        stack.enter_context(gradient_checkpointing(model.transformer, recomputed, offload=offload))
        # One seed on every process for the initial adapter, then a different one on each for dropout.
        rng.seed_all(run.training["seed"])
        together = partial(raise_on_all_ranks, DataError)
        session = stack.enter_context(attach_planned(model, run, assembly, prompts(together=together)))
        if encoded and text_encoders_stay(run) is None:
            stage.drop_text_encoders()
        rng.seed_all(run.training["seed"] + accelerator.process_index)
        model.transformer.train()
        batch_size = run.training["train_batch_size"]
        schedule = Schedule(
            drawn or (Stream(indices=range(len(session.source.prompt_list))),),
            batch_size=batch_size,
            seed=run.training["seed"],
            world_size=accelerator.num_processes,
            accumulation=run.training["gradient_accumulation_steps"],
        )
        background = Background()
        job = Job(
            run=run,
            accelerator=accelerator,
            session=session,
            optimization=Optimization(
                run,
                list(session.parameters().values()),
                accelerator.scaler,
                [each for name, each in session.parameters().items() if name.endswith(MAGNITUDE)],
            ),
            validation=Validation(
                run=run,
                session=session,
                model=model,
                images=images,
                accelerator=accelerator,
                held=Subset(dataset, held),
                batch_size=batch_size,
                background=background,
                together=sharding is not None,
            ),
            checkpoints=checkpoints,
            identity=identified,
            schedule=schedule,
            background=background,
            saving=background if group is None else Background(),
            audit=audited,
            warned=[*sentences, *([few] if few else [])],
            watchdog=watchdog,
        )
        if source is not None:
            job.restore(source)
        loader = (
            itertools.repeat(None)
            if not drawn
            else data_loader(
                dataset,
                schedule,
                rank=accelerator.process_index,
                start=session.micro_step,
                num_workers=run.training["dataloader_num_workers"],
            )
        )
        # Inside, so that the run's own record says what the user is told.
        with job.open(loader, progress), watchdog.told():
            yield job


def _planned(run: Run, examined: Examined) -> Plan:
    """Return the plan of the checks, made again if hooks of the user's own are imported only now."""
    if all(hook.type in HOOKS for hook in run.hooks):
        return examined.plan
    return plan_run(run, examined.audit.given, imports=True)


def _starting_point(checkpoints: Checkpoints, resume: str | None) -> Path | None:
    if resume is not None:
        found = checkpoints.find(resume)
        if found is None:
            message = f"{checkpoints.folder}: no checkpoint to resume from; starting at step 0"
            warnings.warn(message, FlowhooksWarning, stacklevel=2)
        return found
    return None


def _probed(run: Run, pipe: Any, audited: Audit, stack: ExitStack) -> FlowModel:
    first = audited.records[0] if audited.records else None
    stack.enter_context(attention_backend(find_networks(pipe).values(), run.model["attention_backend"]))
    # A pipeline may refuse arguments that only it can check; the user sets them in one place.
    with model_errors_at(run.source, "$.model.pipeline_arguments" if run.model["pipeline_arguments"] else None):
        model = probe(
            pipe,
            height=first.height if first else run.validation["height"],
            width=first.width if first else run.validation["width"],
            frames=first.geometry.frames if first else None,
            arguments=run.model["pipeline_arguments"],
            component=run.model["component"],
            references=list(
                dict.fromkeys(
                    argument or picture_argument(pipe) for argument in (*audited.arguments, *prompt_arguments(run))
                )
            ),
        )
    for part in pipe.components.values():
        if hasattr(part, "requires_grad_"):
            part.requires_grad_(False)
    return model


def _cached(run: Run, model: FlowModel, audited: Audit, progress: bool, main: bool, rebuild: bool) -> CachedDataset:
    dataset = build_cache(
        audited,
        model,
        run.cache_dir,
        progress=progress and main,
        rebuild=rebuild,
        unprompted=any(
            HOOKS[hook.type].unchecked(hook.options).unprompted() for hook in run.hooks if hook.type in HOOKS
        ),
        together=partial(raise_on_all_ranks, DataError),
    )
    if main:
        entries, whole = dataset.entries, total_bytes(Path(run.cache_dir))
        line = (
            f"cache: {len(entries):,} entries, {human_bytes(entries.nbytes)}; {human_bytes(whole)} in {run.cache_dir}"
        )
        say(line, file=sys.stderr)
    return dataset

"""``flowhooks check``: check a run without loading weights, or a data set alone."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.commands.arguments import add_resume, add_run, card_size, whole_number
from flowhooks.printing import say

if TYPE_CHECKING:
    from flowhooks.config import Run
    from flowhooks.data import Audit

NAME = "check"
HELP = "check a run file, its data and its plan, or a data set file or folder alone; loads no weights"


def add(parser: ArgumentParser) -> None:
    add_run(parser)
    add_resume(parser)
    parser.add_argument(
        "--memory", action="store_true", help="count what an update needs on a card, from configurations alone"
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=whole_number(2),
        help="say what each of so many cards needs where FSDP2 shards the network over them; implies --memory",
    )
    parser.add_argument(
        "--gpu",
        metavar="SIZE",
        type=card_size,
        help="say whether it fits a card of this memory, such as 24GiB, and what makes it fit; implies --memory",
    )


def run(args: Namespace) -> int:
    from flowhooks.config import read_datasets

    datasets = read_datasets(args.run)
    if datasets is None:
        return _run(args)
    from flowhooks.data import audit

    asked = {
        "--set and --resume": args.overrides or args.resume is not None,
        "--memory and --gpu": args.memory or args.gpu is not None,
        "--memory and --processes": args.processes is not None,
    }
    if named := [names for names, given in asked.items() if given]:
        from flowhooks.errors import ConfigError, Problem

        raise ConfigError(Problem(f"is a data set file; {named[0]} go with a run file", args.run))
    audited = audit(datasets)
    _print_data(audited)
    _print_warnings(audited.warnings)
    return 0


def _run(args: Namespace) -> int:
    from flowhooks.checks import examine
    from flowhooks.checks.labels import describe_labels, label_warnings
    from flowhooks.checks.machine import machine_warnings
    from flowhooks.checks.models import helper_notices
    from flowhooks.checks.optimizers import optimizer_warnings
    from flowhooks.checks.pipeline import model_notices
    from flowhooks.checks.planning import (
        adapter_notices,
        describe_prompts,
        describe_reference,
        describe_trainable,
        forwards,
        unread,
        unused_data_warnings,
    )
    from flowhooks.checks.quantization import describe_quantization, quantization_warnings
    from flowhooks.checks.references import describe_prompt_references
    from flowhooks.config import load_run, plain
    from flowhooks.data.buckets import bucket_report
    from flowhooks.data.shards import human_bytes, total_bytes

    configured = load_run(args.run, args.overrides, complete=True, allow_imports=args.allow_imports)
    examined = examine(configured, args.resume)
    audited, planned = examined.audit, examined.plan
    changed = _check_with_torch(configured, audited, args.resume)
    fetched = [*model_notices(configured), *helper_notices(configured), *adapter_notices(configured)]
    model, training = configured.model, configured.training
    pairs = ", ".join(f"{view}/{role}" for view, role in planned.passes)
    batch = training["train_batch_size"] * training["gradient_accumulation_steps"]
    say(
        f"model      {model['pretrained_model_name_or_path']}, {model['dtype']}, attention {model['attention_backend']}"
    )
    if sentence := describe_quantization(model):
        say(f"quantised  {sentence}")
    for line in fetched:
        say(f"download   {line}")
    _print_data(audited)
    for line in bucket_report(audited.records, training["train_batch_size"], training["gradient_accumulation_steps"]):
        say(f"buckets    {line}")
    for line in describe_labels(configured, audited.records):
        say(f"labels     {line}")
    if audited.records:
        say(f"cache      {human_bytes(total_bytes(Path(configured.cache_dir)))} in {configured.cache_dir}")
    if sentence := plain(configured.hooks):
        say(f"method     {sentence}")
    say(f"hooks      {' -> '.join(each.type for each in planned.order)}")
    of_views = f", for {pairs}" if pairs else ""
    say(f"forwards   {forwards(configured, planned)} per micro-batch{of_views}")
    say(f"trains     {describe_trainable(configured)}")
    for line in describe_reference(configured, planned):
        say(f"reference  {line}")
    say(f"prompts    {describe_prompts(configured)}")
    if sentence := describe_prompt_references(configured):
        say(f"references {sentence}")
    say(f"steps      {training['max_train_steps']:,} of {batch:,} samples per process, into {configured.output_dir}")
    for line in unread(configured):
        say(f"imports    {line}")
    tight = (
        _print_memory(configured, audited, args.gpu, args.processes)
        if args.memory or args.gpu or args.processes
        else []
    )
    _print_warnings(
        [
            *tight,
            *changed,
            *audited.warnings,
            *label_warnings(configured, audited.records),
            *machine_warnings(configured),
            *optimizer_warnings(configured),
            *quantization_warnings(configured),
            *unused_data_warnings(planned, audited.given),
        ]
    )
    return 0


def _check_with_torch(run: Run, audited: Audit, resume: str | None) -> list[str]:
    """Return warnings that need torch, for the few runs that need them: what has changed since the checkpoint that the
    run resumes from. Raises ConfigError or CheckpointError."""
    from flowhooks.documents.imports import imports_optimizer

    optimizer = run.training["optimizer"]
    if not imports_optimizer(optimizer) and (optimizer != "adamw" or run.training["optimizer_args"]):
        from flowhooks.train.optimizers import try_optimizer

        try_optimizer(run)
    if resume is not None:
        from flowhooks.manifest import read_manifest
        from flowhooks.train.checkpoint import Checkpoints
        from flowhooks.train.identity import changes, identity, past_the_end, processes_of, require_same

        source = Checkpoints(Path(run.output_dir)).find(resume)
        if source is not None:
            manifest = read_manifest(source)
            found = manifest.identity
            own = identity(run, audited, processes_of(run, found), fetching=False)
            require_same(found, own, str(source))
            sentences = [*changes(found, own), past_the_end(manifest.step, run)]
            return [f"{source}: {sentence}" for sentence in sentences if sentence]
    return []


def _print_memory(run: Run, audited: Audit, card: int | None, processes: int | None) -> list[str]:
    """Print what an update needs on a card. Returns warnings: that it does not fit, or is not counted, and why."""
    from flowhooks.memory.plan import NotCounted, plan_memory
    from flowhooks.memory.report import fitting, lines
    from flowhooks.memory.shards import sharded_lines

    try:
        planned = plan_memory(run, audited)
        needs = planned.needs()
        for line in lines(planned, needs):
            say(f"memory     {line}")
        for line in sharded_lines(planned, needs, processes) if processes else ():
            say(f"memory     {line}")
        fit = None if card is None else fitting(planned, needs, card)
    except NotCounted as error:
        return [f"memory: not counted: {error}"]
    if fit is None:
        return []
    if fit.fits:
        say(f"memory     {fit.sentence}")
        return []
    return [f"memory: {fit.sentence}"]


def _print_data(audited: Audit) -> None:
    for line in audited.report:
        say(f"data       {line}")


def _print_warnings(lines: list[str] | tuple[str, ...]) -> None:
    for line in lines:
        say(f"warning    {line}")
    say("ok")

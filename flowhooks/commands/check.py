"""``flowhooks check``: everything that can be known of a run without weights, GPU or network."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from flowhooks.commands.arguments import add_run

if TYPE_CHECKING:
    from flowhooks.config import Run
    from flowhooks.data import Audit
    from flowhooks.kernel.plan import Plan

NAME = "check"
HELP = "check a run file, its data and its plan; loads no weights"


def add(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> int:
    from flowhooks.commands.planning import forwards, trained, unread, unused
    from flowhooks.config import load_run
    from flowhooks.data.buckets import bucket_report
    from flowhooks.data.shards import told_bytes, total_bytes

    configured = load_run(args.run, args.overrides, complete=True, allow_imports=args.allow_imports)
    audited, planned = examine(configured)
    model, training = configured.model, configured.training
    pairs = ", ".join(f"{view}/{role}" for view, role in planned.passes)
    batch = training["train_batch_size"] * training["gradient_accumulation_steps"]
    print(
        f"model      {model['pretrained_model_name_or_path']}, {model['dtype']}, attention {model['attention_backend']}"
    )
    for line in audited.report:
        print(f"data       {line}")
    for line in bucket_report(audited.records, training["train_batch_size"], training["gradient_accumulation_steps"]):
        print(f"buckets    {line}")
    if audited.records:
        print(f"cache      {told_bytes(total_bytes(Path(configured.cache_dir)))} in {configured.cache_dir}")
    print(f"hooks      {' -> '.join(each.type for each in planned.order)}")
    print(f"forwards   {forwards(configured, planned)} per micro-batch, for {pairs}")
    print(f"trains     {trained(configured)}")
    print(f"steps      {training['max_train_steps']:,} of {batch} samples per process, into {configured.output_dir}")
    for line in unread(configured):
        print(f"imports    {line}")
    given = (f"data:{each}" for each in audited.provides)
    for line in [*audited.warnings, *unused(planned, frozenset(given))]:
        print(f"warning    {line}")
    print("ok")
    return 0


def examine(configured: Run) -> tuple[Audit, Plan]:
    """The data's audit and the plan.

    Raises:
        ConfigError: with the problems of machine, data and plan together.
    """
    from flowhooks.commands.planning import machine_problems, plan_run
    from flowhooks.data import audit
    from flowhooks.data.records import partly_rejected
    from flowhooks.errors import ConfigError, Problem

    problems = list(machine_problems(configured))
    given = configured.provides
    try:
        audited = audit(configured.data, configured.cache_dir)
        given = frozenset(f"data:{each}" for each in audited.provides)
    except ConfigError as error:
        problems += error.problems
        if configured.data is not None and configured.data.unread:
            # That the table cannot be read is the cause; what its columns would give is not missing.
            given |= {"data:rejected", "data:mask"}
    try:
        planned = plan_run(configured, given)
    except ConfigError as error:
        problems += error.problems
        lost = "data:rejected" in configured.provides - given
        if configured.data is not None and lost and (why := partly_rejected(audited.records)):
            problems.append(Problem(why, str(configured.data.source), configured.data.root))
    if problems:
        raise ConfigError(problems)
    return audited, planned

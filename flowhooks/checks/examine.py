"""Run all checks of a run, and keep their results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowhooks.checks.labels import label_problems
from flowhooks.checks.layers import target_problems
from flowhooks.checks.machine import machine_problems
from flowhooks.checks.models import helper_problems
from flowhooks.checks.optimizers import optimizer_problems
from flowhooks.checks.output import output_problems
from flowhooks.checks.pipeline import model_problems
from flowhooks.checks.planning import adapter_problems, plan_run
from flowhooks.checks.quantization import quantization_problems
from flowhooks.checks.references import comparison_problems, number_problems, reference_problems, with_references
from flowhooks.checks.rewards import reward_problems
from flowhooks.checks.sharding import sharding_problems
from flowhooks.checks.sizes import size_problems
from flowhooks.checks.sound import sound_problems
from flowhooks.config.rules import incomplete
from flowhooks.data.blocks import PREFERENCE, keeps_ties
from flowhooks.data.findings import count
from flowhooks.errors import ConfigError, Problem
from flowhooks.hooks.preference_spec import PreferenceSpec
from flowhooks.hooks.registry import HOOKS

if TYPE_CHECKING:
    from flowhooks.config import Run
    from flowhooks.data import Audit, Record
    from flowhooks.kernel.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Holds a run without faults, as far as can be known before weights load.

    Args:
        audit: audit of its data.
        plan: plan of its hooks, in order.
    """

    audit: Audit
    plan: Plan


def examine(run: Run, resume: str | None = None) -> Examined:
    """Check machine, disk, data, pipeline and plan of a run. Nothing is written, fetched, or loaded.

    Args:
        resume: ``latest``, or a ``checkpoint-<step>`` folder to resume from; None starts at step 0.

    Raises:
        ConfigError: with every problem found.
    """
    problems = [
        *incomplete(run.document, run.hooks, str(run.source)),
        *sharding_problems(run),
        *machine_problems(run),
        *model_problems(run),
        *optimizer_problems(run),
        *adapter_problems(run),
        *helper_problems(run),
        *reference_problems(run),
        *output_problems(run, resume),
        *_option_problems(run),
    ]
    audited, records, data_problems = _audited(run)
    problems += [*data_problems, *comparison_problems(run, audited), *number_problems(run, audited)]
    problems += reward_problems(run, audited)
    # Layers and sizes are checked only for a pipeline that can be trained and whose files exist.
    if not any((problem.path or "").startswith("$.model") for problem in problems):
        problems += [*quantization_problems(run), *target_problems(run), *size_problems(run, audited)]
        problems += sound_problems(run, records)
    planned, plan_problems = _planned(run, audited)
    problems += plan_problems
    problems += label_problems(run, records)
    problems += _tie_problems(run, records)
    if problems or audited is None or planned is None:
        raise ConfigError(problems)
    return Examined(audit=audited, plan=planned)


def _option_problems(run: Run) -> Iterator[Problem]:
    for hook in run.hooks:
        spec = HOOKS.get(hook.type)
        if spec is not None and (message := spec.unchecked(hook.options).refusal()) is not None:
            yield Problem(message, str(run.source), hook.where)


def _tie_problems(run: Run, records: Sequence[Record]) -> Iterator[Problem]:
    """Yield a problem for each set that keeps ties, in a run whose hooks have no formula for them, and one where they
    have and there is nothing else: no gradient would come to the adapter."""
    specs = [HOOKS.get(hook.type) for hook in run.hooks]
    # A hook of the user's own may read them.
    if run.data is None or None in specs:
        return
    if any(issubclass(spec, PreferenceSpec) and spec.takes_ties for spec in specs if spec):
        if records and all(record.columns.get(PREFERENCE) == 0.5 for record in records):
            message = (
                f"of {count(len(records), 'pair')} all are ties, which say that two sides are equal and never which is "
                "better; add pairs of which one side was preferred"
            )
            yield Problem(message, str(run.data.source), run.data.root)
        return
    takers = [name for name, spec in HOOKS.items() if issubclass(spec, PreferenceSpec) and spec.takes_ties]
    for path, block in zip(run.data.paths, run.data.blocks, strict=True):
        if keeps_ties([block]):
            message = (
                "keeps ties, for which no hook of this run has a formula: each would train as if its first image had "
                f"won; write 'drop', or take {' or '.join(map(repr, takers))}"
            )
            yield Problem(message, str(run.data.source), f"{path}.ties")


def _audited(run: Run) -> tuple[Audit | None, tuple[Record, ...], list[Problem]]:
    """Return the audit of a run's data, None where they have faults, the samples without faults, and the problems."""
    from flowhooks.data import audit, survey

    data = with_references(run)
    if data is None:
        return audit(None), (), []
    records: tuple[Record, ...] = ()
    try:
        surveyed = survey(data, run.cache_dir)
        records = surveyed.records
        audited = surveyed.audit()
    except ConfigError as error:
        return None, records, list(error.problems)
    return audited, audited.records, list(_held_out(run, audited))


def _held_out(run: Run, audited: Audit) -> Iterator[Problem]:
    """Yield a problem if holding samples out leaves nothing to train on, in total or in some steps."""
    from flowhooks.data import holdout
    from flowhooks.data.schedule import phases, streams

    source, count = str(run.source), run.validation["holdout"]
    try:
        kept, _ = holdout.split(audited.records, count, run.training["seed"], source)
    except ConfigError as error:
        yield from error.problems
        return
    drawn = streams(audited.records, kept)
    for phase in phases(drawn):
        if drawn and not phase.active and phase.start < run.training["max_train_steps"]:
            message = f"all samples that would be drawn from step {phase.start:,} on are held out; hold out fewer"
            yield Problem(message, source, "$.validation.holdout")


def _planned(run: Run, audited: Audit | None) -> tuple[Plan | None, list[Problem]]:
    from flowhooks.data.records import partly_rejected

    given = run.provides
    if audited is not None:
        given = audited.given
    elif run.data is not None and run.data.unread:
        # The cause is that the table cannot be read; do not also report its columns as missing.
        given |= {"data:rejected", "data:mask"}
    try:
        return plan_run(run, given), []
    except ConfigError as error:
        problems = list(error.problems)
    lost = "data:rejected" in run.provides - given
    if audited is not None and run.data is not None and lost and (why := partly_rejected(audited.records)):
        problems.append(Problem(why, str(run.data.source), run.data.root))
    return None, problems

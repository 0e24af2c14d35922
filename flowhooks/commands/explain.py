"""``flowhooks explain``: show what a run file expands to."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from flowhooks.commands.arguments import add_run
from flowhooks.printing import say, say_lines

NAME = "explain"
HELP = "show what a run file expands to: hooks, slots, forwards, what is trained"


def add(parser: ArgumentParser) -> None:
    add_run(parser)


def run(args: Namespace) -> int:
    from flowhooks.checks.planning import (
        describe_prompts,
        describe_reference,
        describe_trainable,
        forwards,
        plan_run,
        unread,
    )
    from flowhooks.checks.quantization import describe_quantization
    from flowhooks.checks.sizes import latents_of
    from flowhooks.config import load_run, plain
    from flowhooks.hooks.planning import slot_table, step_cost
    from flowhooks.hooks.registry import HOOKS
    from flowhooks.kernel.plan import ANY_DATA

    configured = load_run(args.run, args.overrides, allow_imports=args.allow_imports)
    # A run without data is attached in the user's own loop, which supplies what the hooks need of it.
    given = {ANY_DATA} if configured.data is None else configured.provides
    planned = plan_run(configured, given)
    origin = {hook.where: hook for hook in configured.every_hook}
    if sentence := plain(configured.hooks):
        say(sentence)
        say()
    say("hooks")
    for hook in configured.every_hook:
        say(f"  {json.dumps({'type': hook.type, **hook.options})}    from {hook.where}")
    for each in planned.order:
        if each.where not in origin:
            say(f"  {json.dumps({'type': each.type})}    {each.where}")
    say()
    say("slots, in the order a step runs them")
    for slot, rule, owners in slot_table(planned):
        say(f"  {slot:<10} {rule:<6} {' -> '.join(owners) or '(default)'}")
    say()
    say(f"forwards    {forwards(configured, planned)} per micro-batch")
    for view, role in planned.passes:
        say(f"  view {view}, role {role}")
    for each in planned.order:
        if each.queries:
            say(f"  {each.type}, at states of its own: {each.queries} at most; a logged step may take more")
    for line in unread(configured):
        say()
        say(f"imports     {line}")
    say()
    say(f"trainable   {describe_trainable(configured)}")
    if sentence := describe_quantization(configured.model):
        say(f"quantised   {sentence}")
    say(f"prompts     {describe_prompts(configured)}")
    for line in describe_reference(configured, planned):
        say(f"reference   {line}")
    if (cost := step_cost(planned)).on_data:
        say(f"chunks      {cost.chunks} at most of the rollout, sharing the method's loss, and 1 of the data")
    for hook in configured.every_hook:
        if hook.type in HOOKS and getattr(HOOKS[hook.type], "beta_of_errors", False):
            say()
            say("beta")
            say_lines(f"  {line}" for line in beta_lines(hook.options, *latents_of(configured)))
    return 0


def beta_lines(options: dict[str, Any], elements: int, pictures: str) -> list[str]:
    """Return lines on the configured beta under either reduction: a sum over N elements is N times their mean.

    Args:
        elements: N, the number of elements of a sample's latents.
        pictures: description of the images that N holds for.
    """
    from flowhooks.hooks.flow_dpo import auto_beta_bounds

    beta, norm = options["beta"], options["norm_type"]
    if norm == "sum":
        other, factor, relation = "mean", float(elements), "times N"
    else:
        other, factor, relation = "sum", 1.0 / elements, "divided by N"
    lines = [
        f"{beta:g} under '{norm}' equals, under '{other}', {beta:g} {relation}, N being a sample's latent elements",
        f"N is {elements:,} for {pictures}, so there: {beta * factor:,.6g} under '{other}'",
    ]
    if norm == "masked_mean":
        lines.append(
            "a mask that covers a part of the image counts its own elements only, so N is smaller by that part"
        )
    if options.get("auto_beta"):
        low, high = auto_beta_bounds(options, elements)
        lines.append(
            "auto_beta starts from this value and leaves it as soon as margins are not zero, for one between "
            f"{low:,.6g} and {high:,.6g}"
        )
    return lines

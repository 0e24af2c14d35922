"""Which times a run trains at: options and declarations of the hook, and how custom timesteps are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import SHIFT, HookSpec

LIST, MODE = "flow_custom_timesteps", "flow_timesteps_mode"


def parse_timesteps(value: str | Sequence[float]) -> list[float]:
    """Sigmas in (0, 1] from a list of numbers or a comma-separated string; numbers above 1 are thousandths.

    Raises:
        ValueError: an entry is no number or out of range, or there is none; names the entry.
    """
    entries = value.split(",") if isinstance(value, str) else list(value)
    sigmas = []
    for entry in entries:
        try:
            number = float(entry)
        except (TypeError, ValueError):
            raise ValueError(f"{entry!r} is not a number; write timesteps like [801, 694, 548, 338]") from None
        if not 0 < number <= 1000:
            raise ValueError(f"{entry!r} is out of range; timesteps lie in (0, 1], or in (1, 1000] as thousandths")
        sigmas.append(number / 1000 if number > 1 else number)
    if not sigmas:
        raise ValueError("the list of timesteps is empty; leave it out to sample times at random")
    return sigmas


def timing_faults(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(path below the options, what is wrong) of the two keys: entries that are no times, a mode that does not go with
    them."""
    written, mode = options[LIST], options[MODE]
    if written is None:
        if mode not in (None, "random"):
            yield MODE, f"{mode!r} needs a list of times; give `{LIST}` one, such as [801, 694, 548, 338]"
        return
    # An entry at a time, so that each bad one is named.
    entries = written.split(",") if isinstance(written, str) else written
    for i, entry in enumerate(entries):
        try:
            parse_timesteps([entry])
        except ValueError as error:
            if isinstance(written, str):
                yield LIST, f"entry {i + 1}: {error}"
            else:
                yield f"{LIST}[{i}]", str(error)
    if mode == "random":
        yield (
            MODE,
            f"'random' would leave `{LIST}` unused; choose 'fixed-list' or 'round-robin', or remove the list",
        )


class TimestepScheduleSpec(HookSpec, type="timestep_schedule", title="Timestep schedule"):
    """Chooses the sigma and noise that each sample trains at: from a density with a shift, or from a list of times.
    Added with these defaults to a run that names none."""

    slots = {"views"}
    gives = {"sigma", "density"}
    implied_by = ("sigma", "density")
    page = "hooks.md#timestep_schedule"

    weighting_scheme: Literal["none", "logit_normal", "mode"] = option(
        "Density of sigma before the shift (arXiv 2403.03206, section 3.1): `logit_normal`, `mode`, or `none`, "
        "which is uniform.",
        default="logit_normal",
    )
    logit_mean: float = option(
        "Mean of the `logit_normal` density; above 0 leans to noise.", default=0.0, minimum=-1000, maximum=1000
    )
    logit_std: float = option(
        "Standard deviation of the `logit_normal` density.", default=1.0, exclusiveMinimum=0, maximum=1000
    )
    mode_scale: float = option("Scale of the `mode` density.", default=1.29, minimum=-1000, maximum=1000)
    shift: float | str = option(
        "Shift of the sampled sigmas: a number, or `scheduler` for the value of the pipeline's own scheduler. Above "
        "1 spends more steps near noise, 1 changes nothing.",
        default="scheduler",
        schema=SHIFT,
    )
    flow_custom_timesteps: Sequence[Any] | str | None = option(
        "The only times to train at: a list of numbers such as `[801, 694, 548, 338]`, or one string with commas. "
        "Numbers above 1 are thousandths, so 801 is sigma 0.801; density and shift do not apply. `null` samples "
        "times at random.",
        default=None,
        items={"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
        minItems=1,
        examples=[[801, 694, 548, 338], "801,694,548,338"],
    )
    flow_timesteps_mode: Literal["random", "fixed-list", "round-robin"] | None = option(
        "How times are chosen. `random`: from the density. `fixed-list`: any entry of `flow_custom_timesteps`. "
        "`round-robin`: the entries in turn, each process offset, the position kept in checkpoints. `null` means "
        "`fixed-list` with a list and `random` without one.",
        default=None,
    )

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from timing_faults(vars(self))

    @classmethod
    def settled(cls, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, MODE: options[MODE] or ("random" if options[LIST] is None else "fixed-list")}

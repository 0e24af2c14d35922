"""What do guards and other objectives do to preference runs, at the recipe's rate and at more, and does Flow-DPO learn
a style that SFT on the winners does not?"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import evidence_preferences_digits as digits
from benchmarks import evidence_preferences_emoji as emoji
from benchmarks.spread import spread
from flowhooks.digits.report import machine

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

#: Measure -> its name, and how it is printed.
DIGITS = {
    "blot_rate": ("blots", "{:.1%}"),
    "digit_accuracy": ("digits", "{:.1%}"),
    "frechet": ("Fréchet", "{:.1f}"),
    "win_error": ("winner error", "{:.2f}"),
    "steps": ("steps", "{:.0f}"),
}
EMOJI = {
    "winner_share": ("judged as Noto", "{:.1%}"),
    "category_accuracy": ("category", "{:.1%}"),
    "frechet": ("Fréchet to Noto", "{:.1f}"),
}
Row = Mapping[str, Any]


def measure(output: Path, docs: Path, seeds: Sequence[int], arms: Sequence[str] | None) -> None:
    """Train every arm at every rate and seed, or reuse what `output` holds, and write what the judges say of each."""
    bench, style = digits.Digits(output=output.resolve()), emoji.Style(output=output.resolve())
    rows = [
        bench.row(arm, times, seed)
        for seed in seeds
        for times in digits.TIMES
        for arm in digits.ARMS
        if (arms is None or arm in arms) and (arm not in digits.ONCE or seed == seeds[0])
    ]
    styled = [style.row(arm, seed) for seed in seeds for arm in emoji.ARMS if arms is None or arm in arms]
    facts = {
        "digits": {"base": bench.before, "rows": rows, "judge_held_out": bench.judge.held_out},
        "emoji": {"given": style.given, "rows": styled, "judge_held_out": style.judge.held_out},
        "arms": {name: list(hooks) for name, hooks in digits.ARMS.items()},
        "machine": machine(),
    }
    write_page(docs, facts)


def write_page(docs: Path, facts: Mapping[str, Any]) -> None:
    """Write `preferences.md`, `preferences.json` and `preferences.png` into a folder."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "preferences.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (docs / "preferences.md").write_text(page(facts), encoding="utf-8")
    plot(facts, docs / "preferences.png")


def page(facts: Mapping[str, Any]) -> str:
    """Return the page's text."""
    where = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    return f"""# Evidence: preference objectives and what holds them

## Digits

The runs are `examples/flow_dpo/digits.json` with {digits.STEPS} steps of {digits.BATCH} pairs, at its rate
({digits.RATE:g}), at 5 and at 20 times it. *no guard* is its objective as it stands (`auto_beta`, `masked_mean`, an
anchor of 0.05), *margin_cap* ({digits.CAP}), *win_weight* (1) and *stop_when* (`win_error` above 1.5 at 3 logged steps
in a row, which is the default) add one guard to it. The other arms have neither auto-beta nor an anchor nor a guard:
other objectives at their own betas, and Flow-DPO at a beta of {digits.BETA:,.0f}, which is far above the one that
auto-beta ends with, about 53, with the guards again.

{_digits_table(facts["digits"])}

Median (lowest to highest) over training seeds; *seeds* says which were trained. Every row samples {digits.SAMPLES}
prompts from the same seeds ({digits.UNSEEN} and up), {digits.SAMPLING_STEPS} steps, no guidance, with the stock
pipeline and `load_lora_weights`; Fréchet distances of so few images are above those of `flow_dpo.md`. *winner error* is
the mean squared error of the flow on {digits.Probe.COUNT} preferred images at fixed noise and sigmas, over that of the
base, over the whole image and not only inside the mask. *steps* is the step whose weights were kept.

{verdict(facts["digits"]["rows"])}

![measures of each arm at each rate](preferences.png)

### How the settings were chosen

Not before the results were seen, so these rows are no test of the settings on fresh seeds:

* In a first matrix the objective had a fixed beta of {digits.BETA:,.0f}, which does not run away at any of these rates:
  there was nothing for a guard to hold. What is left of it are the rows of *{digits.FIXED}*, seed 0 only.
* The guards were then moved onto the recipe (auto-beta and an anchor), once seed 0 had shown that it does run away.
* The value of *margin_cap* comes from the beta that the recipe ended with at its own rate on seed 0. Another model or
  reduction needs another.
* The limit of *stop_when* went from 1.2 to 1.5 after runs at 1.2 had been seen.
* The column *seeds* says which seeds a row has; an arm without a row at a rate was not trained there. The default was
  decided from these rows.

### A run that runs away

`python -m benchmarks.running_away` trains Flow-DPO with `norm_type: mean` at 20 times the recipe's rate and 100 times a
published beta (200,000), 300 steps, and judges the weights that the run ended with, or went back to, on the same
{digits.Probe.COUNT} pairs, noise and sigmas. With `--batch 4`, seeds 0, 1 and 2: with the default guard the winner
error was 1.17, 1.13 and
1.39 times the reference's, and no run was stopped; with auto-beta the guard stopped the runs, and they went back to
weights at 1.27, 1.43 and 1.16. With the script's own batch of 16 it was 1.10, 1.16 and 1.70, no run stopped, and with
auto-beta 1.55, 1.22 and 1.54 after going back: not always below 1.5. Single batches were preferred to a mean after the
runs with 4 had been seen. [Preference objectives](../preferences.md#guards) has more.

## Emoji

{_emoji_part(facts.get("emoji"))}

Reproduce: `python -m benchmarks.evidence preferences`; what is trained already is kept in `runs/evidence/preferences`,
one line for each run, and not trained again. Measured on: {where}. Numbers: `preferences.json`.
"""


def verdict(rows: Sequence[Row]) -> str:
    """Say what each guard did to Fréchet distance and winner error, at each rate at which both were trained."""
    lines = []
    for guard in ("margin_cap", "win_weight", "stop_when"):
        parts = []
        for times in digits.TIMES:
            with_it, without = _of(rows, guard, times), _of(rows, digits.NO_GUARD, times)
            shared = sorted(with_it.keys() & without.keys())
            if shared:
                said = []
                for key in ("blot_rate", "frechet", "win_error"):
                    name, form = DIGITS[key]
                    before, after = (form.format(_median(each, shared, key)) for each in (without, with_it))
                    said.append(f"{name} {before} to {after}")
                parts.append(f"at {times} times the rate {', '.join(said)}")
        lines.append(f"* *{guard}* against *{digits.NO_GUARD}*: {'; '.join(parts)}.")
    return "\n".join(lines)


def _of(rows: Sequence[Row], arm: str, times: int) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if row["arm"] == arm and row["times"] == times}


def _median(rows: Mapping[int, Row], seeds: Sequence[int], key: str) -> float:
    return statistics.median(rows[seed][key] for seed in seeds)


def _digits_table(part: Mapping[str, Any]) -> str:
    head = ["rate", "arm", *(name for name, _ in DIGITS.values()), "seeds"]
    lines = [head, ["---"] * len(head)]
    base = [form.format(part["base"][key]) if key in part["base"] else "" for key, (_, form) in DIGITS.items()]
    lines.append(["", "base", *base, ""])
    for times in digits.TIMES:
        for arm in digits.ARMS:
            found = _of(part["rows"], arm, times)
            if found:
                cells = [spread([row[key] for row in found.values()], form) for key, (_, form) in DIGITS.items()]
                lines.append([f"{times} x", arm, *cells, ", ".join(map(str, sorted(found)))])
    return _table(lines)


def _emoji_part(part: Mapping[str, Any] | None) -> str:
    if not part or not part["rows"]:
        return (
            "Not measured yet: what `benchmarks/evidence_preferences_emoji.py` trains and judges, a preference for\n"
            "one vendor's style of emoji against SFT on the winners, was not run to its end."
        )
    head = ["", *(name for name, _ in EMOJI.values()), "seeds"]
    lines = [head, ["---"] * len(head)]
    lines += [
        [name, *(form.format(row[key]) for key, (_, form) in EMOJI.items()), ""] for name, row in part["given"].items()
    ]
    for arm in emoji.ARMS:
        found = [row for row in part["rows"] if row["arm"] == arm]
        if found:
            cells = [spread([row[key] for row in found], form) for key, (_, form) in EMOJI.items()]
            lines.append([arm, *cells, ", ".join(str(row["seed"]) for row in found)])
    held, training = part["judge_held_out"], emoji.BASE["training"]
    return f"""1,911 emoji in two styles, Noto (Google, Apache-2.0) and Twemoji (Twitter, CC BY 4.0), from the npm
packages `emoji-datasource-google` and `emoji-datasource-twitter`, which the benchmark fetches; none is kept. A small
`FluxPipeline` at {emoji.PIXELS} x {emoji.PIXELS} pixels learns one half of the emoji in both styles from captions of
category and name, {training["max_train_steps"]} steps of {training["train_batch_size"]}: few, and its images are
crude. Then LoRAs learn to prefer Noto: *{emoji.DPO}* on pairs of the same emoji, Noto preferred, with a beta of 2,000
and without and with `win_weight`, and *{emoji.SFT}* SFT on the Noto pictures alone, in as many more steps as its steps
cost less. All have one rate, {emoji.RATE:g}; no other rate or beta was compared, so the gap may be one of settings.

{_table(lines)}

{emoji_verdict(part["rows"])} {emoji.SAMPLES} images of each, {emoji.SAMPLING_STEPS} steps, of emoji that were
trained on. The judge of style and category learned from the other half of the emoji; on {held["emoji"]:.0f} of those
that it did not learn from it tells the vendor of {held["vendor_accuracy"]:.1%} and the category of
{held["category_accuracy"]:.1%}. What it says of the real pictures and of what the autoencoder makes of them is in the
table: no image of a model can be told better than the latter. The Fréchet distance is to the Noto pictures of the
trained half."""


def emoji_verdict(rows: Sequence[Row]) -> str:
    """Say by how much Flow-DPO differs from SFT on the winners, seed by seed."""
    one, other = ({row["seed"]: row for row in rows if row["arm"] == arm} for arm in (emoji.DPO, emoji.SFT))
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return "The two arms were not both run."
    said = []
    for key, (name, form) in EMOJI.items():
        moved = [one[seed][key] - other[seed][key] for seed in shared]
        said.append(f"{name} {spread(moved, form.replace(':', ':+'))}")
    style = statistics.median(one[seed]["winner_share"] - other[seed]["winner_share"] for seed in shared)
    ahead, behind = (emoji.DPO, emoji.SFT) if style > 0 else (emoji.SFT, emoji.DPO)
    kept = statistics.median(one[seed]["category_accuracy"] - other[seed]["category_accuracy"] for seed in shared)
    noise = 100 * math.sqrt(0.25 / emoji.SAMPLES)
    found = "Flow-DPO did nothing here that SFT on the winners did not." if max(style, kept) < noise / 100 else ""
    return (
        f"*{emoji.DPO}* less *{emoji.SFT}*, seed by seed: {'; '.join(said)}.\n"
        f"So {ahead} moved the base further towards Noto than {behind} did. All seeds have the same prompts and\n"
        f"the same noise; a share of {emoji.SAMPLES} images has a standard error of up to {noise:.1f} points, and a\n"
        f"difference that is not well above it says nothing. {found}"
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(facts: Mapping[str, Any], file: Path) -> None:
    """Draw measures of each arm over the rates, a dot for each seed and a line through their medians."""
    part = facts["digits"]
    shown = {key: DIGITS[key] for key in ("blot_rate", "digit_accuracy", "frechet", "win_error")}
    figure, axes = plt.subplots(1, len(shown), figsize=(14, 3.8), layout="constrained")
    for axis, (key, (title, _)) in zip(axes, shown.items(), strict=True):
        axis.axhline(part["base"][key], color="grey", linestyle="--", label="base")
        for place, arm in enumerate(name for name in digits.ARMS if name not in digits.ONCE):
            found = {times: [row[key] for row in _of(part["rows"], arm, times).values()] for times in digits.TIMES}
            found = {times: values for times, values in found.items() if values}
            spots = {times: digits.TIMES.index(times) + 0.06 * (place - 4) for times in found}
            for times, values in found.items():
                axis.plot([spots[times]] * len(values), values, "o", color=f"C{place}", alpha=0.6, markersize=4)
            medians = [statistics.median(values) for values in found.values()]
            axis.plot(list(spots.values()), medians, color=f"C{place}", label=arm, linewidth=1)
        axis.set_xticks(range(len(digits.TIMES)), [f"{times} x" for times in digits.TIMES])
        axis.set_title(title)
    axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(file, dpi=110)
    plt.close(figure)

"""Runs of released sizes fit the cards that they are meant for.

Counting all blocks takes a minute a run, as `python -m benchmarks.memory_plan --released` does. Each block adds the
same, so few of them are counted here, and their number is made up for.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.memory_plan import counted, row_run, write_folder
from benchmarks.released_sizes import RELEASED, ROWS
from flowhooks.memory.plan import full_network
from flowhooks.memory.report import GIB

KINDS = {"flux": "FluxTransformer2DModel"}
DEPTHS = {"flux": ("num_layers", "num_single_layers")}
#: With every block on the host, two are on the card at a time.
FEWEST = 2


@pytest.mark.parametrize("name", sorted(KINDS))
def test_runs_fit_the_cards_that_they_are_meant_for(name, tmp_path):
    sizes = RELEASED[name]["transformer"]

    def folder(**depths):
        parts = {**RELEASED[name], "transformer": {**sizes, **depths}}
        return write_folder(name, parts, tmp_path / "-".join(map(str, (name, *depths.values()))))

    fewest = dict.fromkeys(DEPTHS[name], FEWEST)
    kept = [row for row in ROWS if row.pipeline == name and row.most is not None]
    assert kept
    first = folder(**fewest)
    plan, _ = counted(kept[0], first)
    deeper = {key: full_network(folder(**{**fewest, key: FEWEST + 1}) / "transformer", KINDS[name]) for key in fewest}
    for row in kept:
        run = row_run(row, first)
        needs = plan.needs(run)
        # Text encoders and VAE are done once the data is encoded.
        assert not {"vae", "encoders"} & needs.at_peak.keys()
        total = needs.peak + sum(
            (sizes[key] - FEWEST) * (replace(plan, network=network).needs(run).peak - needs.peak)
            for key, network in deeper.items()
        )
        assert total <= row.most * GIB, f"{row.name}: {total / GIB:.1f} GiB"

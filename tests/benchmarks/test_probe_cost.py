"""What learning a pipeline of released widths is said to cost."""

from __future__ import annotations

import json
from collections import Counter

from benchmarks.probe_cost import COUNTED, RESULTS, WIDE, counting
from benchmarks.released_sizes import RELEASED
from tests.families import tiny


def test_widths_are_the_released_ones_and_layers_few():
    for wide in WIDE:
        for part, settings in RELEASED.get(wide.pipeline, {}).items():
            changed = {key for key, value in settings.items() if wide.parts[part][key] != value}
            assert all("layer" in key or key in ("text_config", "vision_config") for key in changed), (wide.name, part)
        assert len({**wide.parts["transformer"]}) > 5


def test_what_a_run_costs_is_counted_and_nothing_of_it_stays():
    pipe, count = tiny("sd3"), Counter()
    before = dict(vars(type(pipe))), dict(vars(type(pipe.vae)))
    with counting(pipe, count):
        pipe("a", height=16, width=16, max_sequence_length=8, num_inference_steps=3, guidance_scale=1.0)
    assert count == {"__call__": 1, "encode_prompt": 1, "forward": 3, "decode": 1}
    assert (dict(vars(type(pipe))), dict(vars(type(pipe.vae)))) == before


def test_every_row_was_measured_and_stays_below_what_a_probe_cost_before():
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["pipelines"]
    assert list(rows) == [wide.name for wide in WIDE]
    for name, row in rows.items():
        assert set(COUNTED.values()) <= row.keys()
        assert row["runs"] <= 19 and row["prompt encodings"] <= 8 and row["network forwards"] <= 11, name

"""The rows for a GPU, on small networks and the CPU."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import parser
from benchmarks.rows import attempt, read, table


def test_a_row_is_measured_on_a_small_network(tmp_path):
    given = ["gpu", "--tiny", "--only", "sd35-medium sft", "--output", str(tmp_path)]
    with warnings.catch_warnings():
        assert gpu.measure(parser().parse_args(given)) == 0
    _, (row,) = read(tmp_path / "gpu.json")
    assert not row.failure and row.numbers["seconds"] > 0 and row.numbers["TFLOP"] > 0
    assert row.settings == {"network": "sd35-medium", "method": "sft", "pixels": 1024, "with": "bf16"}


def test_a_row_for_which_no_time_is_left_says_so(tmp_path):
    given = ["gpu", "--tiny", "--minutes", "0", "--only", "flux1 sft", "--output", str(tmp_path)]
    gpu.measure(parser().parse_args(given))
    rows = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"]
    assert {row["failure"] for row in rows} == {"not run: out of time"}


@pytest.mark.parametrize(
    ("error", "failure"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "OOM"), (ValueError("no such\nsize"), "ValueError: no such size")],
)
def test_what_fails_is_a_row(error, failure):
    def measure():
        raise error

    row = attempt("gpu", {"network": "x"}, measure)
    assert table([row, attempt("gpu", {"network": "y"}, lambda: {"seconds": 0.5})]).splitlines()[2:] == [
        f"| x | {failure} |",
        "| y | 0.5 |",
    ]


def test_networks_are_of_the_released_sizes():
    assert {name for name in gpu.NETWORKS} == {"sd35-medium", "flux1", "flux2-klein-4b", "qwen-image", "wan-1.3b"}
    assert {case.network for case in gpu.CASES} == set(gpu.NETWORKS)

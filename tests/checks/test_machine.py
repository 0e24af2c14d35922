"""What a machine does badly is a warning, and what it cannot do is refused."""

from __future__ import annotations

import pytest

from flowhooks.checks import machine
from flowhooks.checks.machine import WORKERS_PER_CPU, machine_problems, machine_warnings
from flowhooks.config import resolve_run


def run_with(tmp_path, workers):
    document = {"training": {"dataloader_num_workers": workers}, "hooks": [], "output_dir": str(tmp_path / "out")}
    return resolve_run({**document, "cache_dir": str(tmp_path / "cache")}, tmp_path / "run.json")


@pytest.mark.parametrize(
    ("workers", "warned", "refused"),
    [(0, False, False), (4, False, False), (5, True, False), (4 * WORKERS_PER_CPU, True, False), (33, True, True)],
)
def test_workers_of_a_machine_of_four(workers, warned, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cpus", lambda: 4)
    run = run_with(tmp_path, workers)
    assert any(f"is {workers}" in line for line in machine_warnings(run)) == warned
    assert [each.path for each in machine_problems(run)] == (["$.training.dataloader_num_workers"] if refused else [])
    # Trying whether a folder can be made leaves nothing.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "triton", "words"),
    [((6, 1), True, "compute capability 7.0, the best one here has 6.1"), ((9, 0), False, "pip install triton")],
)
def test_a_gpu_that_cannot_compile_is_refused_with_the_reason(capability, triton, words, monkeypatch):
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: (capability,))
    monkeypatch.setattr(machine, "find_spec", lambda name: object() if triton else None)
    assert words in (machine.compiler_refusal("inductor") or "")
    assert machine.compiler_refusal("aot_eager") is None


def test_a_gpu_with_triton_compiles(monkeypatch):
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ((9, 0),))
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    assert machine.compiler_refusal("inductor") is None

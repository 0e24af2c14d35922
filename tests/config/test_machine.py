"""What a machine can run, on machines described by hand where the one at hand has no GPU."""

from __future__ import annotations

import pytest

from flowhooks import machine


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(machine, "has_rocm", lambda: False)
    machine.cuda_capabilities.cache_clear()
    yield
    machine.cuda_capabilities.cache_clear()


def test_native_runs_everywhere(no_gpu):
    assert machine.backend_refusal("native", dtype="fp32") is None
    assert machine.backend_refusal("_native_math", dtype="fp32") is None


@pytest.mark.parametrize("name", ["xformers", "flash", "_native_cudnn", "flex", "flash_hub", "_flash_3"])
def test_cuda_only_backends_are_refused_without_a_gpu(no_gpu, name):
    assert "needs an NVIDIA GPU" in (machine.backend_refusal(name) or "")


@pytest.mark.parametrize("name", ["sage", "sage_hub", "aiter_fa2_hub"])
def test_backends_without_a_backward_pass_are_refused(name):
    assert "no backward pass" in (machine.backend_refusal(name) or "")


def test_half_precision_backends_refuse_fp32(no_gpu):
    refusal = machine.backend_refusal("_native_flash", dtype="fp32")
    assert refusal is not None and "bf16" in refusal
    assert machine.backend_refusal("_native_flash", dtype="fp32", mixed_precision="bf16") is None


def test_an_old_gpu_and_a_missing_package_are_named(monkeypatch):
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ((7, 5),))
    assert "8.0, the best one here has 7.5" in (machine.backend_refusal("flash") or "")
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ((9, 0),))
    monkeypatch.setattr(machine.util, "find_spec", lambda name: None)
    assert "pip install 'flowhooks[xformers]'" in (machine.backend_refusal("xformers") or "")
    monkeypatch.setattr(machine.util, "find_spec", lambda name: object())
    monkeypatch.setattr(machine, "version_of", lambda name: "0.0.20")
    assert "0.0.20 is too old" in (machine.backend_refusal("xformers") or "")
    monkeypatch.setattr(machine, "version_of", lambda name: "0.0.35")
    assert machine.backend_refusal("xformers") is None

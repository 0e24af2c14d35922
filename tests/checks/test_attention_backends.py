"""What a machine can run, on machines described by hand where the one at hand has no GPU."""

from __future__ import annotations

import diffusers
import pytest
from diffusers.models import attention_dispatch as dispatch

from flowhooks.checks import machine


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


def test_an_old_gpu_is_named(monkeypatch):
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ((7, 5),))
    assert "8.0, the best one here has 7.5" in (machine.backend_refusal("flash") or "")


@pytest.mark.parametrize(
    ("name", "package"),
    [("xformers", "flowhooks[xformers]"), ("flash", "flash-attn>="), ("flash_hub", "kernels"), ("_flash_3", "FA3")],
)
def test_diffusers_names_the_package_that_is_missing(name, package, monkeypatch):
    """Of the GPU that is there, and of packages as Diffusers found them when it was imported."""
    monkeypatch.setattr(machine, "cuda_capabilities", lambda: ((9, 0),))
    for found in ("_CAN_USE_XFORMERS_ATTN", "_CAN_USE_FLASH_ATTN", "_CAN_USE_FLASH_ATTN_3"):
        monkeypatch.setattr(dispatch, found, False)
    monkeypatch.setattr(dispatch, "is_kernels_available", lambda: False)
    refusal = machine.backend_refusal(name) or ""
    assert f"'{name}' is not usable because" in refusal and package in refusal and not refusal.endswith(".")
    monkeypatch.setattr(dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    assert machine.backend_refusal("xformers") is None


@pytest.mark.parametrize("moved", ["_check_attention_backend_requirements", "_AttentionBackendRegistry"])
def test_a_diffusers_whose_checks_have_moved_is_not_asked(moved, no_gpu, monkeypatch):
    monkeypatch.delattr(dispatch, moved)
    assert machine.backend_refusal("_native_flash", dtype="fp32") is None
    assert "no backward pass" in (machine.backend_refusal("sage") or "")
    assert "needs an NVIDIA GPU" in (machine.backend_refusal("flash") or "")


def test_a_diffusers_without_the_backend_says_its_version():
    refusal = machine.backend_refusal("flash_9_hub") or ""
    assert f"diffusers {diffusers.__version__} has none of this name" in refusal


def test_all_that_is_said_here_is_of_backends_that_there_are():
    names = {each.value for each in dispatch.AttentionBackendName}
    assert machine._CAPABILITIES.keys() <= names
    assert all(any(name.startswith(start) for name in names) for start in machine._FORWARD_ONLY)

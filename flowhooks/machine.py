"""What this machine can run. torch is imported only for a run that names another attention backend than ``native``,
and only to ask Diffusers."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib import metadata, util
from typing import Any

#: How the names of backends begin that have no backward pass.
_FORWARD_ONLY = ("aiter", "sage", "_sage")
#: Backends that need an NVIDIA GPU -> its least compute capability. Diffusers' own check looks at packages only, and
#: without such a GPU the first step fails.
_CAPABILITIES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("_native_efficient", "flex", "xformers"), (0, 0)),
    **dict.fromkeys(("_native_cudnn", "flash", "flash_hub", "flash_varlen", "flash_varlen_hub"), (8, 0)),
    **dict.fromkeys(("_flash_3", "_flash_3_hub", "_flash_3_varlen_hub", "_flash_varlen_3", "flash_4_hub"), (9, 0)),
}


def backend_refusal(name: str, *, dtype: str = "bf16", mixed_precision: str = "no") -> str | None:
    """Why training cannot use an attention backend of Diffusers here, or None when it can.

    Args:
        name: of the backend.
        dtype, mixed_precision: as in a run.
    """
    if name == "native":
        return None
    if name.startswith(_FORWARD_ONLY):
        return "it has no backward pass, so nothing can be trained through it"
    # ROCm builds of torch call their devices cuda too.
    if name in _CAPABILITIES and not has_rocm():
        if not cuda_capabilities():
            return "it needs an NVIDIA GPU with its driver, and this machine has none that answers"
        if max(cuda_capabilities()) < _CAPABILITIES[name]:
            needed, found = _dotted(_CAPABILITIES[name]), _dotted(max(cuda_capabilities()))
            return f"it needs a GPU of compute capability {needed}, the best one here has {found}"
    return _refusal_of_diffusers(name, whole=dtype == "fp32" and mixed_precision == "no")


def _refusal_of_diffusers(name: str, *, whole: bool) -> str | None:
    """What Diffusers itself has against a backend: packages that are missing or too old, or numbers of 32 bits.

    A version of Diffusers whose checks have moved is not asked; it says so itself when the model is loaded.

    Args:
        whole: the run computes in fp32.
    """
    import torch
    from diffusers.models import attention_dispatch as dispatch

    try:
        backend = dispatch.AttentionBackendName(name)
    except ValueError:
        return f"the installed diffusers {version_of('diffusers')} has none of this name"
    try:
        requirements = dispatch._check_attention_backend_requirements
        constraints = dispatch._AttentionBackendRegistry._constraints[backend]
    except (AttributeError, KeyError):
        return None
    try:
        requirements(backend)
    except (RuntimeError, ImportError) as error:
        extra = " (pip install 'flowhooks[xformers]')" if name == "xformers" else ""
        return f"diffusers says: {str(error).removesuffix('.')}{extra}"
    sample = torch.zeros(1, 1, 1, 64, dtype=torch.float32 if whole else torch.bfloat16)
    for check in constraints:
        # The others are about devices and shapes.
        if "dtype" in check.__name__:
            try:
                check(query=sample, key=sample, value=sample)
            except ValueError:
                return (
                    "it computes in bf16 or fp16 only; set `model.dtype` to 'bf16' or `training.mixed_precision` to "
                    "'bf16'"
                )
    return None


@cache
def cuda_capabilities() -> tuple[tuple[int, int], ...]:
    """Compute capability of each NVIDIA GPU the driver offers to this process; empty without driver or GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    major, minor = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    return tuple((_attribute(driver, i, major), _attribute(driver, i, minor)) for i in range(count.value))


def has_rocm() -> bool:
    """Whether the AMD kernel driver is there."""
    return os.path.exists("/dev/kfd")


def has_accelerator() -> bool:
    """Whether something other than the CPU can compute in fp16: a GPU, an NPU, or Apple's."""
    apple = os.uname().sysname == "Darwin" and os.uname().machine == "arm64" if hasattr(os, "uname") else False
    return bool(cuda_capabilities()) or has_rocm() or apple or util.find_spec("torch_npu") is not None


def version_of(package: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _attribute(driver: Any, index: int, attribute: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(str(part) for part in capability)

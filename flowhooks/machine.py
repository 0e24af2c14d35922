"""What this machine can run, found out without importing torch."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What an attention backend of Diffusers needs.

    Args:
        module: package it imports, if any.
        minimum: oldest version of it that Diffusers takes.
        install: how to get it.
        device: ``any``, ``cuda``, ``rocm``, ``npu`` or ``xla``.
        half: it takes bf16 and fp16 only.
        capability: least CUDA compute capability.
        trains: it has a backward pass.
    """

    module: str | None = None
    minimum: str | None = None
    install: str | None = None
    device: str = "any"
    half: bool = False
    capability: tuple[int, int] = (0, 0)
    trains: bool = True


def _cuda(module: str | None = None, minimum: str | None = None, install: str | None = None, **more: Any) -> Backend:
    return Backend(module=module, minimum=minimum, install=install, device="cuda", **more)


def _kernels(minimum: str = "0.12", **more: Any) -> Backend:
    return _cuda("kernels", minimum, f"pip install 'kernels>={minimum}'", half=True, **more)


def _sage(**more: Any) -> Backend:
    return _cuda("sageattention", "2.1.1", "pip install 'sageattention>=2.1.1'", trains=False, **more)


_FLASH = _cuda("flash_attn", "2.6.3", "pip install 'flash-attn>=2.6.3'", half=True, capability=(8, 0))
_FLASH_3 = _cuda(
    "flash_attn_3", None, "build it from the hopper folder of flash-attention", half=True, capability=(9, 0)
)

#: By name in Diffusers 0.42, whose own checks these are; a test holds the names to its list.
BACKENDS: dict[str, Backend] = {
    "native": Backend(),
    "_native_math": Backend(),
    "_native_efficient": _cuda(),
    "_native_flash": Backend(half=True),
    "_native_cudnn": _cuda(half=True, capability=(8, 0)),
    "_native_npu": Backend(module="torch_npu", install="pip install torch_npu", device="npu", half=True),
    "_native_xla": Backend(module="torch_xla", minimum="2.2", install="pip install 'torch_xla>=2.2'", device="xla"),
    "xformers": _cuda("xformers", "0.0.29", "pip install 'flowhooks[xformers]'"),
    "flex": _cuda(),
    "flash": _FLASH,
    "flash_varlen": _FLASH,
    "flash_hub": _kernels(capability=(8, 0)),
    "flash_varlen_hub": _kernels(capability=(8, 0)),
    "_flash_3": _FLASH_3,
    "_flash_varlen_3": _FLASH_3,
    "_flash_3_hub": _kernels(capability=(9, 0)),
    "_flash_3_varlen_hub": _kernels(capability=(9, 0)),
    "flash_4_hub": _kernels("0.12.3", capability=(9, 0)),
    "aiter_fa2_hub": Backend(
        module="kernels", minimum="0.12", install="pip install 'kernels>=0.12'", device="rocm", half=True, trains=False
    ),
    "sage": _sage(half=True),
    "sage_hub": _kernels(trains=False),
    "sage_blackwell_hub": _kernels(trains=False, capability=(12, 0)),
    "sage_varlen": _sage(half=True),
    "_sage_qk_int8_pv_fp8_cuda": _sage(capability=(9, 0)),
    "_sage_qk_int8_pv_fp8_cuda_sm90": _sage(capability=(9, 0)),
    "_sage_qk_int8_pv_fp16_cuda": _sage(capability=(8, 0)),
    "_sage_qk_int8_pv_fp16_triton": _sage(capability=(8, 0)),
}
_DEVICES = {
    "cuda": "an NVIDIA GPU with its driver",
    "rocm": "an AMD GPU with ROCm",
    "npu": "an Ascend NPU",
    "xla": "an XLA device",
}


def backend_refusal(name: str, *, dtype: str = "bf16", mixed_precision: str = "no") -> str | None:
    """Why training cannot use an attention backend here, or None when it can.

    Args:
        name: of a backend in :data:`BACKENDS`.
        dtype, mixed_precision: as in a run.
    """
    backend = BACKENDS[name]
    if not backend.trains:
        return "it has no backward pass, so nothing can be trained through it"
    if backend.device == "cuda":
        # ROCm builds of torch call their devices cuda too.
        if not cuda_capabilities() and not has_rocm():
            return f"it needs {_DEVICES['cuda']}, and this machine has none that answers"
        if cuda_capabilities() and max(cuda_capabilities()) < backend.capability:
            needed, found = _dotted(backend.capability), _dotted(max(cuda_capabilities()))
            return f"it needs a GPU of compute capability {needed}, the best one here has {found}"
    if backend.device == "rocm" and not has_rocm():
        return f"it needs {_DEVICES['rocm']}, and this machine has none"
    if backend.module is not None:
        missing = _package_refusal(backend)
        if missing:
            return missing
    if backend.half and dtype == "fp32" and mixed_precision == "no":
        return "it computes in bf16 or fp16 only; set `model.dtype` to 'bf16' or `training.mixed_precision` to 'bf16'"
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


def _package_refusal(backend: Backend) -> str | None:
    from packaging.version import InvalidVersion, Version

    assert backend.module is not None
    if util.find_spec(backend.module) is None:
        return f"the package {backend.module!r} is not installed; get it with: {backend.install}"
    installed = version_of(backend.module.replace("_", "-")) or version_of(backend.module)
    try:
        if backend.minimum and installed and Version(installed) < Version(backend.minimum):
            return (
                f"{backend.module} {installed} is too old, {backend.minimum} is needed; get it with: {backend.install}"
            )
    except InvalidVersion:
        return None
    return None


def _attribute(driver: Any, index: int, attribute: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(str(part) for part in capability)

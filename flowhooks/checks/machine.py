"""Check a run against this machine, its disk and its settings. Free of torch."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from functools import cache
from importlib import metadata, util
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowhooks.config import Run
from flowhooks.errors import Problem

#: Prefixes of the names of backends without a backward pass.
_FORWARD_ONLY = ("aiter", "sage", "_sage")
#: Backends that need an NVIDIA GPU -> its least compute capability. Diffusers' own check looks at packages only, and
#: without such a GPU the first step fails.
_CAPABILITIES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("_native_efficient", "flex", "xformers"), (0, 0)),
    **dict.fromkeys(("_native_cudnn", "flash", "flash_hub", "flash_varlen", "flash_varlen_hub"), (8, 0)),
    **dict.fromkeys(("_flash_3", "_flash_3_hub", "_flash_3_varlen_hub", "_flash_varlen_3", "flash_4_hub"), (9, 0)),
}
#: Least compute capability for which Triton compiles.
_TRITON = (7, 0)
#: A run with more data loader processes per CPU is refused: each holds some hundred megabytes.
WORKERS_PER_CPU = 8


def backend_refusal(name: str, *, dtype: str = "bf16", mixed_precision: str = "no") -> str | None:
    """Return why training cannot use an attention backend of Diffusers here, or None when it can.

    Args:
        name: name of the backend.
        dtype, mixed_precision: as in a run.
    """
    if name == "native":
        return None
    if name.startswith(_FORWARD_ONLY):
        return "it has no backward pass, so nothing can be trained through it"
    # ROCm builds of torch also call their devices cuda.
    if name in _CAPABILITIES and not has_rocm():
        if not cuda_capabilities():
            return "it needs an NVIDIA GPU with its driver, and this machine has none that answers"
        if max(cuda_capabilities()) < _CAPABILITIES[name]:
            needed, found = _dotted(_CAPABILITIES[name]), _dotted(max(cuda_capabilities()))
            return f"it needs a GPU of compute capability {needed}, the best one here has {found}"
    return _refusal_of_diffusers(name, whole=dtype == "fp32" and mixed_precision == "no")


def _refusal_of_diffusers(name: str, *, whole: bool) -> str | None:
    """Return why Diffusers itself refuses a backend: packages that are missing or too old, or numbers of 32 bits; None
    if it does not.

    A version of Diffusers whose checks have moved is skipped; it raises itself when the model is loaded.

    Args:
        whole: whether the run computes in fp32.
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
        # Its other checks are about devices and shapes.
        if "dtype" in check.__name__:
            try:
                check(query=sample, key=sample, value=sample)
            except ValueError:
                return (
                    "it computes in bf16 or fp16 only; set `model.dtype` to 'bf16' or `training.mixed_precision` to "
                    "'bf16'"
                )
    return None


def compiler_refusal(backend: str) -> str | None:
    """Return why torch.compile cannot compile with a backend on this machine; None where no reason is known."""
    if backend != "inductor":
        return None
    if cuda_capabilities() or has_rocm():
        if cuda_capabilities() and max(cuda_capabilities()) < _TRITON:
            needed, found = _dotted(_TRITON), _dotted(max(cuda_capabilities()))
            return f"Triton needs a GPU of compute capability {needed}, the best one here has {found}"
        if find_spec("triton") is None:
            return "on a GPU it needs Triton, which is not installed; run `pip install triton`"
        return None
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or usual
    if shutil.which(compiler) is None:
        return (
            f"on a CPU it needs a C++ compiler, and there is no {compiler!r}; install one, or name yours in the "
            "environment variable CXX"
        )
    return None


@cache
def cuda_capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capability of each NVIDIA GPU that the driver offers to this process; empty without driver or
    GPU."""
    driver, count = _cuda()
    major, minor = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    return tuple((_attribute(driver, i, major), _attribute(driver, i, minor)) for i in range(count))


def cuda_memory() -> tuple[int, ...]:
    """Return the bytes of memory of each NVIDIA GPU that the driver offers to this process; empty without driver or
    GPU."""
    driver, count = _cuda()
    found = []
    for index in range(count):
        device, size = ctypes.c_int(), ctypes.c_size_t()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        found.append(size.value)
    return tuple(found)


def _cuda() -> tuple[Any, int]:
    """Return NVIDIA's driver and how many GPUs it offers; 0 where there is no driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None, 0
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None, 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return None, 0
    return driver, count.value


def has_rocm() -> bool:
    """Return whether the AMD kernel driver is installed."""
    return os.path.exists("/dev/kfd")


def has_accelerator() -> bool:
    """Return whether something other than the CPU can compute in fp16: a GPU, an NPU, or Apple's."""
    return bool(cuda_capabilities()) or has_rocm() or has_apple() or util.find_spec("torch_npu") is not None


def has_apple() -> bool:
    """Return whether this machine has Apple's own GPU."""
    return hasattr(os, "uname") and os.uname().sysname == "Darwin" and os.uname().machine == "arm64"


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
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


def machine_problems(run: Run) -> Iterator[Problem]:
    """Yield what this machine, or its disk, cannot do for a run."""
    file = str(run.source)
    model, mixed = run.model, run.training["mixed_precision"]
    refusal = backend_refusal(model["attention_backend"], dtype=model["dtype"], mixed_precision=mixed)
    if refusal:
        message = f"{model['attention_backend']!r} cannot be used: {refusal}; 'native' works everywhere"
        yield Problem(message, file, "$.model.attention_backend")
    if mixed == "fp16" and not has_accelerator():
        yield Problem(
            "'fp16' needs a GPU, and this machine has none that answers; use 'no' or 'bf16'",
            file,
            "$.training.mixed_precision",
        )
    if run.training["compile"] != "none" and (refusal := compiler_refusal(run.training["compile_backend"])):
        message = f"{run.training['compile']!r} cannot be compiled here: {refusal}; or set it to 'none'"
        yield Problem(message, file, "$.training.compile")
    for i, tracker in enumerate(run.logging["trackers"]):
        if find_spec(tracker) is None:
            message = f"{tracker!r} is not installed; run `pip install {tracker}`, or take it out of the list"
            yield Problem(message, file, f"$.logging.trackers[{i}]")
    workers, most = run.training["dataloader_num_workers"], WORKERS_PER_CPU * max(cpus(), 2)
    if workers > most:
        message = f"{workers:,} processes would exhaust this machine of {cpus()} CPUs; use at most {most}"
        yield Problem(message, file, "$.training.dataloader_num_workers")
    for key, folder in (("output_dir", run.output_dir), ("cache_dir", run.cache_dir)):
        yield from _place_problems(Path(folder), file, key)


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_warnings(run: Run) -> Iterator[str]:
    """Yield warnings about settings that this machine can run only badly."""
    workers = run.training["dataloader_num_workers"]
    if workers > cpus():
        yield (
            f"`training.dataloader_num_workers` is {workers}, and this machine has {cpus()} CPUs: more processes than "
            "that read no faster"
        )


def _place_problems(folder: Path, file: str, key: str) -> Iterator[Problem]:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield Problem(f"{place} is a file, so no folder can be made there; name another `{key}`", file, f"$.{key}")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Problem(
            f"{place} cannot be written to; name another `{key}`, or change its permissions", file, f"$.{key}"
        )
    elif not folder.is_dir() and (reason := _unmakeable(place)) is not None:
        yield Problem(f"no folder can be made in {place} ({reason}); name another `{key}`", file, f"$.{key}")


def _unmakeable(place: Path) -> str | None:
    """Return why no folder can be made in a place whose permissions allow it, such as /proc; None if one can. A folder
    is made there, and removed at once."""
    trial = place / f".flowhooks-{uuid.uuid4().hex[:8]}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        return error.strerror or str(error)
    return None

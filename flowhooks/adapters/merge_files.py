"""Merge adapter files into one LoRA file: ``flowhooks merge``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from torch import Tensor

from flowhooks.adapters.adapter_file import write_tensors
from flowhooks.adapters.combine import (
    METHODS,
    Factors,
    average,
    concatenate,
    distance,
    norm,
    padded,
    truncate,
    weighted_sum,
)
from flowhooks.adapters.merge_sources import SourceAdapter, read_sources
from flowhooks.adapters.names import (
    CONFIG_KEY,
    DIFFUSERS_PREFIX,
    LORA_FILE,
    MERGE_KEY,
    USE_DORA,
    first_few,
    refuse_other_file,
)
from flowhooks.adapters.peft_adapter import diffusers_metadata, plain_config
from flowhooks.errors import AdapterError
from flowhooks.reading import user_path

#: Error of a factor average above which a warning is given: it is too large for rounding.
TOLERATED = 0.01


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Describes what `merge_files` wrote.

    Args:
        file: path of the file.
        layers: number of layers.
        ranks: the ranks that occur, in order.
        error: ``|merged - mean| / |mean|`` over all layers, in the Frobenius norm.
    """

    file: Path
    layers: int
    ranks: tuple[int, ...]
    error: float


def merge_files(
    paths: Sequence[Path],
    output: Path,
    *,
    method: str,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    model: Path | None = None,
) -> Merged:
    """Write the weighted sum of adapters as a LoRA in the Diffusers format, without the model they are for.

    Args:
        paths: adapter files, or folders with one, of any kind.
        output: a .safetensors file to write, or the folder to write ``pytorch_lora_weights.safetensors`` into.
        method: ``cat``, the exact sum, whose rank is the sum of the ranks; ``svd``, the best approximation of it with
            ``rank``; ``factor_average``, each factor averaged separately, which is not the average of the changes.
        weights: weights of the adapters, used as they are; default: 1/N each, which makes the sum a mean.
        rank: rank for ``svd``; default: the largest of the adapters.
        model: a pipeline's folder, in which the layers of LyCORIS files are looked up.

    Raises:
        AdapterError: a file cannot be read or merged, the adapters are for different models, or the output exists.
    """
    weights = _checked(paths, method, weights, rank)
    target = user_path(output)
    if target.suffix != ".safetensors" or target.is_dir():
        refuse_other_file(target)
        target = target / LORA_FILE
    if target.exists():
        raise AdapterError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    sources = read_sources(paths, model)
    shapes = _agreed(sources)
    if method != "svd":
        _check_low_rank(sources, method)
    if method == "factor_average":
        _check_alike(sources)
    wanted = max(source.rank for source in sources) if rank is None else rank
    sums = _sums(sources, weights)
    merged: dict[str, Factors] = {}
    off = size = largest = 0.0
    changed: set[Path] = set()
    widest = 0
    for name in shapes:
        held = [(w, source) for w, source in zip(weights, sources, strict=True) if name in source.shapes]
        parts = [(w, source.factors(name)) for w, source in held]
        changed |= {source.file for (_, source), (_, part) in zip(held, parts, strict=True) if norm(part)}
        exact = sums.pop(name) if sums else concatenate(parts)
        if method == "cat":
            result = exact
        else:
            result = truncate(exact, wanted) if method == "svd" else average(parts)
            off += distance(result, exact) ** 2
        size += norm(exact) ** 2
        largest += sum(abs(weight) * norm(part) for weight, part in parts) ** 2
        widest = max(widest, result.rank)
        merged[name] = Factors(down=result.down.float(), up=result.up.float())
    idle = next((source.file for source in sources if source.file not in changed), None)
    if idle is not None:
        raise AdapterError(
            f"{idle}: changes nothing, a matrix of every layer is all zeros. It was saved before its first update, or "
            "its weights were lost: give the file of a finished training, or leave it out."
        )
    # What is left of parts that cancel each other is their rounding.
    if size <= (1e-6**2) * largest:
        raise AdapterError("The weighted sum of these adapters is zero. Check the weights and the files.")
    if method == "svd":
        if rank is not None and rank > widest:
            raise AdapterError(
                f"`--rank` is {rank}, but no layer of these adapters can use more than {widest}. Lower it, or leave "
                "it out."
            )
        merged = {name: padded(result, min(wanted, widest)) for name, result in merged.items()}
    header = {
        MERGE_KEY: json.dumps(
            {
                "method": method,
                "weights": list(weights),
                "sources": [{"name": s.name, "kind": s.kind, "rank": s.rank, "sha256": s.digest} for s in sources],
            }
        )
    }
    header |= next((each.network for each in sources if each.network), {})
    _write(target, merged, shapes, header, _prefix(sources))
    return Merged(
        file=target,
        layers=len(merged),
        ranks=tuple(sorted({result.rank for result in merged.values()})),
        error=math.sqrt(off / size),
    )


def _checked(
    paths: Sequence[Path], method: str, weights: Sequence[float] | None, rank: int | None
) -> tuple[float, ...]:
    """Return the weights. Raises `AdapterError` for arguments that do not go together."""
    if method not in METHODS:
        raise AdapterError(f"Unknown method {method!r}; expected one of {', '.join(METHODS)}.")
    if not paths:
        raise AdapterError("No adapter to merge was given.")
    if rank is not None and (method != "svd" or rank < 1):
        raise AdapterError(f"`--rank` is {rank} with method {method!r}; it takes at least 1, and goes with 'svd' only.")
    if weights is None:
        return (1 / len(paths),) * len(paths)
    if len(weights) != len(paths):
        raise AdapterError(f"`--weights` has {len(weights)} numbers for {len(paths)} adapters; give one for each.")
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError(f"`--weights` has {', '.join(map(str, weights))}; expected finite numbers.")
    return tuple(float(weight) for weight in weights)


def _agreed(sources: Sequence[SourceAdapter]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all layers that any of them adapts. Raises `AdapterError` when they are for different
    models."""
    shapes: dict[str, tuple[int, ...]] = {}
    origin: dict[str, SourceAdapter] = {}
    named = next((source for source in sources if source.transformer is not None), sources[0])
    for source in sources:
        if source.transformer not in (None, named.transformer):
            raise AdapterError(
                f"{source.file}: is for a {source.transformer}, {named.file} for a {named.transformer}. Only adapters "
                "of one model can be merged."
            )
        for name, shape in source.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                raise AdapterError(
                    f"{source.file}: `{name}` changes a weight of shape {list(shape)}, in {origin[name].file} one of "
                    f"{list(shapes[name])}. Only adapters of one model can be merged."
                )
            origin.setdefault(name, source)
    return shapes


def _sums(sources: Sequence[SourceAdapter], weights: Sequence[float]) -> dict[str, Factors]:
    """Return the exact sum of every layer if PEFT can form it, which it can for low-rank kinds; empty otherwise."""
    if not all(source.low_rank for source in sources):
        return {}
    return weighted_sum([{name: source.factors(name) for name in source.shapes} for source in sources], weights)


def _check_low_rank(sources: Sequence[SourceAdapter], method: str) -> None:
    for source in sources:
        if not source.low_rank:
            raise AdapterError(
                f"{source.file}: a {source.kind} has no factors A and B, which method {method!r} needs. Use method "
                "'svd'."
            )


def _check_alike(sources: Sequence[SourceAdapter]) -> None:
    first = sources[0]
    for source in sources[1:]:
        differing = [
            name for name in {**first.shapes, **source.shapes} if (name in first.shapes) != (name in source.shapes)
        ]
        if differing:
            raise AdapterError(
                f"{source.file}: adapts other layers than {first.file} ({first_few(differing)}), and factors of layers "
                "that do not exist cannot be averaged. Use method 'cat' or 'svd'."
            )
        for name in first.shapes:
            ranks = first.factors(name).rank, source.factors(name).rank
            if ranks[0] != ranks[1]:
                raise AdapterError(
                    f"{source.file}: `{name}` has rank {ranks[1]}, in {first.file} it has {ranks[0]}, and factors of "
                    "different ranks cannot be averaged. Use method 'cat' or 'svd'."
                )


def _prefix(sources: Sequence[SourceAdapter]) -> str:
    """Return what Diffusers calls the network that the adapters are for."""
    return next((each.prefix for each in sources if each.prefix != DIFFUSERS_PREFIX), DIFFUSERS_PREFIX)


def _write(
    file: Path,
    merged: Mapping[str, Factors],
    shapes: Mapping[str, tuple[int, ...]],
    header: Mapping[str, str],
    prefix: str,
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, factors in merged.items():
        shape = shapes[name]
        tensors[f"{prefix}.{name}.lora_A.weight"] = factors.down.reshape(-1, *shape[1:])
        tensors[f"{prefix}.{name}.lora_B.weight"] = factors.up.reshape(*factors.up.shape, *[1] * len(shape[2:]))
    peft = plain_config({name: factors.rank for name, factors in merged.items()})
    rank = peft.r
    section = {
        "type": "lora",
        "algo": None,
        "rank": rank,
        "alpha": float(rank),
        "dropout": 0.0,
        USE_DORA: False,
        "target_modules": list(merged),
        "init_from": None,
    }
    metadata = {**header, CONFIG_KEY: json.dumps(section), LORA_ADAPTER_METADATA_KEY: diffusers_metadata(peft, prefix)}
    write_tensors(file, tensors, metadata)

"""Read from the environment, where `accelerate launch` writes it, how weights are split over processes, and check a run
against it. Free of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flowhooks.config import Run
from flowhooks.errors import Problem

_FSDP = "ACCELERATE_USE_FSDP"
#: Engines that split a model in another way.
_OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}
_USE = "use FSDP2 (`accelerate launch --use_fsdp --fsdp_version 2`), or `--multi_gpu` with the whole model on each card"
_PARALLEL = "PARALLELISM_CONFIG_"
#: Ways of accelerate's to split a batch or a layer -> what they split.
_SPLITS = {"TP_SIZE": "layers (tensor parallel)", "CP_SIZE": "sequences (context)", "SP_SIZE": "sequences (Ulysses)"}
#: Settings of a run that FSDP2 does not go with -> (is it set, why and what to do).
_REFUSED = {
    "$.model.quantization": "quantised weights cannot be sharded here; set it to null, or start without FSDP",
    "$.model.offload": "shards stay on their card, so blocks are not on the host too; set it to 'none'",
    "$.training.compile": "compiled blocks and FSDP2 were not tried together; set it to 'none'",
    "$.training.optimizer": (
        "of the network that is trained each process has some rows, and this optimiser reads whole matrices or has "
        "kernels that know no shards; set it to 'adamw'"
    ),
    "$.training.mixed_precision": (
        "of the network that is trained each process has some rows, and the loss scale of fp16 would be another on "
        "each; set it to 'bf16' or 'no'"
    ),
}
#: Optimisers that a sharded network is not trained with, by word or class.
_WHOLE = ("adamw8bit", "adafactor", "prodigy", "muon", "Muon", "Adafactor", "AdamW8bit", "Adam8bit", "Prodigy")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Says how the weights of networks are spread over processes.

    Args:
        copies: how many times all of them are there; each copy is shared by ``processes / copies`` processes.
    """

    copies: int = 1


def sharding_of(environment: Mapping[str, str]) -> Sharding | None:
    """Return how `accelerate launch` was asked to shard; None where every process holds the whole model."""
    if not _is_on(environment, _FSDP):
        return None
    return Sharding(copies=max(1, _number(environment, f"{_PARALLEL}DP_REPLICATE_SIZE")))


def sharding_problems(run: Run) -> Iterator[Problem]:
    """Yield problems with settings of accelerate that split the model over processes."""
    environment, file = os.environ, str(run.source)
    for variable, name in _OTHERS.items():
        if _is_on(environment, variable):
            yield Problem(f"accelerate is set up for {name}, which splits the model in its own way; {_USE}", file)
    if sharding_of(environment) is None:
        return
    if environment.get("FSDP_VERSION", "1") != "2":
        yield Problem(f"accelerate is set up for FSDP 1, whose flat weights no adapter can be put into; {_USE}", file)
    if _is_on(environment, "FSDP_OFFLOAD_PARAMS"):
        yield Problem("accelerate is set up to keep shards on the host (--fsdp_offload_params); set it to false", file)
    for size, what in _SPLITS.items():
        if _number(environment, _PARALLEL + size) > 1:
            yield Problem(f"accelerate is set up to split {what}, which hooks cannot see through; set it to 1", file)
    processes, copies = _number(environment, "WORLD_SIZE"), sharding_of(environment)
    if copies is not None and processes % copies.copies:
        message = f"{processes} processes cannot hold {copies.copies} copies of the weights"
        yield Problem(f"{message}; set `parallelism_config_dp_replicate_size` to a divisor", file)
    held = {
        "$.model.quantization": run.model["quantization"] is not None,
        "$.model.offload": run.model["offload"] != "none",
        "$.training.compile": run.training["compile"] != "none",
        "$.training.optimizer": run.adapter is None and run.training["optimizer"].rpartition(":")[2] in _WHOLE,
        "$.training.mixed_precision": run.adapter is None and run.training["mixed_precision"] == "fp16",
    }
    for path, message in _REFUSED.items():
        if held[path]:
            yield Problem(f"accelerate is set up for FSDP2: {message}", file, path)


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("1", "true", "yes", "on")


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment.get(name, "1"))
    except ValueError:
        return 1

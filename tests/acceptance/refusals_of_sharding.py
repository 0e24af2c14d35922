"""Settings of `accelerate launch` that split a model over processes, and runs that they do not go with."""

from __future__ import annotations

from tests.acceptance.refusal_makers import Refusal, written

#: What `accelerate launch --use_fsdp --fsdp_version 2` sets.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}

SHARDING: dict[str, Refusal] = {
    "an engine of its own": Refusal(
        make=written(), words=("set up for DeepSpeed", "use FSDP2"), environment={"ACCELERATE_USE_DEEPSPEED": "true"}
    ),
    "FSDP of the first version": Refusal(
        make=written(), words=("set up for FSDP 1", "--fsdp_version 2"), environment={"ACCELERATE_USE_FSDP": "true"}
    ),
    "shards on the host": Refusal(
        make=written(), words=("--fsdp_offload_params",), environment={**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}
    ),
    "layers split over processes": Refusal(
        make=written(), words=("tensor parallel",), environment={**FSDP2, "PARALLELISM_CONFIG_TP_SIZE": "2"}
    ),
    "copies that the processes cannot hold": Refusal(
        make=written(),
        words=("3 copies", "parallelism_config_dp_replicate_size"),
        environment={**FSDP2, "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "3"},
    ),
    "shards, and blocks on the host": Refusal(
        make=written(model={"offload": "blocks", "gradient_checkpointing": True}),
        words=("$.model.offload: ", "set it to 'none'"),
        environment=FSDP2,
    ),
    "shards of a network that is trained, and an optimiser of whole matrices": Refusal(
        make=written(adapter=None, training={"trainable": "transformer", "optimizer": "muon"}),
        words=("$.training.optimizer: ", "reads whole matrices", "set it to 'adamw'"),
        environment=FSDP2,
    ),
    "shards of a network that is trained, and a loss scale": Refusal(
        make=written(adapter=None, training={"trainable": "transformer", "mixed_precision": "fp16"}),
        words=("$.training.mixed_precision: accelerate is set up for FSDP2", "set it to 'bf16'"),
        environment=FSDP2,
    ),
    "shards of a quantised base": Refusal(
        make=written(model={"quantization": "int8"}),
        words=("$.model.quantization: ", "quantised weights cannot be sharded"),
        environment=FSDP2,
    ),
    "shards, and compiled blocks": Refusal(
        make=written(training={"compile": "blocks", "compile_backend": "aot_eager"}),
        words=("$.training.compile: accelerate is set up for FSDP2", "set it to 'none'"),
        environment=FSDP2,
    ),
}

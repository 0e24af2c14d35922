"""Ways to quantise a base that are refused before weights load: one for every reason that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.acceptance.refusal_makers import Refusal, changed_index, changed_model, changed_settings, written
from tests.acceptance.user import User

_PLACE = "$.model.quantization"


def quantized(value: Any) -> Callable[[User], object]:
    return written(model={"quantization": value})


def settings(**given: Any) -> Callable[[User], object]:
    return quantized({"transformer": given})


def torchao(kind: Any) -> Callable[[User], object]:
    return settings(quant_method="torchao", quant_type=kind)


QUANTIZATION: dict[str, Refusal] = {
    "no way to quantise": Refusal(make=quantized("int9"), words=(f"{_PLACE}: ", "did you mean 'int8'?")),
    "settings without a backend": Refusal(
        make=settings(load_in_4bit=True), words=(f"{_PLACE}.transformer.quant_method: is missing",)
    ),
    "a quantised base that is trained": Refusal(
        make=written(model={"quantization": "int8"}, adapter=None, training={"trainable": "transformer"}),
        words=(f"{_PLACE}: ", "take no updates", "'adapter'"),
    ),
    "a component that is not there, quantised": Refusal(
        make=quantized({"text_encoder_9": "int8"}),
        words=(f"{_PLACE}.text_encoder_9: ", "is not there", "did you mean 'text_encoder"),
    ),
    "a quantised VAE": Refusal(make=quantized({"vae": "int8"}), words=("'vae' is no network or text encoder",)),
    "weights that are quantised already": Refusal(
        make=changed_model(
            changed_settings("transformer/config.json", quantization_config={"quant_method": "torchao"}),
            quantization="int8",
        ),
        words=(f"{_PLACE}: ", "is quantised in its files already"),
    ),
    "an argument that a backend does not have": Refusal(
        make=settings(quant_method="bitsandbytes", load_in_4bits=True),
        words=(f"{_PLACE}.transformer.load_in_4bits: ", "did you mean 'load_in_4bit'?"),
    ),
    "a value that a backend does not take": Refusal(
        make=settings(quant_method="quanto", weights_dtype="int3"), words=("QuantoConfig: ", "found int3")
    ),
    "quantised activations": Refusal(
        make=torchao("Int8DynamicActivationInt8WeightConfig"),
        words=(f"{_PLACE}.transformer.quant_type: ", "no gradient passes", "'Int8WeightOnlyConfig'"),
    ),
    "an adapter that needs the shape of packed weights": Refusal(
        make=written(model={"quantization": "nf4"}, adapter={"type": "lokr"}),
        words=("$.adapter.type: ", "nf4 (bitsandbytes) packs them", "'lycoris'"),
    ),
    "a DoRA on weights that PEFT cannot read": Refusal(
        make=written(model={"quantization": "gguf"}, adapter={"use_dora": True}),
        words=("$.adapter.use_dora: ", "does not read those of a GGUF file"),
    ),
    "activations that are rounded with those of other samples": Refusal(
        make=settings(quant_method="bitsandbytes", load_in_8bit=True),
        words=(f"{_PLACE}: ", "depends on the others", "'int8'"),
    ),
    "times of tokens on layers of bitsandbytes": Refusal(
        make=written(
            model={"quantization": "nf4"},
            method={"self_flow": {"block_index": 0, "teacher_block_index": 1}},
            training={"use_ema": True},
            hooks=[],
        ),
        words=(f"{_PLACE}: ", "`dual_times`", "'int4'"),
    ),
    "blocks of bitsandbytes, offloaded": Refusal(
        make=written(model={"quantization": "nf4", "offload": "blocks", "gradient_checkpointing": True}),
        words=("$.model.offload: ", "nf4 (bitsandbytes)", "'none'", "'int8'"),
    ),
    "a text encoder in a GGUF file": Refusal(
        make=quantized({"text_encoder": "gguf"}), words=("is a text encoder", "another backend")
    ),
    "a network that Diffusers reads from no GGUF file": Refusal(
        make=lambda user: (
            changed_index(transformer=["diffusers", "LuminaNextDiT2DModel"])(user),
            user.write(model={"quantization": "gguf"}, adapter={"target_modules": ["to_q"]}),
        ),
        words=("reads no GGUF file of a LuminaNextDiT2DModel", "'int8'"),
    ),
    "a GGUF file that nobody named": Refusal(
        make=quantized("gguf"), words=("there is not exactly one .gguf file", '"file": "my-Q8_0.gguf"')
    ),
    "a GGUF file that is not there": Refusal(
        make=settings(quant_method="gguf", file="nowhere.gguf"), words=("cannot be read", "No such file")
    ),
    "a GGUF file that is none": Refusal(
        make=lambda user: settings(quant_method="gguf", file=str(user.data / "data.json"))(user),
        words=("is no GGUF file",),
    ),
}

"""Tiny modular pipelines: blocks of Diffusers with the parts of the classic tiny pipeline of the same model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, decoder_text_encoder
from flowhooks.testing.text import WORDS, t5_tokenizer
from flowhooks.testing.tiny import Tiny, build

#: Name of the classic twin -> the blocks of the modular pipeline.
BLOCKS: Mapping[str, str] = {
    "flux": "FluxAutoBlocks",
    "flux2": "Flux2AutoBlocks",
    "flux2-klein": "Flux2KleinAutoBlocks",
    "sd3": "StableDiffusion3AutoBlocks",
    "z-image": "ZImageAutoBlocks",
    "qwen-image": "QwenImageAutoBlocks",
    "ernie-image": "ErnieImageAutoBlocks",
    "krea2": "Krea2AutoBlocks",
    "krea2-turbo": "Krea2TurboAutoBlocks",
    "wan": "WanBlocks",
    "wan-two-experts": "Wan22Blocks",
    "ltx": "LTXAutoBlocks",
    "hunyuan-video15": "HunyuanVideo15AutoBlocks",
}
#: Layers of the text encoder that Krea 2's blocks read.
_KREA2 = tuple(range(2, 36, 3))


def of_blocks(blocks: str, parts: Mapping[str, Any]) -> Any:
    """A modular pipeline of these blocks, with those of the parts that it has a place for."""
    import diffusers.modular_pipelines

    pipe = getattr(diffusers.modular_pipelines, blocks)().init_pipeline()
    pipe.update_components(**{k: v for k, v in parts.items() if k in pipe.component_names and v is not None})
    return pipe


def twin(name: str) -> Any:
    """The modular twin of a classic tiny pipeline."""
    from tests.families import CLASSIC, shortened
    from tests.families.krea2 import krea2

    if name.startswith("krea2"):
        classic = krea2(is_distilled=name.endswith("turbo"), select=_KREA2)
    else:
        classic = shortened(name, build(CLASSIC[name]))
    return of_blocks(BLOCKS[name], classic.components)


def anima() -> Any:
    """An AnimaModularPipeline, which has no classic twin: latents ``[4, 1, 8, 8]`` of 16-pixel images."""
    from diffusers import AnimaTextConditioner, FlowMatchEulerDiscreteScheduler

    from tests.families.cosmos import _transformer
    from tests.families.qwen_image import qwen_image_vae

    tokenizer = byte_tokenizer(WORDS, [])
    names = t5_tokenizer(WORDS, max_length=16)
    return of_blocks(
        "AnimaAutoBlocks",
        {
            "text_encoder": decoder_text_encoder("Qwen3Model", tokenizer, 16),
            "tokenizer": tokenizer,
            "t5_tokenizer": names,
            "text_conditioner": AnimaTextConditioner(
                source_dim=16,
                target_dim=16,
                model_dim=16,
                num_layers=1,
                num_attention_heads=2,
                mlp_ratio=2.0,
                target_vocab_size=len(names),
                min_sequence_length=8,
            ).eval(),
            "vae": qwen_image_vae(),
            "transformer": _transformer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        },
    )


def __getattr__(name: str) -> Any:
    """What builds a twin, by its name with underscores."""
    found = {each.replace("-", "_"): each for each in BLOCKS}
    if name not in found:
        raise AttributeError(name)
    return partial(twin, found[name])


def rows(classic: Mapping[str, Tiny]) -> dict[str, Tiny]:
    """Every modular pipeline, with its twin's arguments."""
    twins = {
        f"modular-{name}": replace(classic[name], path=f"tests.families.modular:{name.replace('-', '_')}")
        for name in BLOCKS
    }
    anima_row = Tiny("tests.families.modular:anima", {"height": 16, "width": 16, "max_sequence_length": 16})
    return {**twins, "modular-anima": anima_row}

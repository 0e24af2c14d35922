"""Tiny modular pipelines: blocks of Diffusers with the parts of the classic tiny pipeline of the same model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowhooks.probe.values import same
from flowhooks.testing.pieces import byte_tokenizer, decoder_text_encoder
from flowhooks.testing.text import WORDS, qwen_tokenizer, t5_tokenizer
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
    "flux-kontext": "FluxKontextAutoBlocks",
    "flux2-edit": "Flux2AutoBlocks",
    "flux2-klein-edit": "Flux2KleinAutoBlocks",
    "qwen-image-edit": "QwenImageEditAutoBlocks",
    "qwen-image-edit-plus": "QwenImageEditPlusAutoBlocks",
    "wan21-i2v": "WanImage2VideoAutoBlocks",
    "wan22-i2v": "Wan22Image2VideoBlocks",
    "ltx-i2v": "LTXAutoBlocks",
    "hunyuan-video15-i2v": "HunyuanVideo15AutoBlocks",
    "qwen-image-21": "QwenImage21AutoBlocks",
    "qwen-image-21-edit": "QwenImage21AutoBlocks",
    "qwen-image-21-turbo": "QwenImage21TurboAutoBlocks",
}
#: Name in :data:`BLOCKS` -> its classic twin, where that has another name.
TWIN_OF: Mapping[str, str] = {"qwen-image-21-turbo": "qwen-image-21"}
#: Layers of the text encoder that Krea 2's blocks read.
_KREA2 = tuple(range(2, 36, 3))


def of_blocks(blocks: str, parts: Mapping[str, Any]) -> Any:
    """A modular pipeline of these blocks, with those of the parts that it has a place for."""
    import diffusers.modular_pipelines

    pipe = getattr(diffusers.modular_pipelines, blocks)().init_pipeline()
    pipe.update_components(**{k: v for k, v in parts.items() if k in pipe.component_names and v is not None})
    return pipe


def twins(name: str) -> tuple[Any, Any]:
    """A classic tiny pipeline, and the modular one of the same parts."""
    from tests.families import CLASSIC, shortened
    from tests.families.krea2 import krea2
    from tests.families.qwen_edit import scaled_down

    if name.startswith("krea2"):
        classic = krea2(is_distilled=name.endswith("turbo"), select=_KREA2)
    else:
        classic = build(CLASSIC[TWIN_OF.get(name, name)])
        # The lengths of HunyuanVideo 1.5's texts are fixed in its blocks.
        classic = classic if name.startswith("hunyuan-video15") else shortened(name, classic)
    if name.startswith("qwen-image-edit"):
        scaled_down("diffusers.modular_pipelines.qwenimage.encoders")
    return classic, of_blocks(BLOCKS[name], classic.components)


def differences(name: str) -> list[str]:
    """What a classic pipeline's network gets otherwise from its modular twin of one prompt, image, size and sample."""
    import torch

    from flowhooks.probe import probe
    from flowhooks.probe.references import examples
    from tests.families import CLASSIC, MODULAR

    classic, modular = twins(name)
    row = CLASSIC[TWIN_OF.get(name, name)]
    references = row.references
    old = probe(classic, arguments=row.arguments, references=references)
    new = probe(modular, arguments=MODULAR[f"modular-{name}"].arguments, references=references)
    images = [dict(each) for each in examples(references, **new.size)[:1]] or [{}]
    layouts = [model.layout(**model.size) for model in (old, new)]
    found = (
        [f"its sample is {new.sample_shape}, not {old.sample_shape}"] if old.sample_shape != new.sample_shape else []
    )
    if layouts[0].shift != layouts[1].shift:
        found.append(f"its shift is {layouts[1].shift:g}, not {layouts[0].shift:g}")
    state = torch.randn(1, *new.sample_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.9])
    given = [
        model.fixed_arguments(
            model.layout_of(state[0]), state[0], model.encode_conditions(["two one a"], images).groups()[0][1]
        )
        for model in (old, new)
    ]
    for argument in given[1]:
        if not same(given[0].get(argument), given[1][argument]) and isinstance(given[1][argument], torch.Tensor):
            found.append(f"`{argument}` has other values")
    with torch.no_grad():
        one, other = (model.predict(*state, model.encode_conditions(["two one a"], images)) for model in (old, new))
    off = float((one - other).abs().max())
    return [*found, f"the prediction is {off:.2g} away"] if off else []


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


class Processor:
    """Stands for the processor of Qwen3-VL, of which only the half for text is used."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def apply_chat_template(self, *messages: Any, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(*messages, **options)


def flux3() -> Any:
    """A Flux3ModularPipeline whose model that rewrites prompts is not loaded: packed latents ``[16, 16]`` of 16-pixel
    images."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel

    from tests.families.flux2 import _autoencoder
    from tests.families.vision_language import qwen3_vl

    tokenizer = qwen_tokenizer(WORDS, max_length=80)
    parts = dict(
        text_encoder=qwen3_vl(tokenizer, 16, layers=2, cls="Qwen3VLForConditionalGeneration"),
        tokenizer=Processor(tokenizer),
        vae=_autoencoder(),
        transformer=Flux3Transformer2DModel(
            in_channels=16,
            cond_in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return of_blocks("Flux3AutoBlocks", parts)


def __getattr__(name: str) -> Any:
    """What builds a twin, by its name with underscores."""
    found = {each.replace("-", "_"): each for each in BLOCKS}
    if name not in found:
        raise AttributeError(name)
    return lambda: twins(found[name])[1]


def rows(classic: Mapping[str, Tiny]) -> dict[str, Tiny]:
    """Every modular pipeline, with its twin's arguments."""
    twins = {}
    for name in BLOCKS:
        twin = classic[TWIN_OF.get(name, name)]
        # Where a guider guides, there is no argument for it.
        arguments = {key: value for key, value in twin.arguments.items() if key != "guidance_scale"}
        twins[f"modular-{name}"] = Tiny(f"tests.families.modular:{name.replace('-', '_')}", arguments, twin.references)
    anima_row = Tiny("tests.families.modular:anima", {"height": 16, "width": 16, "max_sequence_length": 16})
    flux3_row = Tiny(
        "tests.families.modular:flux3",
        {"height": 16, "width": 16, "max_sequence_length": 80, "text_encoder_out_layers": (1, 2)},
    )
    return {**twins, "modular-anima": anima_row, "modular-flux3": flux3_row}

"""HunyuanVideo and HunyuanVideo 1.5."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from flowhooks.testing.pieces import decoder_text_encoder
from flowhooks.testing.text import (
    WORDS,
    clip_text_model,
    clip_tokenizer,
    llama_tokenizer,
    qwen_tokenizer,
    t5_text_encoder,
)
from tests.families.vision_language import qwen_text


def hunyuan_vae() -> Any:
    """An AutoencoderKLHunyuanVideo, 8 x 8 pixels and 4 frames a latent."""
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.476986,
    ).eval()


def hunyuan_video() -> Any:
    """A HunyuanVideoPipeline, guidance embedded: latents ``[4, 2, 4, 4]`` of 5 frames of 32 pixels."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    # The pipeline cuts its template off by a number of tokens and leaves little room behind it, so the words of the
    # template have to be single tokens, as they are for the released tokenizer.
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = llama_tokenizer([*WORDS, *re.findall(r"[A-Za-z]+", template)], max_length=512, special=marks)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    clip = clip_tokenizer(WORDS, max_length=77)
    return HunyuanVideoPipeline(
        text_encoder=decoder_text_encoder("LlamaModel", tokenizer, 16, layers=3),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_text_model(clip, 16),
        tokenizer_2=clip,
    )


def hunyuan_video15() -> Any:
    """A HunyuanVideo15Pipeline, guided by its guider: latents ``[4, 2, 2, 2]`` of 5 frames of 32 pixels."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    # The template is as short as for the released tokenizer, or the text would be its bytes; Ġ is a space.
    told = signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
    words = [*WORDS, *re.findall(r"[A-Za-z]+", told)]
    tokenizer = qwen_tokenizer([*(f"Ġ{word}" for word in words), *words, "Ġ" * 7], max_length=2048)
    glyphs = ByT5Tokenizer()
    text_encoder = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**qwen_text(tokenizer, 16, layers=3)))
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=2,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        target_size=32,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)
    return HunyuanVideo15Pipeline(
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=t5_text_encoder(glyphs, 16),
        tokenizer_2=glyphs,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def hunyuan_video_i2v() -> Any:
    """A HunyuanVideoImageToVideoPipeline: the picture in the channels and in the text; of its videos the pipeline drops
    the first four frames."""
    return _image_to_video("latent_concat", 4 + 4 + 1)


def hunyuan_video_i2v_replaced() -> Any:
    """The same where the picture stands in place of the first frame, as in the second release."""
    return _image_to_video("token_replace", 4)


def _image_to_video(kind: str, channels: int) -> Any:
    from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    parts = hunyuan_video().components
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>"]
    words = re.findall(r"[A-Za-z]+", DEFAULT_PROMPT_TEMPLATE["template"])
    tokenizer = llama_tokenizer([*WORDS, *words], max_length=512, special=marks)
    eye = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    language = decoder_text_encoder("LlamaModel", tokenizer, 16, layers=3).config
    config = LlavaConfig(
        text_config=language,
        vision_config=eye,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    settings = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    settings |= {"in_channels": channels, "guidance_embeds": False, "image_condition_type": kind}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return HunyuanVideoImageToVideoPipeline(
        **{
            **parts,
            "tokenizer": tokenizer,
            "text_encoder": LlavaForConditionalGeneration(config).eval(),
            "transformer": HunyuanVideoTransformer3DModel(**settings).eval(),
            "image_processor": processor,
        }
    )


def hunyuan_skyreels_i2v() -> Any:
    """A HunyuanSkyreelsImageToVideoPipeline: the picture in as many channels as the sample."""
    from diffusers import HunyuanSkyreelsImageToVideoPipeline, HunyuanVideoTransformer3DModel

    parts = hunyuan_video().components
    settings = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    network = HunyuanVideoTransformer3DModel(**{**settings, "in_channels": 2 * settings["in_channels"]})
    return HunyuanSkyreelsImageToVideoPipeline(**{**parts, "transformer": network.eval()})


def hunyuan_video15_i2v() -> Any:
    """A HunyuanVideo15ImageToVideoPipeline, whose size is that of its picture."""
    from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Transformer3DModel
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    parts = hunyuan_video15().components
    settings = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    eye = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return HunyuanVideo15ImageToVideoPipeline(
        **{
            **parts,
            "transformer": HunyuanVideo15Transformer3DModel(
                **{**settings, "task_type": "i2v", "target_size": 64}
            ).eval(),
            "image_encoder": SiglipVisionModel(eye).eval(),
            "feature_extractor": SiglipImageProcessorPil(size={"height": 8, "width": 8}),
        }
    )

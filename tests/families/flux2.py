"""FLUX.2 and FLUX.2 klein."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import byte_tokenizer, decoder_text_encoder, kl_autoencoder, piece_tokenizer
from flowhooks.testing.text import WORDS
from tests.families.qwen_image import CHAT_TEMPLATE, CHAT_TOKENS, CHAT_WORDS

WIDTH = 16


def flux2() -> Any:
    """A Flux2Pipeline, 16-pixel images, latents ``[16, 16]`` whose statistics are those of a batch norm.

    The released folder wraps the tokenizer in a processor that needs torchvision; text alone goes the same way
    through the tokenizer within, which is what stands here.
    """
    from diffusers import Flux2Pipeline

    tokenizer = _tokenizer()
    return Flux2Pipeline(
        scheduler=_scheduler(),
        vae=_autoencoder(),
        text_encoder=_mistral(tokenizer),
        tokenizer=tokenizer,
        transformer=_transformer(guidance_embeds=True),
    )


def flux2_klein() -> Any:
    """A Flux2KleinPipeline of the base release: no guidance embedding, guidance by a second call."""
    from diffusers import Flux2KleinPipeline

    tokenizer = byte_tokenizer([*WORDS, *CHAT_WORDS], CHAT_TOKENS, CHAT_TEMPLATE)
    return Flux2KleinPipeline(
        scheduler=_scheduler(),
        vae=_autoencoder(),
        # The pipeline reads the hidden states of layers 9, 18 and 27.
        text_encoder=decoder_text_encoder("Qwen3ForCausalLM", tokenizer, WIDTH, layers=28, tie_word_embeddings=True),
        tokenizer=tokenizer,
        transformer=_transformer(guidance_embeds=False),
        is_distilled=False,
    )


def _transformer(*, guidance_embeds: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    ).eval()


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def _autoencoder() -> Any:
    vae = kl_autoencoder(4, cls="AutoencoderKLFlux2")
    vae.bn.running_mean.normal_(std=0.5)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _tokenizer() -> Any:
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import LlamaTokenizer

    marks = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '[SYSTEM_PROMPT]' if message['role'] == 'system' else '[INST]' }}"
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
        "{{ '[/SYSTEM_PROMPT]' if message['role'] == 'system' else '[/INST]' }}{% endfor %}"
    )
    # Whole words, else the prompt would come after the cut at max_sequence_length.
    words = [*WORDS, *dict.fromkeys(SYSTEM_MESSAGE.replace(",", " ").replace(".", " ").split())]
    return piece_tokenizer(
        LlamaTokenizer,
        words,
        ["<unk>", "<s>", "</s>", "<pad>", *marks],
        pad_token="<pad>",
        extra_special_tokens=marks,
        chat_template=template,
    )


def _mistral(tokenizer: Any) -> Any:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    config = Mistral3Config(
        # The pipeline reads the hidden states of layers 10, 20 and 30.
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=31,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=WIDTH // 2,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=PixtralVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        image_token_index=tokenizer.unk_token_id,
    )
    return Mistral3ForConditionalGeneration(config).eval()

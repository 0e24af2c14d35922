"""Language models of the bigger kind: those that also see, and the tokenizers that come as a plain tokenizer file."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.pieces import bpe


def fast_tokenizer(words: list[str], specials: list[str], *, prefix: str = "", **options: Any) -> Any:
    """A real PreTrainedTokenizerFast over byte-level pieces and whole words, as GLM, Llama 3 and SmolLM3 ship it.

    Args:
        specials: the special tokens.
        prefix: those of them that every text starts with, separated by spaces.
        options: ``pad_token``, ``padding_side`` and the like.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens, merges = bpe(words, sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ")
    vocabulary = {token: i for i, token in enumerate([*tokens, *specials])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if prefix:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A", special_tokens=[(token, vocabulary[token]) for token in prefix.split()]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def qwen2_5_vl(tokenizer: Any, width: int, layers: int = 2, *, patch: int = 2, **tokens: int) -> Any:
    """A real Qwen2_5_VLForConditionalGeneration at random weights.

    Args:
        patch: pixels of an edge of what its eye takes at once; most pipelines never open it.
        tokens: numbers of the tokens that stand for images.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=qwen_text(tokenizer, width, layers),
        vision_config={
            "depth": 1,
            "hidden_size": width,
            "intermediate_size": width,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": patch,
            "window_size": 4 * patch,
            "fullatt_block_indexes": [0],
        },
        **tokens,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen2_vl(tokenizer: Any, width: int, layers: int = 2) -> Any:
    """A real Qwen2VLForConditionalGeneration at random weights; its eye is there and never opened."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config=qwen_text(tokenizer, width, layers),
        vision_config={"depth": 1, "embed_dim": width, "hidden_size": width, "num_heads": 2, "patch_size": 2},
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def qwen3_vl(
    tokenizer: Any, width: int, layers: int = 2, cls: str = "Qwen3VLModel", *, patch: int = 2, **tokens: int
) -> Any:
    """A real Qwen3VLModel, or the same with a head, at random weights.

    Args:
        patch: pixels of an edge of what its eye takes at once; most pipelines never open it.
        tokens: numbers of the tokens that stand for images.
    """
    import transformers
    from transformers import Qwen3VLConfig

    text = qwen_text(tokenizer, width, layers)
    config = Qwen3VLConfig(
        text_config={**text, "head_dim": width // 2},
        vision_config={
            "depth": 1,
            "hidden_size": width,
            "intermediate_size": width,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": patch,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **tokens,
    )
    return getattr(transformers, cls)(config).eval()


def qwen_text(tokenizer: Any, width: int, layers: int = 2) -> dict[str, Any]:
    """Settings of the text half of these models."""
    # The three sections of the rotary embedding share the half width of a head of eight.
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 8,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def eye_settings(width: int) -> dict[str, Any]:
    """Settings of an eye of plain patches; it is there and never opened."""
    return {
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }

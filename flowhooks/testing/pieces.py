"""Build autoencoders of the real classes, vocabularies in which chosen words are one token each, and decoders over
them.

A released tokenizer has the words of its pipeline's template; where a pipeline cuts a number of tokens off, or cuts
the text at a length, a tokenizer that spells those words out would lose the prompt.
"""

from __future__ import annotations

from typing import Any


def bpe(words: list[str], symbols: list[str], prefix: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return tokens and merges under which every word, with and without the prefix that marks a space, is one token.

    Args:
        words: words that must be one token, such as those of a pipeline's own template.
        symbols: further characters besides those of the words.
        prefix: ``Ġ`` for byte-level vocabularies, ``▁`` for the others.
    """
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        for text in (word, prefix + word):
            # Merges at the end of the list never come before those of an earlier word, so no earlier word breaks.
            while len(pieces := _split(text, ranks)) > 1:
                ranks[pieces[0], pieces[1]] = len(merges)
                merges.append((pieces[0], pieces[1]))
    letters = [letter for word in [prefix, *words] for letter in word]
    return list(dict.fromkeys([*symbols, *letters, *("".join(merge) for merge in merges)])), merges


def _split(text: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    pieces = list(text)
    while True:
        pairs = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in ranks]
        if not pairs:
            return pieces
        first = min(pairs, key=ranks.__getitem__)
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == first:
                pieces[i : i + 2] = ["".join(first)]
            i += 1


def byte_tokenizer(words: list[str], specials: list[str], chat_template: str | None = None) -> Any:
    """Build a real Qwen2Tokenizer: byte-level pieces, some whole words, and special tokens; ``<|endoftext|>`` pads."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens, merges = bpe(words, sorted(ByteLevel.alphabet()), "Ġ")
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|endoftext|>"])}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=specials,
        chat_template=chat_template,
        padding_side="right",
    )


def piece_tokenizer(cls: Any, words: list[str], specials: list[str], **options: Any) -> Any:
    """Build a real tokenizer of the sentence-piece kind, ``GemmaTokenizer`` or ``LlamaTokenizer``: letters and whole
    words.

    Args:
        specials: the special tokens that come first, in the order of their numbers.
        options: passed on to the class.
    """
    tokens, merges = bpe(words, [chr(c) for c in range(ord("a"), ord("z") + 1)], "▁")
    return cls(vocab={token: i for i, token in enumerate([*specials, *tokens])}, merges=merges, **options)


def decoder_text_encoder(cls: str, tokenizer: Any, width: int, layers: int = 2, **options: Any) -> Any:
    """Build a decoder-only language model of transformers (``Qwen3Model``, ``Gemma2Model``, ...) at random weights."""
    import transformers

    config = getattr(transformers, cls).config_class(**text_settings(tokenizer, width, layers), **options)
    return getattr(transformers, cls)(config).eval()


def text_settings(tokenizer: Any, width: int, layers: int = 2) -> dict[str, Any]:
    """Return settings that these models share."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def t5_gemma_settings(tokenizer: Any, width: int) -> dict[str, Any]:
    """Return settings of the text half of T5Gemma's encoders, which attend to eight previous tokens."""
    return {
        **text_settings(tokenizer, width),
        "query_pre_attn_scalar": width // 2,
        "max_position_embeddings": 64,
        "sliding_window": 8,
        "dropout_rate": 0.0,
    }


def kl_autoencoder(channels: int, blocks: int = 2, cls: str = "AutoencoderKL", **options: Any) -> Any:
    """Build an AutoencoderKL, or a class with the same arguments; ``blocks - 1`` of its blocks halve the image."""
    import diffusers

    return getattr(diffusers, cls)(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=2,
        **{"sample_size": 8 * 2**blocks, **options},
    ).eval()


def flux_autoencoder(channels: int = 4, blocks: int = 2) -> Any:
    """Build the autoencoder that FLUX.1 and its relatives share: a scale, a shift, no quantization convolutions."""
    return kl_autoencoder(
        channels, blocks, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )

"""Make small text encoders at random weights, and tokenizers over the captions' own words, without a download.

Random encoders are enough: the ten captions differ in one word, and so in its embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    FunnelBaseModel,
    FunnelConfig,
    T5Tokenizer,
)

from flowhooks.digits.scans import WORDS

CAPTION_TOKENS = 8
CLIP_WIDTH = 32
JOINT_WIDTH = 2 * CLIP_WIDTH
_VOCABULARY = ("a", "handwritten", "clean", "digit", "number", "with", "an", "ink", "blot", *WORDS)


def text_components(seed: int) -> dict[str, Any]:
    """Return the six text components of a `StableDiffusion3Pipeline`, encoders in eval mode at weights drawn from
    `seed`."""
    tokenizer, second_tokenizer = clip_tokenizer(), clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "tokenizer": tokenizer,
            "tokenizer_2": second_tokenizer,
            "tokenizer_3": t5_tokenizer(),
            "text_encoder": _clip_encoder(tokenizer),
            "text_encoder_2": _clip_encoder(second_tokenizer),
            "text_encoder_3": _pooling_encoder(),
        }


def clip_tokenizer() -> CLIPTokenizer:
    """Return a `CLIPTokenizer` with one token for each known word; it splits other words into letters."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in _VOCABULARY:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = (parts[0], parts[1])
            parts[:2] = [parts[0] + parts[1]]
            if merge not in merges:
                merges.append(merge)
                pieces.append(parts[0])
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CAPTION_TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    """Return a `T5Tokenizer` whose pieces are the known words and single letters."""
    pieces = [f"▁{word}" for word in _VOCABULARY] + [chr(code) for code in range(97, 123)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    # A word needs a better score than its letters for the unigram model to choose it.
    scored = [(piece, -1.0 if piece.startswith("▁") else -4.0) for piece in dict.fromkeys(pieces)]
    return T5Tokenizer(vocab=special + scored, extra_ids=0, model_max_length=256)


def _clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config).eval()
    # With the usual initial deviation of 0.02 the position outweighs the word, and all captions are alike.
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=1.0)
    return encoder


def _pooling_encoder() -> FunnelBaseModel:
    """Return the third encoder: 256 tokens in, 4 out.

    The stock pipeline pads its third prompt to 256 tokens, or puts 256 zero tokens where it has no third encoder;
    beside 16 image tokens they would be nine tenths of the work. A Funnel halves its sequence block by block.
    """
    config = FunnelConfig(
        vocab_size=128,
        block_sizes=[1] * 7,
        num_decoder_layers=0,
        d_model=JOINT_WIDTH,
        n_head=2,
        d_head=16,
        d_inner=JOINT_WIDTH,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    return FunnelBaseModel(config).eval()

"""Build text parts: tokenizers over a few words, encoders of the real classes at random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowhooks.testing.pieces import bpe as bpe
from flowhooks.testing.pieces import byte_tokenizer as byte_tokenizer
from flowhooks.testing.pieces import decoder_text_encoder as decoder_text_encoder
from flowhooks.testing.pieces import piece_tokenizer as piece_tokenizer

WORDS = [
    "a",
    "the",
    "handwritten",
    "photo",
    "of",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]


def clip_tokenizer(words: list[str], max_length: int) -> Any:
    """Build a real CLIPTokenizer whose vocabulary is the alphabet and some whole words."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    symbols = letters + [f"{letter}</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge = (pieces[0], pieces[1])
            if merge not in merges:
                merges.append(merge)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*symbols, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def clip_text_encoder(tokenizer: Any, width: int, projection: int) -> Any:
    """Build a real CLIPTextModelWithProjection at random weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def clip_text_model(tokenizer: Any, width: int) -> Any:
    """Build a real CLIPTextModel (no projection) at random weights."""
    from transformers import CLIPTextModel

    return CLIPTextModel(clip_text_encoder(tokenizer, width, width).config).eval()


def t5_tokenizer(words: list[str], max_length: int) -> Any:
    """Build a real T5Tokenizer: whole words, and single characters for everything else."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(words)]
    known = {piece for piece, _ in pieces}
    pieces += [(chr(c), -6.0) for c in range(33, 127) if chr(c) not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


def t5_text_encoder(tokenizer: Any, width: int, *, multilingual: bool = False) -> Any:
    """Build a real T5EncoderModel (v1.1, gated) or UMT5EncoderModel at random weights, two layers of two heads."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config_class, model_class = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    config = config_class(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model_class(config).eval()


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(words: list[str], max_length: int, more: Sequence[str] = ()) -> Any:
    """Build a real Qwen2Tokenizer with the ChatML template: whole words, and single bytes for everything else.

    A template therefore takes more tokens than in the released tokenizer, so that cutting off a fixed number of them
    leaves the prompt intact.

    Args:
        more: special tokens beside those of the template.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens = sorted(ByteLevel.alphabet())
    merges = _merges(words)
    tokens += ["".join(merge) for merge in merges]
    specials = ["<|im_start|>", "<|im_end|>", *more]
    tokens += ["<|endoftext|>", *specials]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        extra_special_tokens=specials,
        model_max_length=max_length,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def gemma_tokenizer(words: list[str], max_length: int) -> Any:
    """Build a real GemmaTokenizer: whole words, and single characters for everything else."""
    from transformers import GemmaTokenizer

    vocabulary, merges = _pieces(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], words)
    return GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def llama_tokenizer(words: list[str], max_length: int, special: list[str]) -> Any:
    """Build a real LlamaTokenizer with more special tokens: whole words, and single characters for everything else."""
    from transformers import LlamaTokenizer

    vocabulary, merges = _pieces(["<unk>", "<s>", "</s>", "<pad>", *special], words)
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token="<pad>",
        extra_special_tokens=special,
        model_max_length=max_length,
    )


def _pieces(special: list[str], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a SentencePiece-like BPE: special tokens, printable characters, words."""
    merges = _merges(words)
    tokens = [*special, "\n", "▁", *(chr(c) for c in range(33, 127)), *("".join(merge) for merge in merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Return the merges that build each word from its characters, from the left."""
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    return list(dict.fromkeys(merges))

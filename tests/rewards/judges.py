"""Tiny models of the real classes, on disk as their authors publish them, and real pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image

from flowhooks.testing.text import WORDS, clip_tokenizer, piece_tokenizer

PROMPTS = ["a photo of the one", "the handwritten seven"]


def photos(count: int = 2, rows: int = 96, columns: int = 130) -> np.ndarray:
    """Pieces of scikit-learn's two photographs, uint8 ``[count, rows, columns, 3]``."""
    both = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return np.stack([both[i % 2][40 + 9 * i :, 60 + 11 * i :][:rows, :columns] for i in range(count)])


def pixels_of(pictures: np.ndarray) -> torch.Tensor:
    """``[B, 3, H, W]`` fp32 in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def write_clip(folder: Path, side: int = 28, width: int = 8) -> Path:
    """CLIP with its processor, in the manner of openai/clip-vit-large-patch14."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    tokenizer = clip_tokenizer(WORDS, 16)
    tower: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": width}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "hidden_size": 12, "intermediate_size": 24, "image_size": side, "patch_size": 7},
        projection_dim=width,
        logit_scale_init_value=4.6,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The form of 2021, with bare numbers for sizes.
    told = {"feature_extractor_type": "CLIPFeatureExtractor", "size": side, "crop_size": side, "resample": 3}
    means = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    flags = {"do_resize": True, "do_center_crop": True, "do_normalize": True}
    return _told(folder, {**told, **means, **flags})


def write_siglip(folder: Path) -> Path:
    from transformers import GemmaTokenizer, SiglipConfig, SiglipModel

    torch.manual_seed(4)
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, ["<pad>", "<eos>", "<bos>", "<unk>"])
    tower = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _told(
        folder,
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 32, "width": 32},
            "resample": 3,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )


LABELS = ["cat", "dog", "flower"]


def write_vit(folder: Path, told: dict[str, Any] | None = None) -> Path:
    """A classifier of three labels."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(5)
    config = ViTConfig(
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    model = ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return _told(folder, told or {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})


def write_head(file: Path, widths: tuple[int, ...] = (8, 16, 4, 1)) -> Path:
    """Numbered as in the released one, whose dropout layers leave gaps."""
    torch.manual_seed(6)
    tensors = {}
    for i, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        tensors[f"layers.{2 * i}.weight"] = torch.randn(outputs, inputs)
        tensors[f"layers.{2 * i}.bias"] = torch.randn(outputs)
    save_file(tensors, file)
    return file


def write_trocr(folder: Path) -> Path:
    """A ViT that looks and a TrOCR decoder that writes."""
    from transformers import (
        GemmaTokenizer,
        TrOCRConfig,
        TrOCRForCausalLM,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )

    torch.manual_seed(7)
    tokenizer = piece_tokenizer(GemmaTokenizer, WORDS, ["<pad>", "<eos>", "<bos>", "<unk>"])
    vision = ViTConfig(
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    words = TrOCRConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        cross_attention_hidden_size=12,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        init_std=1.0,
    )
    model = VisionEncoderDecoderModel(encoder=ViTModel(vision), decoder=TrOCRForCausalLM(words))
    model.config.decoder_start_token_id = tokenizer.bos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.decoder_start_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    # The released ones lack this layer too.
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("encoder.pooler.")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return _told(folder, {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2})


def _told(folder: Path, told: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


class Greenest(torch.nn.Module):
    """Logits of red, green and blue: ten times their means."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 10 * pixels.mean((2, 3))

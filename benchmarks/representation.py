"""What the blocks of a network know of the digits, and a small vision transformer that has learned to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from flowhooks.digits.judge import RECIPE as JUDGE
from flowhooks.digits.scans import PIXELS
from flowhooks.files import whole
from flowhooks.probe import probe
from flowhooks.probe.streams import learn_streams

#: One patch for each token of the embedded pipeline.
PATCH, WIDTH = 8, 64
STEPS, BATCH, LEARNING_RATE = 600, 64, 2e-3
CHUNK = 256


def split(count: int) -> tuple[Tensor, Tensor]:
    """Indices to learn from and held-out ones: the judge's, so that what is held out is unseen by every reader."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(JUDGE["seed"]))
    held = int(count * JUDGE["held_out"])
    return order[held:], order[:held]


@torch.no_grad()
def block_features(pipe: Any, pixels: Tensor, *, prompt: str, sigma: float, seed: int) -> dict[str, Tensor]:
    """Block -> features ``[N, D]``, the mean over the image's tokens, of noised images ``[N, 3, H, W]`` under one
    prompt for all."""
    model = probe(pipe, height=PIXELS, width=PIXELS)
    streams, tokens = learn_streams(model), model.anatomy.tokens
    clean = torch.cat([model.encode_images(chunk) for chunk in pixels.split(CHUNK)])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    noisy = (1 - sigma) * clean + sigma * noise
    condition = model.encode_prompts([prompt])
    found: dict[str, list[Tensor]] = {name: [] for name in streams.found}
    hooks = [
        pipe.transformer.get_submodule(name).register_forward_hook(
            lambda _, __, returned, stream=stream: found[stream.name].append(stream.of(returned, tokens).mean(1))
        )
        for name, stream in streams.found.items()
    ]
    try:
        for chunk in noisy.split(CHUNK):
            model.predict(chunk, torch.full((len(chunk),), sigma), condition.join([condition] * (len(chunk) - 1)))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def probe_accuracy(features: Tensor, labels: Tensor, train: Tensor, held: Tensor) -> float:
    """Held-out accuracy of a logistic regression on features ``[N, D]``, standardised on the ``train`` part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    reader.fit(features[train].numpy(), labels[train].numpy())
    return float(reader.score(features[held].numpy(), labels[held].numpy()))


def ensure_encoder(folder: Path, pixels: Tensor, labels: Tensor) -> dict[str, float]:
    """Train the vision transformer on the ``train`` part, unless ``folder`` has it, and save it as transformers does.

    The class is read from the mean of the patches, so that the patches, which an alignment uses, carry it.

    Returns:
        Its ``accuracy`` on the held-out part.
    """
    if not folder.is_dir():
        train, held = split(len(pixels))
        with torch.random.fork_rng(devices=[]), whole(folder) as aside:
            torch.manual_seed(0)
            network, head = _fit(pixels[train], labels[train])
            with torch.no_grad():
                correct = head(_patches(network, pixels[held])).argmax(1) == labels[held]
            network.save_pretrained(aside, safe_serialization=True)
            look = {"size": {"height": PIXELS, "width": PIXELS}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
            (aside / "preprocessor_config.json").write_text(json.dumps(look), encoding="utf-8")
            (aside / "accuracy.json").write_text(
                json.dumps({"accuracy": correct.double().mean().item()}), encoding="utf-8"
            )
    return json.loads((folder / "accuracy.json").read_text(encoding="utf-8"))


def _fit(pixels: Tensor, labels: Tensor) -> tuple[ViTModel, torch.nn.Linear]:
    config = ViTConfig(
        image_size=PIXELS,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    network, head = ViTModel(config, add_pooling_layer=False).train(), torch.nn.Linear(WIDTH, 10)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(pixels), (BATCH,))
        down, across = (int(shift) for shift in torch.randint(-2, 3, (2,)))
        seen = torch.roll(pixels[chosen], (down, across), (2, 3))
        loss = F.cross_entropy(head(_patches(network, seen + 0.1 * torch.randn_like(seen))), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval(), head


def _patches(network: ViTModel, pixels: Tensor) -> Tensor:
    states: Tensor = network(pixel_values=pixels).last_hidden_state
    return states[:, 1:].mean(1)

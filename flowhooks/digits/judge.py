"""Measure images with a small network that says which digit an image shows and whether ink is spilled on it.

It learns from real pairs only, is built once and is the same for every model that it measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.scans import RECIPE as DATA_RECIPE
from flowhooks.digits.scans import ensure_data, load_scans
from flowhooks.files import place, share, whole
from flowhooks.printing import progress_bar
from flowhooks.reading import read_json

FEATURES = 32
RECIPE: dict[str, Any] = {
    "version": 1,
    "steps": 700,
    "batch": 64,
    "learning_rate": 4e-3,
    "seed": 0,
    "held_out": 0.2,
    "width": 24,
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Holds the judge's measurements of a set of images.

    Args:
        blot_rate: share of images with a blot, in [0, 1].
        digit_accuracy: share of images with the digit of their prompt, in [0, 1].
        frechet: Fréchet distance of the features to those of all clean scans, at least 0; lower is closer.
        count: number of images.
    """

    blot_rate: float
    digit_accuracy: float
    frechet: float
    count: int


class JudgeNetwork(nn.Module):
    """Maps images `[B, 3, 32, 32]` in [-1, 1] to digit logits `[B, 10]`, a blot logit `[B]` and features `[B, 32]`."""

    def __init__(self, width: int = RECIPE["width"]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * 16, FEATURES), nn.SiLU())
        self.digit = nn.Linear(FEATURES, 10)
        self.blot = nn.Linear(FEATURES, 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.body(pixels)
        return self.digit(features), self.blot(features)[:, 0], features


class Judge:
    """Holds a trained network with the feature statistics of the clean scans to compare with."""

    def __init__(self, network: JudgeNetwork, mean: torch.Tensor, covariance: torch.Tensor, held_out: dict[str, float]):
        self.network = network.eval()
        self.mean, self.covariance = mean, covariance
        self.held_out = held_out

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read what `train_judge` wrote."""
        tensors = load_file(folder / "judge.safetensors")
        mean, covariance = tensors.pop("clean_mean"), tensors.pop("clean_covariance")
        network = JudgeNetwork()
        network.load_state_dict(tensors)
        return cls(network, mean, covariance, read_json(folder / "judge.json"))

    def score(self, pixels: torch.Tensor, digits: torch.Tensor) -> Score:
        """Measure images `[N, 3, 32, 32]` in [-1, 1] whose prompts name `digits` `[N]`."""
        digit_logits, blot_logits, features = infer(self.network, pixels)
        mean, covariance = gaussian(features)
        return Score(
            blot_rate=(blot_logits > 0).double().mean().item(),
            digit_accuracy=(digit_logits.argmax(1) == digits).double().mean().item(),
            frechet=frechet_distance(mean.numpy(), covariance.numpy(), self.mean.numpy(), self.covariance.numpy()),
            count=len(pixels),
        )


def ensure_judge(progress: bool | None = None) -> Judge:
    """Return the judge, trained and stored first if it does not exist."""
    target = place("judge", {**RECIPE, "data": DATA_RECIPE})
    if not target.is_dir():
        data = ensure_data()
        clean, blotted = read_pixels(data / "preferred"), read_pixels(data / "rejected")
        digits, steps = torch.from_numpy(load_scans()[1]), RECIPE["steps"]
        with whole(target) as folder, progress_bar("Judge", steps, progress) as advance:
            train_judge(folder, clean, blotted, digits, steps, advance)
    return Judge.load(target)


def train_judge(
    folder: Path,
    clean: torch.Tensor,
    blotted: torch.Tensor,
    digits: torch.Tensor,
    steps: int,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """Train on four fifths of the pairs and write `judge.safetensors` and `judge.json` with held-out accuracies.

    `clean` and `blotted` are the pairs, `[N, 3, 32, 32]` in [-1, 1]; `digits` is `[N]`.
    """
    held = int(len(clean) * RECIPE["held_out"])
    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(RECIPE["seed"]))
    test, train = order[:held], order[held:]
    network = _fit(clean[train], blotted[train], digits[train], steps, after_step)
    clean_digits, clean_blots, _ = infer(network, clean[test])
    blotted_digits, blotted_blots, _ = infer(network, blotted[test])
    held_out = {
        "pairs": held,
        "digit_accuracy_clean": (clean_digits.argmax(1) == digits[test]).double().mean().item(),
        "digit_accuracy_blotted": (blotted_digits.argmax(1) == digits[test]).double().mean().item(),
        "blot_accuracy": torch.cat([clean_blots <= 0, blotted_blots > 0]).double().mean().item(),
    }
    mean, covariance = gaussian(infer(network, clean)[2])
    save_file(
        {**network.state_dict(), "clean_mean": mean, "clean_covariance": covariance}, folder / "judge.safetensors"
    )
    share(folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps(held_out, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def infer(network: JudgeNetwork, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return digit logits, blot logits and features of all images, computed in batches."""
    network.eval()
    parts = [network(chunk) for chunk in pixels.split(256)]
    digits, blots, features = (torch.cat(column) for column in zip(*parts, strict=True))
    return digits, blots, features


def gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean `[D]` and covariance `[D, D]` of features `[N, D]`, in float64."""
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians (arXiv 1706.08500).

    It is `|m - n|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)` for means `[D]` and covariances `[D, D]`. The symmetric form
    needs only eigenvalues of symmetric matrices, so no complex parts arise.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root).clip(min=0)).sum()
    squared = ((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * cross
    return float(max(squared, 0.0))


def _fit(
    clean: torch.Tensor,
    blotted: torch.Tensor,
    digits: torch.Tensor,
    steps: int,
    after_step: Callable[[], object],
) -> JudgeNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPE["seed"])
        network = JudgeNetwork().train()
        peak = RECIPE["learning_rate"]
        optimizer = torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(clean), (RECIPE["batch"],))
            has_blot = torch.rand(len(chosen)) < 0.5
            pixels = _disturb(clean[chosen], blotted[chosen], has_blot)
            digit_logits, blot_logits, _ = network(pixels)
            loss = F.cross_entropy(digit_logits, digits[chosen])
            loss = loss + F.binary_cross_entropy_with_logits(blot_logits, has_blot.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            after_step()
    return network.eval()


def _disturb(clean: torch.Tensor, blotted: torch.Tensor, has_blot: torch.Tensor) -> torch.Tensor:
    """Disturb images as a generator might: faint blots, blur, noise, a shift and a change of contrast.

    A blot faded to 40 % still counts as one, so ink that a model only fades is still found.
    """
    count = len(clean)

    def each(low: float, high: float) -> torch.Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(low, high)

    strength = torch.where(torch.rand(count, 1, 1, 1) < 0.5, torch.ones(()), each(0.4, 1.0))
    pixels = torch.where(has_blot[:, None, None, None], clean + strength * (blotted - clean), clean)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = pixels + each(0.0, 0.8) * (blurred - pixels)
    down, across = (int(step) for step in torch.randint(-2, 3, (2,)))
    padded = F.pad(pixels, (2, 2, 2, 2), mode="replicate")
    pixels = padded[:, :, 2 + down : 34 + down, 2 + across : 34 + across]
    pixels = pixels * each(0.85, 1.0) + each(-0.08, 0.08) + each(0.0, 0.12) * torch.randn_like(pixels)
    return pixels.clamp(-1, 1)

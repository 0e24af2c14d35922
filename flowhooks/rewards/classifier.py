"""Score whether an image shows what its prompt names, by the (log-)probability that a classifier assigns to a label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from flowhooks.documents.imports import PATH
from flowhooks.documents.suggest import hint, listed
from flowhooks.errors import RewardError
from flowhooks.pretrained import import_network, load_network
from flowhooks.rewards.base import ModelReward, Records, column
from flowhooks.rewards.pictures import load_preprocessing
from flowhooks.rewards.registry import ClassifierSpec
from flowhooks.transfer import whole_numbers

TARGETS = ("log_probability", "probability")


def label_score(logits: Tensor, labels: Tensor, target: str) -> Tensor:
    """Return the log-probability or probability ``[N]`` of labels ``[N]`` under logits ``[N, K]``."""
    chosen = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    return chosen.exp() if target == "probability" else chosen


def label_number(label: Any, names: Mapping[str, int], count: int | None) -> int:
    """Return the number of a label that is given by its name or, as an integer or in digits, by its number.

    Args:
        names: label -> number; empty where the model has none.
        count: number of labels, None where it is not known yet.

    Raises:
        ValueError: there is no such label.
    """
    if isinstance(label, str) and label in names:
        return names[label]
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < (count or math.inf):
        return label
    numbers = f"numbers from 0 to {count - 1}" if count else "numbers from 0"
    raise ValueError(
        f"there is no label {label!r}; known: {listed(names) if names else numbers}{hint(str(label), names)}"
    )


class Classifier(ClassifierSpec, ModelReward):
    """Computes a softmax over all labels and returns the value of the wanted label.

    Raises:
        ModelError: the model cannot be used.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.range = (0.0, 1.0) if self.target == "probability" else (None, 0.0)
        self._labels: Mapping[str, int] = {}
        self._prepare: Any = None
        if PATH.fullmatch(self.model):
            self.network = import_network(self.model, self.dtype)
        else:
            self._prepare = load_preprocessing(self.model, "model")
            self.network = load_network(AutoModelForImageClassification, self.model, self.dtype)
            self._labels = {str(key): int(value) for key, value in self.network.config.label2id.items()}
        if self.label is not None:
            label_number(self.label, self._labels, len(self._labels) or None)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        prepared = pictures if self._prepare is None else self._prepare(pictures)
        output = self.network(prepared.to(self.network_dtype))
        logits = output if isinstance(output, Tensor) else output.logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.dim() != 2 or len(logits) != len(pictures):
            raise RewardError(
                f"the model of reward {self.name!r} gave {tuple(logits.shape)}, expected logits ({len(pictures)}, K)"
            )
        wanted = self._wanted(prompts, records, logits.shape[1])
        return label_score(logits, whole_numbers(wanted, logits.device), self.target)

    def _wanted(self, prompts: Sequence[str], records: Records, count: int) -> list[int]:
        if self.label is None:
            place = f"column {self.label_column!r}"
            written = column(records, self.label_column, self.name, prompts)
        else:
            place, written = "`label`", [self.label] * len(prompts)
        numbers = []
        for label, prompt in zip(written, prompts, strict=True):
            try:
                numbers.append(label_number(label, self._labels, count))
            except ValueError as error:
                raise RewardError(f"reward {self.name!r}, {place} of prompt {prompt!r}: {error}") from error
        return numbers

"""Generate images with fixed seeds, and measure the run's own metrics on samples that it never trains on."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from flowhooks import distributed
from flowhooks.config import Run
from flowhooks.data import Record, collate
from flowhooks.data.given_images import open_images
from flowhooks.documents.privacy import text_without_local_paths
from flowhooks.errors import FlowhooksWarning, TrainingError
from flowhooks.export import CardPicture
from flowhooks.flow_map.second_time import StopForward
from flowhooks.hooks.weight_average.hook import averaged
from flowhooks.kernel.session import Session
from flowhooks.manifest import VALIDATION
from flowhooks.probe import FlowModel
from flowhooks.probe.recorder import evaluating
from flowhooks.probe.references import picture_argument
from flowhooks.probe.runs import find_networks
from flowhooks.sampling.encoded import EncodedPrompts, PromptKeeper
from flowhooks.sampling.flow_map_steps import first_order
from flowhooks.sampling.images import sample_images
from flowhooks.sampling.labels import Cell, labelled_grid
from flowhooks.sampling.outputs import PICTURE
from flowhooks.sampling.sound import sample_sound, write_sound
from flowhooks.stage import Stage
from flowhooks.train.background import Background
from flowhooks.train.files import write_aside
from flowhooks.train.metrics import mean_over_processes
from flowhooks.train.rng import preserved
from flowhooks.transfer import sent

STEPS = "num_inference_steps"


@dataclass(kw_only=True)
class ValidationImages:
    """Generates the images of a run's validation."""

    run: Run
    model: FlowModel
    encoded: EncodedPrompts | None = None

    @cached_property
    def references(self) -> list[dict[str, Any]]:
        """Return for each prompt pipeline argument -> its image or images; none where the run names none.

        Raises:
            ConfigError: a file cannot be read.
            ModelError: it is unclear which argument takes them.
        """
        given = self.run.validation["images"] or [None] * len(self.run.validation["prompts"])
        named = self.model.contract.references
        argument = named[0] if len(named) == 1 else picture_argument(self.model.pipe) if any(given) else ""
        return [open_images(each, argument, f"$.validation.images[{i}]") for i, each in enumerate(given)]

    @property
    def texts(self) -> list[dict[str, Any]]:
        """Return for each prompt pipeline argument -> its text; none where the run names none."""
        written = self.run.validation["texts"] or [None] * len(self.run.validation["prompts"])
        return [dict(each or {}) for each in written]

    def encode(self, stage: Stage, cache: PromptKeeper) -> bool:
        """Encode the prompts, or find them in the cache, so that drawing images later asks no text encoder. Returns
        whether that is so."""
        pipe, prompts = self.model.pipe, self.run.validation["prompts"]
        if not prompts:
            return True
        if not hasattr(pipe, "encode_prompt") or self.model.contract.entangled:
            self.references  # noqa: B018
            return False
        self.encoded = EncodedPrompts(pipe, cache)
        # An embedding depends on the arguments, and where prompt and resolution are joint on the size too.
        size = (("height", "width") if self.model.sound is None else ("duration",)) if self.model.contract.joint else ()
        told = ("guidance_scale", "negative_prompt", "num_images_per_prompt", *size)
        about = {"validation": {name: self.run.validation[name] for name in told}}
        if any(self.texts):
            return False
        self.encoded.prepare(prompts, about, lambda prompt: self._encode(prompts.index(prompt)))
        return not stage.asks_encoders(lambda: self._encode(0))

    def sample(self, count: int) -> list[Any]:
        """Return the images of every prompt, or its clips of sound, in ``count`` steps."""
        return self._sampled(range(len(self.run.validation["prompts"])), count)

    @property
    def counts(self) -> list[int]:
        """Return the step counts that images are generated at, rising."""
        written = self.run.validation[STEPS]
        return sorted(written) if isinstance(written, list) else [written]

    def _encode(self, place: int) -> None:
        def stop(*_: Any) -> None:
            raise StopForward

        with ExitStack() as stack:
            for network in find_networks(self.model.pipe).values():
                stack.callback(network.register_forward_pre_hook(stop).remove)
            with suppress(StopForward):
                self._sampled([place], self.counts[0])

    def _sampled(self, places: Sequence[int], count: int) -> list[Any]:
        """Return the images, or the clips, of the prompts at these places."""
        validation, model = self.run.validation, self.model
        prompts = [validation["prompts"][i] for i in places]
        others = ("prompts", "images", "texts", "every_steps", "holdout", STEPS)
        options = {k: v for k, v in validation.items() if k not in others}
        shared: dict[str, Any] = {"num_inference_steps": count, "scale_argument": model.contract.scale}
        arguments = self.run.model["pipeline_arguments"]
        with nullcontext() if self.encoded is None else self.encoded.used(prompts):
            if model.sound is not None:
                del options["height"], options["width"]
                own = [self.texts[i] for i in places]
                return sample_sound(model.pipe, prompts, **options, **shared, arguments=arguments, given=own)
            del options["duration"]
            shown = [self.references[i] for i in places]
            return sample_images(model.pipe, prompts, **options, **shared, arguments=arguments, images=shown)


@dataclass(kw_only=True)
class Validation:
    """Generates images and measures metrics during training; weights, modes and random numbers stay as they were.

    Args:
        held: the held-out samples, as a CachedDataset gives them.
        batch_size: size of the held-out batches.
        background: writes the images beside the steps that follow.
        together: whether all processes must call the network equally often, since its weights are sharded over them.
    """

    run: Run
    session: Session
    model: FlowModel
    images: ValidationImages
    accelerator: Accelerator
    held: Subset
    batch_size: int
    background: Background
    together: bool = False
    drawn: Path | None = None

    @property
    def wanted(self) -> bool:
        return bool(self.run.validation["prompts"]) or len(self.held) > 0

    def due(self, step: int) -> bool:
        """Return whether to validate at this step: before the first step, every ``every_steps``, after the last."""
        return self.wanted and (
            step % self.run.validation["every_steps"] == 0 or step == self.run.training["max_train_steps"]
        )

    def validate(self, step: int) -> dict[str, float]:
        """Generate and measure, with the averaged weights under ``use_ema``. Returns ``val/...`` metrics, the same on
        all processes."""
        device = self.accelerator.device
        with preserved(device), averaged(self.session), evaluating(self.model.transformer):
            metrics = self._measure() if len(self.held) else {}
            # A sharded network computes on all processes or on none.
            if self.run.validation["prompts"] and (self.accelerator.is_main_process or self.together):
                metrics |= self._draw(step)
        return metrics

    def pictures(self) -> list[CardPicture]:
        """Return the last grid, for the model card; it is there once ``background`` has written it."""
        return (
            []
            if self.drawn is None
            else [CardPicture(path=self.drawn, prompt=" | ".join(self.run.validation["prompts"]))]
        )

    def _measure(self) -> dict[str, float]:
        """Measure on held-out batches: with N processes, each takes every N-th batch, under noise that depends on the
        batch only."""
        measured: dict[str, list[Tensor]] = {}
        sizes: dict[str, list[float]] = {}
        batches = held_batches([record.bucket for record in self._records()], self.batch_size)
        with self.accelerator.autocast():
            last = len(batches) - 1
            for number in range(distributed.rank(), self._rounds(len(batches)), distributed.world_size()):
                rows = batches[min(number, last)]
                batch = on_device(collate([self.held[i] for i in rows]), self.accelerator.device)
                found = self.session.evaluate(batch, micro_step=number, processes=distributed.ALONE)
                if number > last:
                    continue
                for name, value in found.metrics.items():
                    measured.setdefault(name, []).append(value)
                    sizes.setdefault(name, []).append(float(len(rows)))
        return {f"val/{name}": value for name, value in mean_over_processes(measured, sizes).items()}

    def _rounds(self, batches: int) -> int:
        """Return how many batches are measured: where all processes compute together, each takes as many, and the last
        batch stands in for those that are missing and does not count."""
        processes = distributed.world_size()
        return -(-batches // processes) * processes if self.together else batches

    def _records(self) -> list[Record]:
        dataset: Any = self.held.dataset
        return [dataset.records[i] for i in self.held.indices]

    def _draw(self, step: int) -> dict[str, float]:
        validation, counts = self.run.validation, self.images.counts
        interval = self.model.interval
        stepped = nullcontext() if interval is None else first_order(self.model.pipe, interval)
        with self.session.with_training_adapter(False), stepped:
            drawn = [self.images.sample(count) for count in counts]
        if not self.accelerator.is_main_process:
            return {}
        if self.model.sound is not None:
            self._keep_clips(drawn[-1], self.model.sound.rate, step)
            return {}
        file = Path(self.run.output_dir) / VALIDATION / f"step_{step:06d}.png"
        # With several step counts: a row an image, a column a count.
        pictures = [row[i] for i in range(len(drawn[0])) for row in drawn]
        cells = [cell for cell in self._cells() for _ in counts]
        cells = [replace(cell, steps=count) for cell, count in zip(cells, counts * len(drawn[0]), strict=True)]
        columns = _columns(len(validation["prompts"]), validation["num_images_per_prompt"])
        columns = columns if len(counts) == 1 else len(counts)

        def save(aside: Path) -> None:
            labelled_grid(pictures, cells, columns=columns, step=step).save(aside)

        self.background.submit(lambda: write_aside(file, save, TrainingError))
        self.drawn = file
        try:
            self._track(pictures, step)
        except Exception as error:
            message = f"the trackers did not take the images ({type(error).__name__}: {error}); training goes on"
            warnings.warn(message, FlowhooksWarning, stacklevel=2)
        return step_curve(counts, drawn) if len(counts) > 1 else {}

    def _keep_clips(self, clips: Sequence[np.ndarray], rate: int, step: int) -> None:
        """Write each clip beside the steps that follow: ``step_000100_prompt_000_00.wav`` and so on."""
        each = self.run.validation["num_images_per_prompt"]
        for i, clip in enumerate(clips):
            name = f"step_{step:06d}_{PICTURE}{i // each:03d}_{i % each:02d}.wav"
            file = Path(self.run.output_dir) / VALIDATION / name
            save = partial(write_sound, clip=clip, rate=rate, kind=".wav")
            self.background.submit(partial(write_aside, file, save, TrainingError))

    def _cells(self) -> list[Cell]:
        """Return what the images of one step count show. A grid is published with the run, so that a path in a prompt
        is cut."""
        validation = self.run.validation
        seeds = range(validation["seed"], validation["seed"] + validation["num_images_per_prompt"])
        return [
            Cell(prompt=text_without_local_paths(prompt), seed=seed, steps=0)
            for prompt in validation["prompts"]
            for seed in seeds
        ]

    def _track(self, pictures: Sequence[Image.Image], step: int) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
                tracker.log_images({VALIDATION: stacked}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({VALIDATION: list(pictures)}, step=step)


def held_batches(buckets: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Return positions of samples in batches of at most ``batch_size``, each of one bucket."""
    rows: dict[Hashable, list[int]] = {}
    for i, bucket in enumerate(buckets):
        rows.setdefault(bucket, []).append(i)
    return [each[at : at + batch_size] for each in rows.values() for at in range(0, len(each), batch_size)]


def on_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on ``device``."""
    tensors = {
        name: None if value is None else sent(value, device)
        for name, value in (("clean", batch.clean), ("rejected", batch.rejected), ("mask", batch.mask))
    }
    return replace(batch, **tensors, condition=batch.condition.to(device))


def step_curve(counts: Sequence[int], drawn: Sequence[Sequence[Image.Image]]) -> dict[str, float]:
    """Return ``val/distance_<n>_steps``: mean absolute difference, from 0 to 1, between the images of n steps and those
    of the most steps, which come last."""
    arrays = [np.stack([np.asarray(p.convert("RGB"), dtype=np.float32) / 255 for p in row]) for row in drawn]
    return {
        f"val/distance_{count}_steps": float(np.abs(array - arrays[-1]).mean())
        for count, array in zip(counts[:-1], arrays[:-1], strict=True)
    }


def _columns(prompts: int, each: int) -> int:
    return each if each > 1 else min(4, prompts)

"""What a run needs on a card, from the configurations of its pipeline alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from flowhooks.checks.pipeline import NETWORKS, pipeline_folder, read_index
from flowhooks.checks.planning import frozen_adapters, local_adapter
from flowhooks.config import Run
from flowhooks.data import Audit
from flowhooks.digits.places import NAMES, building_notice, place_of
from flowhooks.errors import FlowhooksError, ModelError
from flowhooks.hooks.registry import HOOKS
from flowhooks.kernel import Batch
from flowhooks.memory.carried import carry_over, learn_on_twin
from flowhooks.memory.shadows import Shadows
from flowhooks.memory.step import Needs, count_update, decodes
from flowhooks.memory.twin import twins
from flowhooks.memory.weights import PartWeights, held_as, quantize_shapes
from flowhooks.pretrained import DTYPES, shapes_only
from flowhooks.probe import Condition, FlowModel, probe
from flowhooks.probe.learn import SMALL
from flowhooks.probe.values import moved
from flowhooks.sampling.prompts import read_prompts
from flowhooks.stage import VAE

META = torch.device("meta")


class NotCounted(FlowhooksError):
    """What a run needs cannot be counted; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run whose updates can be counted, also with changes.

    Args:
        run: as it was read.
        model: learnt on a small twin; its network is set by :meth:`needs`.
        network, vae: build the network, and the VAE, at full size on a device, in a precision.
        condition: of one sample, with the longest prompt of the data.
        prompt: that prompt; None for a run without data.
        size: of the largest samples: height, width and frames.
        provides: what the data gives, as the audit says it.
        parts: part of the pipeline -> how large its weights are.
    """

    run: Run
    model: FlowModel
    network: Callable[[torch.device, torch.dtype], Any]
    vae: Callable[[torch.device, torch.dtype], Any] | None
    condition: Condition
    prompt: str | None
    size: tuple[int, int, int | None]
    provides: frozenset[str]
    parts: Mapping[str, PartWeights]

    def needs(
        self,
        run: Run | None = None,
        *,
        size: tuple[int, int, int | None] | None = None,
        device: torch.device = META,
        rules: str = "cuda",
    ) -> Needs:
        """Bytes of one update.

        Args:
            run: the run with something changed; default: as it was read.
            size: of the samples; default: the largest of the data.
            device: what to count on. On another than meta everything is computed, on the network as it is built.
            rules: the device whose rules mixed precision follows, ``cuda`` or ``cpu``.

        Raises:
            NotCounted: with the reason.
        """
        # Nothing is compiled of a network without numbers.
        run = changed(run or self.run, [("training.compile", "none")])
        try:
            # Learnt with the twin in its place, as the layout of a size needs numbers.
            self.model.at(*(size or self.size))
            learn_on_twin(self.model, {hook.type for hook in run.every_hook})
            return self._counted(run, size or self.size, device, rules)
        # Code of Diffusers that reads a number fails on a tensor without one in any of these ways.
        except (FlowhooksError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            reason = " ".join(str(error).split())[:300]
            raise NotCounted(f"the step cannot be run without numbers: {reason}") from error

    def _counted(self, run: Run, size: tuple[int, int, int | None], device: torch.device, rules: str) -> Needs:
        model, component, dtype = self.model, self.model.component, DTYPES[run.model["dtype"]]
        twins = {component: model.transformer}
        network = self.network(device, dtype)
        if device.type == "meta":
            quantize_shapes(network, run.model, component, dtype)
        built = {component: network}
        if self.vae is not None and decodes(run):
            twins[VAE], built[VAE] = model.pipe.vae, self.vae(device, dtype)
        try:
            with shapes_only(device.type == "meta"), Shadows():
                model.pipe.register_modules(**built)
                model = model.at(*size)
                carry_over(model, twins[component], network)
                model.contract = replace(model.contract, constants=moved(model.contract.constants, device, None))
                # A copy of a model holds on to the weight that it found first.
                vars(model).pop("_typical_weight", None)
                batch = None if self.prompt is None else self.batch(model, run, device)
                return count_update(model, _short(run), batch, encoders=self.encoders(run), rules=rules)
        finally:
            model.pipe.register_modules(**twins)

    def bytes(self, run: Run, name: str) -> int:
        """Bytes of the weights of a part of the pipeline."""
        itemsize = DTYPES[run.model["dtype"]].itemsize
        return self.parts[name].bytes(itemsize, held_as(run.model, name, itemsize))

    def encoders(self, run: Run) -> int:
        """Bytes of the weights of the text encoders, which come and go together."""
        return sum(self.bytes(run, name) for name in self.parts if name not in NETWORKS and name != VAE)

    def batch(self, model: FlowModel, run: Run, device: torch.device) -> Batch:
        """A micro-batch with all sides that the data of the run gives."""
        count = run.training["train_batch_size"]
        clean = torch.zeros(count, *model.sample_shape, device=device)
        grid = model.layout(*self._edges(model)).mask_grid
        return Batch(
            clean=clean,
            condition=self.condition.take([0] * count).to(device, model.dtype),
            rejected=torch.ones_like(clean) if "rejected" in self.provides else None,
            mask=torch.ones(count, 1, *grid, device=device) if "mask" in self.provides else None,
            prompts=(self.prompt or "",) * count,
        )

    @staticmethod
    def _edges(model: FlowModel) -> tuple[int, int]:
        return model.size["height"], model.size["width"]


def plan_memory(run: Run, audited: Audit) -> Planned:
    """Learn what is needed to count a run, on a small twin of its pipeline. Reads configurations and tokenizers from
    the disk, and no weights.

    Raises:
        NotCounted: what cannot be counted, and why.
    """
    _refuse(run)
    folder = _folder(run.model["pretrained_model_name_or_path"]) or pipeline_folder(run.model)
    if folder is None:
        raise NotCounted("the pipeline's configurations are not on this disk; fetch it once, then ask again")
    records = audited.records
    prompt = max((record.caption for record in records), key=len) if records else None
    parts, _ = read_index(folder)
    component = run.model["component"] or next(part for part in NETWORKS if part in parts)
    network = full_network(folder / component, parts[component][1])
    if records:
        largest = max(records, key=lambda record: record.width * record.height * record.geometry.frames)
        edges, frames = (largest.height, largest.width), largest.geometry.frames
    else:
        edges, frames = (run.validation["height"], run.validation["width"]), None
    model = _learnt(folder, run, edges, frames)
    size = (edges[0] or model.size["height"], edges[1] or model.size["width"], frames or model.length)
    size = size if model.length is not None else (*size[:2], None)
    return Planned(
        run=run,
        model=model,
        network=network,
        vae=full_network(folder / VAE, parts[VAE][1]) if VAE in parts else None,
        condition=model.at(*size).encode_examples([prompt or ""]),
        prompt=prompt,
        size=size,
        provides=frozenset(audited.provides),
        parts={name: measure(folder / name, *where) for name, where in parts.items()},
    )


def _folder(name: Any) -> Path | None:
    """Return the folder of the embedded pipeline; None for another name. Its outline has no text encoder.

    Raises:
        NotCounted: it is not built yet.
    """
    if name not in NAMES:
        return None
    if (notice := building_notice(name)) is not None:
        raise NotCounted(notice)
    return place_of(name)


def full_network(folder: Path, kind: str) -> Callable[[torch.device, torch.dtype], Any]:
    """What builds the network of a configuration at full size and random weights, on a device and in the precision in
    which it would load."""
    cls = getattr(diffusers, kind)
    settings = cls.load_config(folder)

    def build(device: torch.device, dtype: torch.dtype) -> Any:
        with torch.device(device):
            network = cls.from_config(settings)
        kept = tuple(cls._keep_in_fp32_modules or ())
        for name, parameter in network.named_parameters():
            if parameter.is_floating_point() and not any(each in name.split(".") for each in kept):
                parameter.data = parameter.data.to(dtype)
        # What is stored beside the weights, such as tables of positions, is read in the same precision.
        for module in network.modules():
            for name, buffer in module._buffers.items():
                stored = name not in module._non_persistent_buffers_set
                if buffer is not None and stored and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(dtype)
        return network.to(device).eval().requires_grad_(False)

    return build


def measure(folder: Path, library: str, kind: str) -> PartWeights:
    """How large the weights of a part of a pipeline are, from its configuration.

    Raises:
        NotCounted: it cannot be built from its configuration.
    """
    cls: Any = getattr(transformers if library == "transformers" else diffusers, kind, None)
    if cls is None or not issubclass(cls, nn.Module):
        return PartWeights(numbers=0)
    try:
        with torch.device(META):
            if issubclass(cls, transformers.PreTrainedModel):
                module: nn.Module = cls(cls.config_class.from_pretrained(folder))
            else:
                module = cls.from_config(cls.load_config(folder))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise NotCounted(f"{folder}: {kind} cannot be built from its configuration: {error}") from error
    return PartWeights.of(module)


def _refuse(run: Run) -> None:
    """Raise NotCounted for a run of a kind that is not counted yet."""
    for hook in run.hooks:
        if hook.type not in HOOKS:
            raise NotCounted(f"{hook.where}: {hook.type!r} is code of yours, which is not run here")
    for place, source in frozen_adapters(run):
        if local_adapter(source) is None:
            raise NotCounted(f"{place}: the adapter {source!r} is not on this disk; fetch it once, then ask again")


def _learnt(folder: Path, run: Run, edges: tuple[int | None, int | None], frames: int | None) -> FlowModel:
    """A model of the smallest twin that the probe can learn from, at the size of the data or a smaller one."""
    reasons: list[str] = []
    # A twin's text encoders and autoencoder compute at this size; the layout of larger ones is learnt without them.
    small = all(edge is not None and edge <= max(SMALL.values()) for edge in edges)
    at = dict(zip(("height", "width"), edges, strict=True)) if small else {}
    given = {"arguments": run.model["pipeline_arguments"], "component": run.model["component"], **at}
    try:
        for pipe in twins(folder):
            try:
                model = probe(pipe, frames=frames if (frames or 1) > 1 else None, **given)
                _learn_ahead(model)
                return model
            except (FlowhooksError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                reasons.append(" ".join(str(error).split())[:200])
    except ModelError as error:
        reasons.append(str(error))
    raise NotCounted(f"no small twin of the pipeline could be learnt from: {reasons[0]}")


def _learn_ahead(model: FlowModel) -> None:
    """What hooks may ask of the pipeline while they attach, which needs numbers."""
    for name in ("example_condition", "null_condition", "anatomy"):
        try:
            getattr(model, name)
        except FlowhooksError:
            # A hook that needs it says so when it asks.
            continue


def _short(run: Run) -> Run:
    """The run with one prompt in place of those that it draws samples of, the longest, as often as a micro-batch needs
    it."""
    hooks = []
    for hook in run.hooks:
        if "prompts" in hook.options and hook.options["prompts"] is not None:
            longest = max(read_prompts(hook.options["prompts"]), key=lambda prompt: len(prompt.text))
            entry = {"prompt": longest.text, **longest.record}
            hook = replace(hook, options={**hook.options, "prompts": [entry] * run.training["train_batch_size"]})
        hooks.append(hook)
    return replace(run, hooks=tuple(hooks))


def changed(run: Run, changes: Sequence[tuple[str, Any]]) -> Run:
    """The run with other values at places such as ``training.train_batch_size``."""
    sections = {section: copy.copy(getattr(run, section)) for section in ("model", "adapter", "training")}
    for place, value in changes:
        section, _, key = place.partition(".")
        sections[section][key] = value
    return replace(run, **sections)

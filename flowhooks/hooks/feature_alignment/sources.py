"""The sources of a teacher's features: a block in a forward of the network, or a vision model.

A source is an object with a ``width`` and one method, ``features(step)``, which returns the teacher's token features
``[B, N, D]`` and their grid. Teachers differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.hooks.decoding import Decoder
from flowhooks.hooks.dual_times.hook import at_lower_sigma
from flowhooks.hooks.feature_alignment.alignment import frame_places, projector
from flowhooks.hooks.feature_alignment.vision_encoder import VisionEncoder
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.step import Step
from flowhooks.probe.recorder import evaluating
from flowhooks.probe.streams import BETWEEN, Grid, Streams, TokenStream

#: Source -> whose pass its features are from; the others look at images.
PASSES: Mapping[str, str] = {"layersync": POLICY, "backbone": "reference"}
PICTURES = ("external", "crepa")
#: The averaged weights on a cleaner view, in a pass of their own.
CLEANER = "self_flow"
SOURCES = (*PASSES, *PICTURES, CLEANER)


class FeatureTeacher(Protocol):
    """A teacher, whose features have ``width`` channels."""

    width: int

    def features(self, step: Step) -> tuple[Tensor, Grid]: ...


class FeatureCapture:
    """Keeps the outputs of blocks during passes on the main view, unchanged.

    It computes nothing inside the pass: a checkpointed block runs again in backward and must then do the same.
    """

    def __init__(self, model: Any, streams: Streams, tapped: Sequence[TokenStream]):
        self.model, self.streams, self.tapped = model, streams, tuple(dict.fromkeys(tapped))
        self._into: dict[str, list[Any]] | None = None
        self._kept: dict[str, tuple[dict[str, list[Any]], tuple[str, ...]]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            for stream in self.tapped:
                block = self.model.transformer.get_submodule(stream.name)
                stack.callback(block.register_forward_hook(partial(self._returned, stream.name)).remove)
            yield

    @contextmanager
    def open(self, views: Sequence[str], role: str) -> Iterator[None]:
        """Captures inside the block, which contains the pass of ``role`` on ``views``."""
        into: dict[str, list[Any]] = {stream.name: [] for stream in self.tapped}
        self._into = into
        try:
            yield
        finally:
            self._into = None
        self._kept[role] = into, tuple(views)

    def features(self, step: Step, role: str, stream: TokenStream) -> tuple[Tensor, Grid]:
        """``[B, N, D]`` of the main view in the pass of ``role``, and the grid of its tokens."""
        step.predict(MAIN_VIEW, role)
        kept, names = self._kept[role]
        grid = self.grid(step, stream)
        conditions = [step.views[name].condition for name in names]
        together = conditions[0].join(conditions[1:])
        calls = kept[stream.name]
        model: Any = step.model
        behind = model.behind(step.batch.clean, together) if stream.at == BETWEEN else [0] * len(calls)
        parts = [stream.of(*each) for each in zip(calls, [prod(grid)] * len(calls), behind, strict=True)]
        sizes = [step.views[name].shape[0] for name in names]
        if sum(map(len, parts)) != sum(sizes):
            raise ModelError(f"{stream.name} ran on {sum(map(len, parts))} samples in a pass on {sum(sizes)}")
        start = sum(sizes[: names.index(MAIN_VIEW)])
        end = start + step.views[MAIN_VIEW].shape[0]
        if len(parts) == 1:
            return parts[0][start:end], grid
        # Prompts that share no forward went through the network one group after the other.
        order = [i for members, _ in together.groups() for i in members]
        samples = [sample for part in parts for sample in part.unbind(0)]
        return torch.stack([samples[order.index(i)] for i in range(start, end)]), grid

    def grid(self, step: Step, stream: TokenStream) -> Grid:
        """Frames, rows and columns of a block's tokens."""
        model: Any = step.model
        return self.streams.grid(model.layout_of(step.batch.clean).extent, stream)

    def forget(self) -> None:
        """Free a step's features and their graph."""
        self._kept.clear()

    def _returned(self, name: str, block: nn.Module, args: tuple, output: Any) -> None:
        if self._into is not None:
            self._into[name].append(output)


class PassSource:
    """A block of a pass on the main view: of the policy's own (LayerSync), of the frozen base's, or, for Self-Flow, of
    the averaged weights'."""

    def __init__(self, tap: FeatureCapture, role: str, stream: TokenStream):
        self.tap, self.role, self.stream, self.width = tap, role, stream, stream.width

    def features(self, step: Step) -> tuple[Tensor, Grid]:
        features, grid = self.tap.features(step, self.role, self.stream)
        return features.detach(), grid


class CleanerSource:
    """The averaged weights, without dropout, on the main view with all tokens at the lower of their two sigmas
    (Self-Flow, arXiv 2603.06507). The pass ends at the block."""

    def __init__(self, tap: FeatureCapture, stream: TokenStream):
        self.tap, self.stream, self.width = tap, stream, stream.width
        self.dropouts = [m for m in tap.model.transformer.modules() if isinstance(m, nn.Dropout) and m.p]

    def features(self, step: Step) -> tuple[Tensor, Grid]:
        grid = self.tap.grid(step, self.stream)
        with evaluating(*self.dropouts):
            view = at_lower_sigma(step.views[MAIN_VIEW])
            arguments = view.noisy, view.level, view.condition
            with step.playing("ema") as model:
                return model.features(*arguments, block=self.stream, tokens=prod(grid)), grid


class PictureSource:
    """A vision model on the clean image, decoded from its latents; of video, on a frame for each latent frame (REPA,
    arXiv 2410.06940; CREPA, arXiv 2506.09229).

    Raises:
        ModelError: the pipeline has no VAE to decode with.
    """

    def __init__(self, tap: FeatureCapture, encoder: str):
        self.tap = tap
        self.decoder = Decoder(tap.model, "the teacher")
        self.encoder = VisionEncoder(encoder, tap.model.device)
        self.width = self.encoder.width

    @torch.no_grad()
    def features(self, step: Step) -> tuple[Tensor, Grid]:
        frames, *_ = self.tap.grid(step, self.tap.tapped[0])
        pixels = self.decoder.frames(step.batch.clean, step.model, step.batch.condition)
        # A given frame, which comes first, has no tokens of the sample's.
        model: Any = step.model
        latent, sampled = model.frames(step.batch.clean), model.layout_of(step.batch.clean).extent[0]
        given = (latent - sampled) // self.tap.streams.patch[0]
        seen = pixels[:, :, frame_places(pixels.shape[2], given + frames)[given:]]
        features = self.encoder(seen.movedim(2, 1).flatten(0, 1))
        return features.unflatten(0, (-1, frames)).flatten(1, 2), (frames, *self.encoder.grid)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts that a run has attached: the capture, the student's block, the teacher, the projector."""

    tap: FeatureCapture
    student: TokenStream
    source: FeatureTeacher
    head: nn.Module


def build_parts(
    model: Any,
    stack: ExitStack,
    kind: str,
    blocks: Mapping[str, int | str | None],
    encoder: str | None,
    *,
    width: int,
    depth: int,
) -> Parts:
    """Attach the parts; the stack removes them when it closes.

    Args:
        blocks: the options ``block_index`` and ``teacher_block_index``.
        width, depth: of the projector.

    Raises:
        ModelError: a block or a teacher that is missing or cannot be used.
    """
    needed = ("block_index", "encoder") if kind in PICTURES else ("block_index", "teacher_block_index")
    for option in needed:
        if {**blocks, "encoder": encoder}[option] is None:
            raise ModelError(f"`{option}` is missing; `feature_alignment` needs it with the source {kind!r}")
    streams: Streams = model.streams
    named = {name: block for name, block in blocks.items() if block is not None and name in needed}
    student, *others = (streams.pick(block, option) for option, block in named.items())
    if kind == "layersync" and others[0].order <= student.order:
        raise ModelError(f"`teacher_block_index` must be deeper: {others[0].name} does not run after {student.name}")
    tap = FeatureCapture(model, streams, [student, *(others if kind in PASSES else [])])
    stack.enter_context(tap.attached())
    source: FeatureTeacher
    if kind in PASSES:
        source = PassSource(tap, PASSES[kind], others[0])
    elif kind == CLEANER:
        source = CleanerSource(tap, others[0])
    else:
        if kind == "crepa" and streams.grid(model.layout(**model.size).extent, student)[0] == 1:
            raise ModelError("'crepa' aligns with neighbouring frames, and there is one; use 'external' for images")
        source = PictureSource(tap, str(encoder))
        stack.enter_context(source.decoder.attached())
    if not depth and student.width != source.width:
        raise ModelError(
            f"the teacher's features have {source.width} channels, those of {student.name} have {student.width}; "
            "set `projector_depth` to 1 or more"
        )
    head = projector(student.width, source.width, width=width, depth=depth).to(model.device)
    return Parts(tap=tap, student=student, source=source, head=head)

"""Keep what a model knows of its pipeline at each size, and learn it where it is first used."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.conditioning import GIVEN, Condition
from flowhooks.probe.contract import PipelineContract
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.interval import Interval
from flowhooks.probe.layout import Layout, learn_layout
from flowhooks.probe.offloading import original
from flowhooks.probe.recorder import encoded_once, execution_device, without_side_effects
from flowhooks.probe.runs import ANY
from flowhooks.probe.sizes import Size, Sizes
from flowhooks.probe.sound import sound_of
from flowhooks.probe.tokens import Tokens
from flowhooks.probe.weight_names import WeightNames


class SizedModel:
    """Knows a pipeline at each size at which it is used, and with references of each shape.

    Args:
        pipe: a Diffusers flow-matching pipeline, used as it is.
        contract: from :func:`flowhooks.probe.probe`.
        arguments: arguments of every call of the pipeline, such as ``max_sequence_length``.
        size: ``height`` and ``width`` at which the contract was learned; for sound 1, and the number of samples.
        frames: frames of a video, if the pipeline makes videos; default: the number in ``arguments``, or the pipeline's
            own.
        component: the network that is trained, for a pipeline with two; default: the first.
        example: with references, pipeline argument -> image of a sample that serves as an example.
    """

    def __init__(
        self,
        pipe: Any,
        contract: PipelineContract,
        arguments: Mapping[str, Any],
        size: Mapping[str, int],
        component: str | None = None,
        frames: int | None = None,
        example: Mapping[str, Any] | None = None,
    ):
        self.pipe = pipe
        self.example = dict(example or {})
        self.contract = contract
        self.arguments = dict(arguments)
        self.component = component or contract.networks[0]
        if self.component not in contract.networks:
            raise ModelError(f"{contract.pipeline} has no network {self.component!r}; it has {list(contract.networks)}")
        #: The second time that a hook added to the network; None if none did, or if the network has its own.
        self.interval: Interval | None = None
        self.weight_names = WeightNames(partial(getattr, pipe, self.component))
        #: What its clips are, if it makes sound.
        self.sound = sound_of(pipe)
        self._sizes = Sizes(pipe, self.arguments, self.sound)
        self._size = self._sizes.of(size["height"], size["width"], frames)
        self._bound = False
        self._tokens: dict[Size, Tokens] = {}
        self._nulls: dict[Size, Condition] = {}

    @property
    def transformer(self) -> Any:
        """Return the network that is trained."""
        return getattr(self.pipe, self.component)

    def at(self, height: int, width: int, frames: int | None = None) -> Self:
        """Return this model as if it had been probed at another size. Samples of two sizes may be packed to one shape;
        the returned model knows which of the two is meant."""
        size = self._sizes.of(height, width, self._size.frames if frames is None else frames)
        self.layout(*size)
        # Found by a walk through the network, so that the copy need not repeat it.
        self._typical_weight  # noqa: B018
        bound = copy.copy(self)
        bound._size, bound._bound = size, True
        return bound

    def everywhere(self) -> Iterator[Self]:
        """Yield this model at each size known so far, starting with the one it was probed at."""
        for size in dict.fromkeys((self._size, *self._sizes.layouts)):
            yield self.at(*size)

    @property
    def device(self) -> torch.device:
        """Return the device on which the network computes."""
        return execution_device(self.transformer)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the network's weights, ignoring modules that Diffusers keeps in fp32."""
        return self._typical_weight.dtype

    @cached_property
    def _typical_weight(self) -> Tensor:
        # Diffusers walks the whole network for this; a weight that moves or is cast stays the same object.
        dtype = self.transformer.dtype
        return next(original(p) for p in self.transformer.parameters() if p.dtype == dtype)

    def layout(self, height: int, width: int, frames: int | None = None) -> Layout:
        """Return the layout at a resolution in pixels, learned on first use; ``frames`` default to this model's own."""
        size = self._sizes.of(height, width, self._size.frames if frames is None else frames)
        if size not in self._sizes.layouts:
            found = self._learn_layout(size, self.example)
            self._sizes.layouts[size] = self._sizes.variants[size, found.into.shape, True] = found
        return self._sizes.layouts[size]

    def layout_with(self, shape: tuple[int, ...], images: Mapping[str, Any]) -> Layout:
        """Return the layout at this model's size where the network's sample argument has ``shape`` for a sample with
        these images, learned on first use."""
        key = self._size, shape, bool(images) or not self.tells_given
        if key not in self._sizes.variants:
            self._sizes.variants[key] = self._learn_layout(self._size, images)
        return self._sizes.variants[key]

    def knows_layout(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a sample can be predicted whose condition holds these arguments."""
        rest = arguments[self.layout(**self.size).sample_argument]
        return (self._size, tuple(rest.shape[1:]), arguments.get(GIVEN, True)) in self._sizes.variants

    @property
    def tells_given(self) -> bool:
        """Return whether conditions hold whether a sample has images: a frame may be given in place of the sample's,
        and need not be."""
        return self.contract.optional and self.layout(**self.size).seen is not None

    def _learn_layout(self, size: Size, images: Mapping[str, Any]) -> Layout:
        with (
            without_side_effects(self.pipe, self.contract.networks_of(self.pipe)),
            encoded_once(self.pipe),
            self.without_second_time(),
        ):
            call = self.call(prompt=ANY, **self._sizes.arguments(size), **images)
            follows, times = tuple(self.contract.resolution_rules), tuple(t.name for t in self.contract.times)
            partly = bool(self.contract.references)
            return learn_layout(self.pipe, self.contract.networks_of(self.pipe), call, follows, times, partly=partly)

    def _layout_for(self, layout: Layout, arguments: Mapping[str, Any]) -> Layout:
        """Return the layout of samples with these arguments, at the resolution of ``layout``.

        Raises:
            ModelError: they hold no references, or of a shape for which no layout was learned.
        """
        if not self.contract.references:
            return layout
        rest = arguments.get(layout.sample_argument)
        if rest is None:
            raise ModelError(
                f"{self.contract.pipeline} was probed with references, and this condition has none; make it with "
                "`model.encode_conditions(prompts, references)`"
            )
        key = self._sizes.size_of(layout), tuple(rest.shape[1:]), arguments.get(GIVEN, True)
        if key not in self._sizes.variants:
            raise ModelError(
                f"no layout is known for references of this shape at {key[0].width}x{key[0].height} pixels; encode one "
                "such sample with this model first"
            )
        return self._sizes.variants[key]

    @property
    def size(self) -> dict[str, int]:
        """Return ``height`` and ``width`` in pixels at which the pipeline was probed, or for which this model was
        made."""
        return {"height": self._size.height, "width": self._size.width}

    @property
    def length(self) -> int | None:
        """Return the frames of a video at that size; None if the pipeline generates images only."""
        return self._size.frames

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample at that size, in the scheduler's space."""
        return self.layout(**self.size).sample_shape

    def size_arguments(self, height: int, width: int) -> dict[str, Any]:
        """Return the arguments of the pipeline's call for this size, with as many frames as this model's videos
        have."""
        return self._sizes.arguments(self._sizes.of(height, width, self._size.frames))

    def call(self, **more: Any) -> dict[str, Any]:
        """Return arguments for a call of the pipeline at the probed size, without guidance; ``more`` overrides them."""
        return {
            **call_exceptions(self.pipe),
            **self.arguments,
            **self.contract.call,
            **self._sizes.arguments(self._size),
            **more,
        }

    def without_second_time(self) -> AbstractContextManager[None]:
        """Let runs of the pipeline in the block ignore a second time that a hook added to the network."""
        return nullcontext() if self.interval is None else self.interval.between(None)

    def layout_of(self, sample: Tensor) -> Layout:
        """Return the layout of samples ``[B, ...]``.

        Raises:
            ModelError: their resolution was not learned yet, or two known ones have samples of this shape and the model
                was not made for either; see :meth:`at`.
        """
        return self._sizes.layout_of(tuple(sample.shape[1:]), self._size if self._bound else None)

"""Use a stock pipeline through its contract: predict velocities in the scheduler's sample space, encode prompts and
images, decode latents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.conditioning import Condition
from flowhooks.probe.contract import PipelineContract, fingerprint
from flowhooks.probe.exceptions import call_exceptions
from flowhooks.probe.interval import Interval, Span
from flowhooks.probe.layout import Layout, learn_layout
from flowhooks.probe.offloading import original
from flowhooks.probe.recorder import encoded_once, execution_device, freed_once, without_side_effects
from flowhooks.probe.runs import PROMPTS, output_of, recorded_arguments
from flowhooks.probe.sizes import Size, Sizes
from flowhooks.probe.tokens import Tokens, TokenSigma, called_with_token_times, check_token_sigma
from flowhooks.probe.values import collate, moved, nested_arguments
from flowhooks.probe.weight_names import WeightNames
from flowhooks.transfer import picked, sent, whole_numbers

if TYPE_CHECKING:
    from flowhooks.probe.anatomy import Anatomy
    from flowhooks.probe.streams import Streams, TokenStream

PROMPT_BATCH = 16


class FlowModel:
    """Gives flowhooks its only access to a pipeline.

    Args:
        pipe: a Diffusers flow-matching pipeline, used as it is.
        contract: from :func:`flowhooks.probe.probe`.
        arguments: arguments of every call of the pipeline, such as ``max_sequence_length``.
        size: ``height`` and ``width`` at which the contract was learned.
        frames: frames of a video, if the pipeline makes videos; default: the number in ``arguments``, or the pipeline's
            own.
        component: the network that is trained, for a pipeline with two; default: the first.
    """

    def __init__(
        self,
        pipe: Any,
        contract: PipelineContract,
        arguments: Mapping[str, Any],
        size: Mapping[str, int],
        component: str | None = None,
        frames: int | None = None,
    ):
        self.pipe = pipe
        self.contract = contract
        self.arguments = dict(arguments)
        self.component = component or contract.networks[0]
        if self.component not in contract.networks:
            raise ModelError(f"{contract.pipeline} has no network {self.component!r}; it has {list(contract.networks)}")
        #: The second time that a hook added to the network; None if none did, or if the network has its own.
        self.interval: Interval | None = None
        self.weight_names = WeightNames(partial(getattr, pipe, self.component))
        self._sizes = Sizes(pipe, self.arguments)
        self._size = self._sizes.of(size["height"], size["width"], frames)
        self._bound = False
        self._tokens: dict[Size, Tokens] = {}
        self._nulls: dict[Size, Condition] = {}

    @property
    def transformer(self) -> Any:
        """Return the network that is trained."""
        return getattr(self.pipe, self.component)

    @property
    def knows_intervals(self) -> bool:
        """Return whether the network uses ``r_sigma``: natively, or because a hook added it."""
        return self.interval is not None or self.native_second_time

    @property
    def native_second_time(self) -> bool:
        """Return whether the pipeline itself passes the end of a step to the network."""
        return any(time.second for time in self.contract.times)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Return the parts of the network, learned on first use."""
        from flowhooks.probe.anatomy import learn_anatomy

        return learn_anatomy(self.at(*self._size))

    @cached_property
    def streams(self) -> Streams:
        """Return where the image tokens are in what each block returns, learned on first use."""
        from flowhooks.probe.streams import learn_streams

        return learn_streams(self)

    @property
    def null_condition(self) -> Condition:
        """Return the conditioning of one sample without a prompt, encoded on first use."""
        if self._size not in self._nulls:
            # It depends on the size only where prompt and resolution are joint.
            known = None if self.contract.joint else next(iter(self._nulls.values()), None)
            self._nulls[self._size] = known or self.encode_prompts([""])
        return self._nulls[self._size]

    def encode_null_conditions(self) -> None:
        """Encode the condition without a prompt at every size known so far, so that text encoders may be parked
        afterwards."""
        for each in self.everywhere():
            each.null_condition  # noqa: B018

    def at(self, height: int, width: int, frames: int | None = None) -> FlowModel:
        """Return this model as if it had been probed at another size. Samples of two sizes may be packed to one shape;
        the returned model knows which of the two is meant."""
        size = self._sizes.of(height, width, self._size.frames if frames is None else frames)
        self.layout(*size)
        # Found by a walk through the network, so that the copy need not repeat it.
        self._typical_weight  # noqa: B018
        bound = copy.copy(self)
        bound._size, bound._bound = size, True
        return bound

    def everywhere(self) -> Iterator[FlowModel]:
        """Yield this model at each size known so far, starting with the one it was probed at."""
        for size in dict.fromkeys((self._size, *self._sizes.layouts)):
            yield self.at(*size)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Return the sigmas at which the trained network is called, see :meth:`PipelineContract.sigma_range`."""
        return self.contract.sigma_range(self.component)

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

    def shift(self, sample: Tensor) -> float:
        """Return the scheduler's own shift of sigma for samples ``[B, ...]`` of this resolution."""
        return self.layout_of(sample).shift

    def frames(self, sample: Tensor) -> int:
        """Return the number of latent frames of samples ``[B, ...]``; 1 for images."""
        shape = self.layout_of(sample).vae_shape
        return shape[1] if len(shape) == 4 else 1

    def predict(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Condition,
        *,
        r_sigma: Tensor | None = None,
        token_sigma: TokenSigma | None = None,
    ) -> Tensor:
        """Predict the velocity ``e - x0`` ``[B, ...]`` in the dtype of ``noisy``, for ``noisy`` ``[B, ...]`` at
        ``sigma`` ``[B]`` in [0, 1]; in [-1, 0) only where a hook trains the network at such times.

        Args:
            r_sigma: ``[B]``, the end of the interval whose average velocity is predicted; default: no interval, the
                velocity at ``sigma``.
            token_sigma: the sigma of each image token; its level 0, which text gets too, must be ``sigma``.

        Raises:
            ModelError: ``r_sigma`` for a network without a second time; ``token_sigma`` for one that cannot be
                given times per token, with the reason, or together with ``r_sigma``.
        """
        if r_sigma is not None and not self.knows_intervals:
            raise ModelError(
                f"{self.contract.pipeline}'s network takes one time; give it a second one with the hook "
                "`time_conditioning`"
            )
        if token_sigma is not None:
            check_token_sigma(token_sigma, sigma, r_sigma, self.tokens(noisy))
        layout = self.layout_of(noisy)

        def velocity(rows: list[int] | None, prompt: Mapping[str, Any]) -> Tensor:
            if rows is None:
                return self._forward(layout, noisy, sigma, r_sigma, token_sigma, prompt)
            end = None if r_sigma is None else picked(r_sigma, rows)
            levels = None if token_sigma is None else token_sigma.take(rows)
            return self._forward(layout, picked(noisy, rows), picked(sigma, rows), end, levels, prompt)

        return self._by_prompt(condition, noisy.device, velocity)

    @torch.no_grad()
    def features(
        self, noisy: Tensor, sigma: Tensor, condition: Condition, *, block: TokenStream, tokens: int
    ) -> Tensor:
        """Return ``[B, N, D]``, the N image tokens after a block, for ``noisy`` ``[B, ...]`` at ``sigma`` ``[B]``;
        later blocks do not run."""
        layout = self.layout_of(noisy)
        module = self.transformer.get_submodule(block.name)

        def held(rows: list[int] | None, prompt: Mapping[str, Any]) -> Tensor:
            some, at = (noisy, sigma) if rows is None else (picked(noisy, rows), picked(sigma, rows))
            arguments = {**self.fixed_arguments(layout, some, prompt), **self.times(layout, at, at)}
            with self._without_second_time():
                return block.of(output_of(module, lambda: self.transformer(**arguments)), tokens)

        return self._by_prompt(condition, noisy.device, held)

    def _by_prompt(
        self,
        condition: Condition,
        device: torch.device,
        call: Callable[[list[int] | None, Mapping[str, Any]], Tensor],
    ) -> Tensor:
        """Call ``call(rows, arguments)`` for each set of samples that can share a forward, and return ``[B, ...]``;
        rows of None are all."""
        groups = condition.to(device, self.dtype).groups()
        if len(groups) == 1:
            return call(None, groups[0][1])
        parts = torch.cat([call(rows, prompt) for rows, prompt in groups])
        order = whole_numbers([i for rows, _ in groups for i in rows], device)
        return torch.empty_like(parts).index_copy(0, order, parts)

    def tokens(self, sample: Tensor) -> Tokens:
        """Return the image tokens of samples ``[B, ...]`` of this resolution, learned on first use.

        Raises:
            ModelError: the network cannot be given a time per token, with the reason.
        """
        layout = self.layout_of(sample)
        size = self._sizes.size_of(layout)
        if size not in self._tokens:
            from flowhooks.probe.token_learning import learn_tokens

            self._tokens[size] = learn_tokens(self.at(*size), layout)
        return self._tokens[size]

    @cached_property
    def example_condition(self) -> Condition:
        """Return the conditioning of one sample with a prompt of several tokens, for learning; encoded on first use."""
        return self.encode_prompts(PROMPTS[1:])

    def example_condition_at(self, layout: Layout) -> Condition:
        """Return the example condition at a resolution; it is encoded again only where prompt and resolution are
        joint."""
        if not self.contract.joint:
            return self.example_condition
        return self.at(*self._sizes.size_of(layout)).encode_prompts(PROMPTS[1:])

    def _forward(
        self,
        layout: Layout,
        noisy: Tensor,
        sigma: Tensor,
        r_sigma: Tensor | None,
        token_sigma: TokenSigma | None,
        prompt: Mapping[str, Any],
    ) -> Tensor:
        span = None if r_sigma is None else Span(start=sigma, end=r_sigma, shift=layout.shift)
        end = sigma if r_sigma is None else r_sigma
        arguments = {**self.fixed_arguments(layout, noisy, prompt), **self.times(layout, sigma, end)}
        with nullcontext() if self.interval is None else self.interval.between(span):
            if token_sigma is None:
                output = self.transformer(**arguments)
            else:
                tokens = self._tokens[self._sizes.size_of(layout)]
                output = called_with_token_times(self, layout, tokens, arguments, token_sigma)
        return layout.from_network(output).to(noisy.dtype)

    def fixed_arguments(self, layout: Layout, noisy: Tensor, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Return the network's arguments for samples ``[B, ...]``, without its times."""
        resolution = {
            name: collate(rule, [moved(layout.arguments[name], noisy.device, None)] * len(noisy))
            for name, rule in self.contract.resolution_rules.items()
        }
        sample = {layout.sample_argument: moved(layout.to_network(noisy), None, self.dtype)}
        return nested_arguments({**self.contract.constants, **resolution, **prompt, **sample})

    def times(self, layout: Layout, sigma: Tensor, end: Tensor) -> dict[str, Tensor]:
        """Return the network's time arguments at ``sigma`` ``[B]``, with its second one at ``end``."""
        return {
            time.name: layout.spread(time.name, time.of(end if time.second else sigma, layout.shift))
            for time in self.contract.times
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Return the conditioning of ``len(prompts)`` samples, without guidance, as the pipeline itself makes it for
        one image of the model's size, which matters only where ``contract.joint``."""
        chunk = PROMPT_BATCH if self.contract.fixed_text else 1
        parts = []
        with (
            freed_once(self.pipe),
            without_side_effects(self.pipe, self.contract.networks_of(self.pipe)),
            self._without_second_time(),
        ):
            for start in range(0, len(prompts), chunk):
                some = prompts[start : start + chunk]
                seen = recorded_arguments(self.pipe, self.contract.networks_of(self.pipe), some, self.call())
                parts.append(Condition.of_batch(seen, self.contract.rules, len(some)))
        return parts[0].join(parts[1:])

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels ``[B, 3, H, W]`` in [-1, 1] to latents ``[B, ...]`` in sample space, the mode of the VAE's
        posterior.

        Pixels of videos are ``[B, 3, F, H, W]``.
        """
        height, width = pixels.shape[-2:]
        layout = self.layout(height, width, pixels.shape[2] if pixels.dim() == 5 else None)
        return layout.encode(self.pipe.vae, pixels)

    def decode(
        self, latents: Tensor, height: int | None = None, width: int | None = None, *, gradient: bool = False
    ) -> Tensor:
        """Decode latents ``[B, ...]`` in sample space to pixels ``[B, 3, H, W]`` (video ``[B, 3, F, H, W]``) in [-1,
        1]. Without ``height`` and ``width``, the resolution known for latents of this shape is used.

        Args:
            gradient: keep the graph from pixels to latents.
        """
        with torch.no_grad():
            layout = self.layout_of(latents) if height is None or width is None else self.layout(height, width)
        with torch.set_grad_enabled(gradient):
            return layout.decode(self.pipe.vae, latents)

    def pack_mask(self, mask: Tensor, like: Tensor) -> Tensor:
        """Bring a mask ``[B, 1, h, w]`` on the VAE's latent grid to a shape that broadcasts to ``like``."""
        return self.layout_of(like).pack_mask(sent(mask, like.device, like.dtype))

    def layout(self, height: int, width: int, frames: int | None = None) -> Layout:
        """Return the layout at a resolution in pixels, learned on first use; ``frames`` default to this model's own."""
        size = self._sizes.of(height, width, self._size.frames if frames is None else frames)
        if size not in self._sizes.layouts:
            with (
                without_side_effects(self.pipe, self.contract.networks_of(self.pipe)),
                encoded_once(self.pipe),
                self._without_second_time(),
            ):
                call = self.call(prompt="a", **self._sizes.arguments(size))
                follows, times = tuple(self.contract.resolution_rules), tuple(t.name for t in self.contract.times)
                self._sizes.layouts[size] = learn_layout(
                    self.pipe, self.contract.networks_of(self.pipe), call, follows, times
                )
        return self._sizes.layouts[size]

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

    @property
    def fingerprint(self) -> str:
        """Return a hash of everything that latents and embeddings depend on: classes, configs, and a sample of every
        weight except the networks'."""
        return fingerprint(self.pipe, self.contract, self.arguments)

    def call(self, **more: Any) -> dict[str, Any]:
        """Return arguments for a call of the pipeline at the probed size, without guidance; ``more`` overrides them."""
        return {
            **call_exceptions(self.pipe),
            **self.arguments,
            **self.contract.call,
            **self._sizes.arguments(self._size),
            **more,
        }

    def _without_second_time(self) -> AbstractContextManager[None]:
        """Let runs of the pipeline in the block ignore a second time that a hook added to the network."""
        return nullcontext() if self.interval is None else self.interval.between(None)

    def layout_of(self, sample: Tensor) -> Layout:
        """Return the layout of samples ``[B, ...]``.

        Raises:
            ModelError: their resolution was not learned yet, or two known ones have samples of this shape and the model
                was not made for either; see :meth:`at`.
        """
        return self._sizes.layout_of(tuple(sample.shape[1:]), self._size if self._bound else None)

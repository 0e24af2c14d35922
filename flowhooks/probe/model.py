"""Use a stock pipeline through its contract: predict velocities in the scheduler's sample space, encode prompts and
images, decode latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe import encoding
from flowhooks.probe.conditioning import DECODED, GIVEN, UNPROMPTED, Condition
from flowhooks.probe.contract import fingerprint
from flowhooks.probe.interval import Span
from flowhooks.probe.layout import Layout
from flowhooks.probe.runs import PROMPTS, output_of
from flowhooks.probe.sized import SizedModel
from flowhooks.probe.tokens import Tokens, TokenSigma, called_with_token_times, check_token_sigma
from flowhooks.probe.values import collate, moved, nested_arguments
from flowhooks.sharding import is_sharded
from flowhooks.transfer import picked, sent, whole_numbers

if TYPE_CHECKING:
    from flowhooks.probe.anatomy import Anatomy
    from flowhooks.probe.streams import Streams, TokenStream


class FlowModel(SizedModel):
    """Gives flowhooks its only access to a pipeline.

    For its arguments see :class:`~flowhooks.probe.sized.SizedModel`.
    """

    @property
    def knows_intervals(self) -> bool:
        """Return whether the network uses ``r_sigma``: natively, or because a hook added it."""
        return self.interval is not None or self.native_second_time

    @property
    def native_second_time(self) -> bool:
        """Return whether the pipeline itself passes the end of a step to the network."""
        return any(time.second for time in self.contract.times)

    @property
    def sharded(self) -> bool:
        """Return whether the network's weights are sharded over processes, so that all must call it equally often."""
        return is_sharded(self.transformer)

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
            alike = not self.contract.joint and not self.contract.references
            known = next(iter(self._nulls.values()), None) if alike else None
            self._nulls[self._size] = known or self.encode_examples([""])
        return self._nulls[self._size]

    def null_conditions(self, condition: Condition) -> Condition:
        """Return the conditioning of the same samples without their prompts, each with its own references.

        Raises:
            ModelError: the pipeline encodes prompts and references together, and the condition was made without this.
        """
        if self.contract.entangled:
            if (held := condition.unprompted()) is None:
                raise ModelError(
                    f"{self.contract.pipeline} encodes an empty prompt together with each sample's references, and "
                    "this condition does not hold that; make it with `model.encode_conditions(prompts, references, "
                    "unprompted=True)`"
                )
            return held
        null = self.null_condition
        if not self.contract.references:
            return null.join([null] * (condition.size - 1))
        null = null.only(self.contract.rules)
        own = condition.only([name for name in condition.rules if name not in self.contract.rules])
        return null.join([null] * (condition.size - 1)).merged(own)

    def encode_null_conditions(self) -> None:
        """Encode the condition without a prompt at every size known so far, so that text encoders may be parked
        afterwards; nothing where it is encoded with each sample's references."""
        if self.contract.entangled:
            return
        for each in self.everywhere():
            each.null_condition  # noqa: B018

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Return the sigmas at which the trained network is called, see :meth:`PipelineContract.sigma_range`."""
        return self.contract.sigma_range(self.component)

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
            own = self._layout_for(layout, prompt)
            if rows is None:
                return self._forward(own, noisy, sigma, r_sigma, token_sigma, prompt)
            end = None if r_sigma is None else picked(r_sigma, rows)
            levels = None if token_sigma is None else token_sigma.take(rows)
            return self._forward(own, picked(noisy, rows), picked(sigma, rows), end, levels, prompt)

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
            own = self._layout_for(layout, prompt)
            arguments = {**self.fixed_arguments(own, some, prompt), **self.times(own, at, at)}
            with self.without_second_time():
                return block.of(output_of(module, lambda: self.transformer(**arguments)), tokens, own.behind)

        return self._by_prompt(condition, noisy.device, held)

    def behind(self, sample: Tensor, condition: Condition) -> list[int]:
        """Return how many tokens of references follow those of the samples ``[B, ...]``, for each set of them that
        shares a forward, in the order of their forwards."""
        layout = self.layout_of(sample)
        return [self._layout_for(layout, condition.samples[rows[0]]).behind for rows, _ in condition.groups()]

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
        return self.encode_examples(PROMPTS[1:])

    def example_condition_at(self, layout: Layout) -> Condition:
        """Return the example condition at a resolution; it is encoded again only where it depends on that."""
        if not self.contract.joint and not self.contract.references:
            return self.example_condition
        return self.at(*self._sizes.size_of(layout)).encode_examples(PROMPTS[1:])

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
        rest = prompt.get(layout.sample_argument)
        sample = {layout.sample_argument: layout.to_network(noisy, self.dtype, rest)}
        arguments = {**self.contract.constants, **resolution, **prompt, **sample}
        for name in [name for name in arguments if name in (DECODED, GIVEN) or name.startswith(UNPROMPTED)]:
            del arguments[name]
        return nested_arguments(arguments)

    def times(self, layout: Layout, sigma: Tensor, end: Tensor) -> dict[str, Tensor]:
        """Return the network's time arguments at ``sigma`` ``[B]``, with its second one at ``end``."""
        return {
            time.name: layout.spread(time.name, time.of(end if time.second else sigma, layout.shift))
            for time in self.contract.times
        }

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Return the conditioning of ``len(prompts)`` samples, without guidance, as the pipeline itself makes it for
        one image of the model's size, which matters only where ``contract.joint``; with references, only the part that
        depends on the prompt."""
        return encoding.encode_prompts(self, prompts)

    def encode_references(self, references: Sequence[encoding.References]) -> Condition:
        """See :func:`flowhooks.probe.encoding.encode_references`."""
        return encoding.encode_references(self, references)

    def encode_conditions(
        self, prompts: Sequence[str], references: Sequence[encoding.References], *, unprompted: bool = False
    ) -> Condition:
        """See :func:`flowhooks.probe.encoding.encode_conditions`."""
        return encoding.encode_conditions(self, prompts, references, unprompted=unprompted)

    def encode_examples(self, prompts: Sequence[str]) -> Condition:
        """Return the conditioning of samples with these prompts, with the probe's own image where the pipeline takes
        one."""
        return encoding.encode_conditions(self, prompts, [self.example] * len(prompts))

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels ``[B, 3, H, W]`` in [-1, 1] to latents ``[B, ...]`` in sample space, the mode of the VAE's
        posterior.

        Pixels of videos are ``[B, 3, F, H, W]``; for sound it takes waveforms ``[B, channels, samples]``.
        """
        height, width = pixels.shape[-2:]
        if self.sound is not None:
            height = 1
        layout = self.layout(height, width, pixels.shape[2] if pixels.dim() == 5 else None)
        return layout.encode(self.pipe.vae, pixels)

    def decode(
        self,
        latents: Tensor,
        height: int | None = None,
        width: int | None = None,
        *,
        gradient: bool = False,
        condition: Condition | None = None,
    ) -> Tensor:
        """Decode latents ``[B, ...]`` in sample space to pixels ``[B, 3, H, W]`` (video ``[B, 3, F, H, W]``) in [-1,
        1]; of sound, waveforms ``[B, channels, samples]``. Without ``height`` and ``width``, the resolution known for
        latents of this shape is used. Frames that the pipeline drops are dropped.

        Args:
            gradient: keep the graph from pixels to latents.
            condition: of the same samples; needed where the VAE gets a part of their references too.
        """
        with torch.no_grad():
            layout = self.layout_of(latents) if height is None or width is None else self.layout(height, width)
        with torch.set_grad_enabled(gradient):
            rest = self._decoded_rest(layout, condition, latents)
            return without_dropped(layout.decode(self.pipe.vae, latents, rest), self.contract.dropped)

    def _decoded_rest(self, layout: Layout, condition: Condition | None, latents: Tensor) -> Tensor | None:
        if layout.vae.whole:
            return None
        if not isinstance(condition, Condition):
            raise ModelError(
                f"{self.contract.pipeline} decodes a part of each sample's references beside its latents; pass "
                "`condition` to decode them"
            )
        parts = []
        for sample, each in zip(latents.split(1), condition.samples, strict=True):
            own = self._layout_for(layout, each).vae
            parts.append(own.apply(sample.float()) if own.whole else sent(each[DECODED], latents.device))
        return torch.cat(parts)

    def seen(self, sample: Tensor, condition: Condition) -> Tensor | None:
        """Return which numbers of samples ``[B, ...]`` reach the network, 0 or 1 in their shape; None where all do. The
        others (those of a given first frame) train nothing and must weigh nothing."""
        if not self.contract.references or not isinstance(condition, Condition):
            return None
        layout = self.layout_of(sample)
        masks = [self._layout_for(layout, each).seen for each in condition.samples]
        if all(mask is None for mask in masks):
            return None
        every = torch.ones(layout.sample_shape, dtype=torch.bool)
        return sent(torch.stack([every if mask is None else mask for mask in masks]), sample.device, sample.dtype)

    def pack_mask(self, mask: Tensor, like: Tensor) -> Tensor:
        """Bring a mask ``[B, 1, h, w]`` on the VAE's latent grid, or ``[B, 1, t]`` of sound, to a shape that broadcasts
        to ``like``."""
        return self.layout_of(like).pack_mask(sent(mask, like.device, like.dtype))

    @property
    def fingerprint(self) -> str:
        """Return a hash of everything that latents and embeddings depend on: classes, configs, and a sample of every
        weight except the networks'."""
        return fingerprint(self.pipe, self.contract, self.arguments)


def without_dropped(pixels: Tensor, frames: int) -> Tensor:
    """Return videos ``[B, 3, F, H, W]`` without their first frames; an image as it is."""
    return pixels[:, :, frames:] if frames and pixels.dim() == 5 else pixels

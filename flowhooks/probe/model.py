"""A stock pipeline, seen through its contract: velocities in the scheduler's sample space, prompts and pictures in
and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.probe.conditioning import Condition, recorded_arguments
from flowhooks.probe.contract import PipelineContract, evaluating, learn_contract
from flowhooks.probe.layout import Layout, learn_layout
from flowhooks.probe.recorder import Recording, encoded_once, quiet, recording_calls, run

PROMPT_BATCH = 16


class FlowModel:
    """The one object through which flowhooks uses a pipeline.

    Args:
        pipe: a Diffusers flow-matching pipeline, used as it is.
        contract: from :func:`flowhooks.probe.probe`.
        arguments: what every call of the pipeline gets, such as ``max_sequence_length``.
    """

    def __init__(self, pipe: Any, contract: PipelineContract, arguments: Mapping[str, Any] | None = None):
        self.pipe = pipe
        self.contract = contract
        self.arguments = dict(arguments or {})
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._layout_of_shape: dict[tuple[int, ...], Layout] = {}

    @property
    def transformer(self) -> nn.Module:
        return getattr(self.pipe, self.contract.transformer)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's own weights."""
        return next(self.transformer.parameters()).dtype

    @property
    def shift(self) -> float:
        """The scheduler's static shift of sigma."""
        if self.contract.shift is None:
            raise ModelError(
                f"{self.contract.pipeline}'s scheduler shifts sigma by resolution; give timestep_schedule a `shift` "
                f"as a number"
            )
        return self.contract.shift

    def predict(self, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Velocity ``e - x0`` ``[B, ...]`` in the dtype of ``noisy``, on ``noisy`` ``[B, ...]`` at ``sigma`` ``[B]``
        in [0, 1]."""
        contract = self.contract
        output = self.transformer(
            **contract.constants,
            **condition.to(noisy.device, self.dtype).arguments,
            **{contract.sample_argument: noisy.to(self.dtype), contract.time_argument: contract.time(sigma.float())},
        )
        velocity = output[0] if isinstance(output, tuple) else output.sample
        return contract.sign * velocity.to(noisy.dtype)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Conditioning of ``len(prompts)`` samples, without guidance, as the pipeline itself makes it."""
        parts = []
        with quiet(self.pipe), evaluating(self.transformer):
            for start in range(0, len(prompts), PROMPT_BATCH):
                chunk = prompts[start : start + PROMPT_BATCH]
                call = {**self.arguments, **self.contract.call, "num_inference_steps": 1}
                seen = recorded_arguments(self.pipe, self.transformer, chunk, call)
                parts.append(Condition({name: seen[name] for name in self.contract.prompt_arguments}))
        return parts[0].join(parts[1:])

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, 3, H, W]`` in [-1, 1] -> latents ``[B, ...]`` in sample space; the mode of the VAE's
        posterior."""
        vae = self.pipe.vae
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        return self.layout(*pixels.shape[-2:]).from_vae(posterior.mode().float())

    @torch.no_grad()
    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Latents ``[B, ...]`` in sample space -> pixels ``[B, 3, H, W]`` in [-1, 1]."""
        vae = self.pipe.vae
        z = self.layout(height, width).to_vae(latents.float())
        return vae.decode(z.to(vae.device, vae.dtype)).sample.float()

    def pack_mask(self, mask: Tensor, like: Tensor) -> Tensor:
        """A mask ``[B, 1, h, w]`` on the VAE's latent grid, in sample space, broadcastable to ``like`` ``[B, ...]``."""
        mask = mask.to(like.device, like.dtype)
        layout = self._layout_of_shape.get(tuple(like.shape[1:]))
        if layout is None or layout.ordered:
            if mask.shape[-2:] != like.shape[-2:]:
                raise ModelError(
                    f"the mask's grid is {tuple(mask.shape[-2:])}, the latents' is {tuple(like.shape[-2:])}"
                )
            return mask
        return layout.pack(mask.expand(-1, *layout.vae_shape))

    def layout(self, height: int, width: int) -> Layout:
        """The latent layout at a resolution in pixels, learnt on first use."""
        if (height, width) not in self._layouts:
            layout = self._learn_layout(height, width)
            self._layouts[height, width] = self._layout_of_shape[layout.sample_shape] = layout
        return self._layouts[height, width]

    @property
    def fingerprint(self) -> str:
        """Hash of what decides latents and embeddings: classes, configs, and a sample of every weight but the
        transformer's."""
        digest = hashlib.sha256(
            json.dumps([self.contract.pipeline, self.arguments], sort_keys=True, default=str).encode()
        )
        for name, part in sorted(self.pipe.components.items()):
            if isinstance(part, nn.Module) and name != self.contract.transformer:
                digest.update(f"{name} {type(part).__name__} {_settings(part)}".encode())
                for key, weight in part.state_dict().items():
                    flat = weight.detach().flatten()
                    digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
                    digest.update(flat[:: max(1, len(flat) // 64)].double().cpu().numpy().tobytes())
            elif hasattr(part, "get_vocab"):
                digest.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
        return digest.hexdigest()

    def _learn_layout(self, height: int, width: int) -> Layout:
        call = {**self.arguments, **self.contract.call, "prompt": "a", "height": height, "width": width}
        with quiet(self.pipe), evaluating(self.transformer), encoded_once(self.pipe):
            seen = Recording()
            with recording_calls(self.transformer, seen, stop=True):
                run(self.pipe, **{**call, "num_inference_steps": 1, "output_type": "latent"})
            output = torch.zeros_like(seen.calls[0][self.contract.sample_argument])
            return learn_layout(self.pipe, self.transformer, output, call)


def _settings(part: nn.Module) -> str:
    """A component's config without what tells where it was loaded from or by which version."""
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
    return json.dumps(kept, sort_keys=True, default=str)


def probe(
    pipe: Any, *, height: int | None = None, width: int | None = None, arguments: Mapping[str, Any] | None = None
) -> FlowModel:
    """Learn a pipeline's contract by running it for a few steps, and verify it.

    Args:
        pipe: a Diffusers flow-matching pipeline.
        height, width: pixels of the run; the pipeline's own default when left out.
        arguments: what every call of the pipeline gets.

    Raises:
        ModelError: with what could not be learnt.
    """
    size = {} if height is None or width is None else {"height": height, "width": width}
    return FlowModel(pipe, learn_contract(pipe, dict(arguments or {}), size), arguments)

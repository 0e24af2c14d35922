"""Take the mode of the latents that a VAE encodes an image to, where a pipeline would draw from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from flowhooks.splice import restore_attributes


@contextmanager
def at_mode(vae: Any, generator: Any) -> Iterator[None]:
    """Give an image that is encoded inside the block the mode of its posterior, where the pipeline would draw from it
    with the call's ``generator``, which moves on as if it had. Draws under a seed of the pipeline's own stay."""
    if not isinstance(vae, nn.Module) or not hasattr(vae, "encode"):
        yield
        return
    encode: Any = vae.encode
    own = generator if isinstance(generator, (list, tuple)) else [generator]

    def encoded(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        posterior = output[0] if isinstance(output, tuple) else getattr(output, "latent_dist", None)
        if posterior is not None and hasattr(posterior, "sample") and hasattr(posterior, "mode"):
            posterior.sample = partial(_mode_of, posterior, posterior.sample, own)
        return output

    with restore_attributes(vae):
        vars(vae)["encode"] = encoded
        yield


def _mode_of(posterior: Any, sample: Callable[..., Tensor], own: Sequence[Any], generator: Any = None) -> Tensor:
    drawn = sample(generator)
    return posterior.mode() if generator is None or any(generator is each for each in own) else drawn


def posterior_mode(encoded: Any) -> Tensor:
    """Return the mode of the latents that a VAE's ``encode`` returned, without randomness."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent

"""One progress bar for the short plain loops of this room, and silence from the libraries below."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


def wanted(progress: bool | None) -> bool:
    """None asks for bars only where somebody may be watching."""
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def bar(title: str, steps: int, progress: bool | None) -> Iterator[Callable[..., object]]:
    """A function to call after each of `steps` steps, or with a number after several."""
    with tqdm(total=steps, desc=title, unit="step", disable=not wanted(progress)) as shown:
        yield shown.update


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Diffusers and transformers print errors only inside the block, and none of their own loading bars.

    What they would say is about the third encoder, which is no T5, and about encoders that a LoRA has nothing for.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    found = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in libraries]
    try:
        for each in libraries:
            each.set_verbosity_error()
            each.disable_progress_bar()
        yield
    finally:
        for each, verbosity, bars in found:
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()

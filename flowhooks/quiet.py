"""What the libraries below print and nobody who trains can act on: kept off the screen, here and nowhere else.

What a user can act on stays: a prompt that is cut off, weights that are missing. ``--debug`` shows all of it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from importlib import import_module
from typing import Any

#: Logger -> what it says in vain. A filter on a parent does not see what its children log.
NOISE = {
    "transformers.utils.import_utils": r"requires torchvision",
    "transformers.utils.generic": r"is deprecated",
    "transformers.configuration_utils": r"is deprecated",
    "transformers.modeling_utils": r"is deprecated",
    "huggingface_hub.utils._http": r"Retrying in|thrown while requesting",
    "huggingface_hub.file_download": r"Xet Storage is enabled",
    "diffusers.pipelines.pipeline_utils": r"<class 'NoneType'> cannot be saved",
    "diffusers.loaders.lora_base": r"No LoRA keys associated",
    "accelerate.utils.other": r"below the recommended minimum",
    "datasets.load": r"Using the latest cached version",
}
_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_LIBRARIES = ("diffusers.utils.logging", "transformers.utils.logging")


@contextmanager
def quiet(*, bars: bool) -> Iterator[None]:
    """A command's libraries inside the block, imported before or not.

    Args:
        bars: let them show bars while they load.
    """
    with ExitStack() as stack:
        for name, said in NOISE.items():
            stack.enter_context(_filtered(logging.getLogger(name), re.compile(said)))
        stack.enter_context(warnings.catch_warnings())
        # They speak to programmers, of a release to come.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Diffusers passes it on, and the Hub's library has forgotten it.
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)
        if not bars:
            stack.enter_context(_without_bars())
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Diffusers and transformers print errors only inside the block, and none of their own loading bars."""
    with _without_bars(), errors_only(*_LIBRARIES):
        yield


@contextmanager
def errors_only(*modules: str) -> Iterator[None]:
    """Inside the block, libraries with such a module of logging print errors only."""
    libraries = [import_module(each) for each in modules]
    before = [each.get_verbosity() for each in libraries]
    try:
        for each in libraries:
            each.set_verbosity_error()
        yield
    finally:
        for each, verbosity in zip(libraries, before, strict=True):
            each.set_verbosity(verbosity)


@contextmanager
def _filtered(logger: logging.Logger, said: re.Pattern[str]) -> Iterator[None]:
    def tells(record: logging.LogRecord) -> bool:
        return said.search(record.getMessage()) is None

    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Libraries that are imported already are told by their own switch, others by what they read when they are; and no
    bar of tqdm is shown whose maker does not say that it is to be."""
    there: list[Any] = [sys.modules[name] for name in _LIBRARIES if name in sys.modules]
    shown = [each for each in there if each.is_progress_bar_enabled()]
    before = {name: os.environ.get(name) for name in _BARS}
    bar = sys.modules["tqdm.std"].tqdm if "tqdm.std" in sys.modules else None
    init = None if bar is None else bar.__init__
    try:
        for each in shown:
            each.disable_progress_bar()
        os.environ.update(_BARS)
        if bar is not None:
            bar.__init__ = partialmethod(init, disable=True)
        yield
    finally:
        if bar is not None:
            bar.__init__ = init
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for each in shown:
            each.enable_progress_bar()

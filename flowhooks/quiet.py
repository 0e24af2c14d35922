"""Hide messages of libraries that users cannot act on; this is the only place that does.

Messages that users can act on stay: missing weights and, in one line with a count, texts that are cut off.
 ``--debug`` shows all of it.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partialmethod
from importlib import import_module
from typing import Any

#: Logger, or the parent of several -> pattern of its messages to hide.
NOISE = {
    "transformers.utils.import_utils": r"requires torchvision",
    "transformers.utils.generic": r"is deprecated",
    "transformers.configuration_utils": r"is deprecated",
    "transformers.modeling_utils": r"is deprecated",
    "huggingface_hub.utils._http": r"Retrying in|thrown while requesting",
    "huggingface_hub.file_download": r"Xet Storage is enabled",
    "diffusers.pipelines.pipeline_utils": (
        r"<class 'NoneType'> cannot be saved|Expected types for|cannot run with `cpu`"
    ),
    # One line for each tokenizer, with the caption in it; `quiet` prints one line for all.
    "diffusers.pipelines": r"of your input was truncated",
    "transformers.tokenization_utils_base": r"Token indices sequence length is longer",
    "diffusers.loaders.lora_base": r"No LoRA keys associated",
    "accelerate.utils.other": r"below the recommended minimum",
    # Kernels that quantised layers here do without.
    "torchao": r"Failed to load \S+\.so",
    "bitsandbytes.backends": r"from kernels-community",
    "diffusers.quantizers": r"Unable to import `torchao` Tensor objects",
    "torch.utils._pytree": r"is an Enum subclass",
    "datasets.load": r"Using the latest cached version",
}
_CUT = re.compile(r"of your input was truncated[^:]*: (?P<rest>.*)", re.DOTALL)
#: Special tokens, which a tokenizer appends to a short text beside a long one.
_SPECIAL = re.compile(r"<[^<>\s]*>|\s")
_PROMPTS: ContextVar[Sequence[str]] = ContextVar("prompts", default=())
_cut_off: set[str] = set()
_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_LIBRARIES = ("diffusers.utils.logging", "transformers.utils.logging")


@contextmanager
def quiet(*, bars: bool) -> Iterator[None]:
    """Keep the libraries of a command quiet inside the block, whether they are imported already or not.

    Args:
        bars: whether they may show bars while they load.
    """
    with ExitStack() as stack:
        stack.enter_context(_filtered())
        stack.enter_context(warnings.catch_warnings())
        # These are for programmers, about a future release.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Diffusers passes it on, and the Hub's library no longer supports it.
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks", category=UserWarning)
        if not bars:
            stack.enter_context(without_bars())
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let Diffusers and transformers print errors only inside the block, and none of their own loading bars."""
    with without_bars(), errors_only(*_LIBRARIES):
        yield


@contextmanager
def errors_only(*modules: str) -> Iterator[None]:
    """Let libraries with such a module of logging print errors only inside the block."""
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
def encoding(prompts: Sequence[str]) -> Iterator[None]:
    """Let a text that a pipeline cuts off inside the block count as the one of ``prompts`` at its place."""
    token = _PROMPTS.set(prompts)
    try:
        yield
    finally:
        _PROMPTS.reset(token)


def cut_off() -> str | None:
    """Return a sentence that counts the texts that were cut off since the last call; None without any."""
    count = len(_cut_off)
    _cut_off.clear()
    texts = "1 text is" if count == 1 else f"{count:,} texts are"
    return f"{texts} longer than a text encoder reads; the rest is cut off" if count else None


def _cut_texts(rest: str) -> Iterator[str]:
    """Yield the texts of which something was cut off, by what a pipeline printed of their ``rest``: a list with one
    string for each prompt, or one string."""
    try:
        parts = ast.literal_eval(rest)
    except (ValueError, SyntaxError):
        parts = [rest]
    parts = [parts] if isinstance(parts, str) else parts
    prompts = _PROMPTS.get()
    for text, part in zip(prompts if len(prompts) == len(parts) else parts, parts, strict=True):
        if _SPECIAL.sub("", part):
            yield text


@contextmanager
def _filtered() -> Iterator[None]:
    """Drop :data:`NOISE` inside the block. A warning that a text is cut off is replaced by one line at the end, which
    counts the texts, unless :func:`cut_off` returned it before."""
    noise = [(name, re.compile(said)) for name, said in NOISE.items()]
    usual = logging.Logger.handle

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        # A filter on a parent would not see what its children log, and each pipeline has its own logger.
        message = record.getMessage()
        if (found := _CUT.search(message)) is not None and record.name.startswith("diffusers.pipelines"):
            _cut_off.update(_cut_texts(found["rest"]))
        if not any(f"{record.name}.".startswith(f"{name}.") and said.search(message) for name, said in noise):
            usual(logger, record)

    # Not a filter on the handlers: the libraries create theirs when imported, perhaps inside the block.
    setattr(logging.Logger, "handle", handle)  # noqa: B010
    _cut_off.clear()
    try:
        yield
    finally:
        setattr(logging.Logger, "handle", usual)  # noqa: B010
        if sentence := cut_off():
            sys.stderr.write(f"warning: {sentence}\n")


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch progress bars off: imported libraries by their own switch, others by the variables they read when
    imported; and hide every tqdm bar whose creator does not explicitly request it."""
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

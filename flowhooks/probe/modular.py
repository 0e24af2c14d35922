"""Give a modular pipeline the face of a classic one: a call with a signature, one text encoding, results as a tuple.

The face is an object of its own. It hands the blocks itself in place of their pipeline, and keeps what they set; the
pipeline is not changed, except where a component is replaced.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines.modular_pipeline import PipelineState

from flowhooks.probe.recorder import guiders_of
from flowhooks.splice import restore_attributes, splice

#: What the blocks of Diffusers call the images, videos or sound that they make.
RESULTS = ("images", "videos", "audio", "audios")
#: Diffusers' name of the block that encodes prompts.
_TEXT_BLOCK = "text_encoder"
_NEGATIVE = "negative_prompt"
#: What a face may learn: that blocks encode the negative prompt in any case.
_UNCONDITIONAL = "unconditional"
#: Marks the class of that block while it asks the face.
_ASKING = "_asks_face"
#: Arguments of every classic call; a block that has no use for one lacks it.
_OF_EVERY_CALL = ("generator", "output_type", "return_dict")


def faced(pipe: Any, arguments: Collection[str] = ()) -> Any:
    """Return a pipeline that is called like a classic one: a face of a modular one, any other as it is.

    Args:
        pipe: a pipeline, or the face of one.
        arguments: names of arguments of its calls beside the prompt; they choose among its blocks.
    """
    pipe = bare(pipe)
    return _face_class(type(pipe), pipe, arguments)(pipe) if isinstance(pipe, ModularPipeline) else pipe


def bare(pipe: Any) -> Any:
    """Return the pipeline behind a face; any other as it is."""
    return vars(pipe)["_pipe"] if isinstance(pipe, PipelineFace) else pipe


class PipelineFace:
    """Stands for a modular pipeline. Attributes that it does not have are the pipeline's; a component that is set is
    set there.

    Args:
        pipe: the modular pipeline.
    """

    def __init__(self, pipe: ModularPipeline):
        # What is learnt in a call outlives whoever restores the attributes of a pipeline after it.
        vars(self).update(_pipe=pipe, _progress_bar_config={}, _learnt={})

    @property
    def requires_unconditional_embeds(self) -> bool:
        """Return whether blocks encode the negative prompt. Those of some pipelines need it though the guider is
        off, which is found by trying."""
        own = getattr(vars(self)["_pipe"], "requires_unconditional_embeds", False)
        return bool(own or vars(self)["_learnt"].get(_UNCONDITIONAL))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_pipe":
            raise AttributeError(name)
        return getattr(vars(self)["_pipe"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        pipe = vars(self)["_pipe"]
        if name in pipe.components:
            setattr(pipe, name, value)
        else:
            vars(self)[name] = value

    def to(self, *args: Any, **kwargs: Any) -> PipelineFace:
        """Move the components, as the pipeline does."""
        vars(self)["_pipe"].to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Keep settings for the progress bars of every block, which they have during a call."""
        vars(self)["_progress_bar_config"] = config

    def maybe_free_model_hooks(self) -> None:
        """Do nothing: what a components manager offloads comes back by itself."""

    def register_modules(self, **components: Any) -> None:
        """Replace components, as classic pipelines do."""
        for name, component in components.items():
            setattr(self, name, component)

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        """Write the pipeline, and leave its own record of where its parts are from as it is."""
        pipe = vars(self)["_pipe"]
        with restore_attributes(pipe):
            vars(pipe)["_internal_dict"] = deepcopy(pipe._internal_dict)
            pipe.save_pretrained(str(folder), overwrite_modular_index=True, **options)

    @torch.no_grad()
    def encode_prompt(self, **kwargs: Any) -> tuple[Any, ...]:
        """Return what the pipeline's block for prompts makes of its inputs, in the order of its outputs."""
        block = vars(self)["_pipe"]._blocks.sub_blocks[_TEXT_BLOCK]
        state = PipelineState()
        for name, value in kwargs.items():
            state.set(name, value)
        kind: Any = type(block)
        while _ASKING in vars(kind):
            kind = kind.__base__
        kind.__call__(block, self, state)
        return tuple(state.get(each.name) for each in block.intermediate_outputs)


def _face_class(kind: type, pipe: Any, arguments: Collection[str]) -> type[PipelineFace]:
    """Return a class of faces with the name of a modular pipeline's class and the signature of its blocks."""
    blocks = _chosen(pipe._blocks, arguments)
    named = {each.name: each.default for each in blocks.inputs if each.name}
    parameters = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=each) for name, each in named.items()),
    ]

    def with_gradient(self: PipelineFace, **call: Any) -> tuple[Any, ...]:
        with _undecorated(bare(self)._blocks):
            return _called(self, {**named, **_taken(kind, named, call)})

    @torch.no_grad()
    def plain(self: PipelineFace, **call: Any) -> tuple[Any, ...]:
        return _called(self, {**named, **_taken(kind, named, call)})

    def __call__(self: PipelineFace, **call: Any) -> tuple[Any, ...]:
        return plain(self, **call)

    # Callers that want a graph look for what `torch.no_grad` wraps.
    vars(__call__)["__wrapped__"] = with_gradient
    vars(__call__)["__signature__"] = vars(with_gradient)["__signature__"] = inspect.Signature(parameters)
    body = {"__call__": __call__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (PipelineFace,), body)


def _chosen(blocks: Any, arguments: Collection[str]) -> Any:
    """Return the blocks that run for a prompt and these arguments, where a pipeline chooses by its inputs."""
    try:
        return blocks.get_execution_blocks(**dict.fromkeys(arguments, True), prompt="a") or blocks
    except (ValueError, KeyError, AttributeError, TypeError):
        return blocks


def _taken(kind: type, named: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in call if name not in named and name not in _OF_EVERY_CALL]
    if unknown:
        raise TypeError(f"{kind.__name__}'s blocks take no argument {unknown[0]!r}")
    return {name: value for name, value in call.items() if name in named or name in _OF_EVERY_CALL}


#: What blocks raise that miss the embeddings of the negative prompt.
_FAULTS = (UnboundLocalError, AttributeError, KeyError, TypeError, ValueError)


class _Decoding(Exception):
    """Ends a call that was to return latents: not every pipeline's blocks can."""

    def __init__(self, latents: Any):
        self.latents = latents


def _called(face: PipelineFace, call: Mapping[str, Any]) -> tuple[Any, ...]:
    """Run the blocks, and return what they made as classic pipelines return it."""
    learnt = vars(face)["_learnt"]
    if face.requires_unconditional_embeds:
        return _run(face, call)
    generators = [g for g in _listed(call.get("generator")) if isinstance(g, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        return _run(face, call)
    except _FAULTS as error:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        learnt[_UNCONDITIONAL] = True
        try:
            return _run(face, call)
        except _FAULTS:
            del learnt[_UNCONDITIONAL]
            raise error from None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _run(face: PipelineFace, call: Mapping[str, Any]) -> tuple[Any, ...]:
    pipe = bare(face)
    latent = call.get("output_type") == "latent"
    given = {**call, **_negative(pipe, call), **({"output_type": "pt"} if latent else {})}
    state = PipelineState()
    for each in pipe._blocks.inputs:
        if each.name:
            state.set(each.name, given.get(each.name, each.default), each.kwargs_type)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(_progress(pipe._blocks, vars(face)["_progress_bar_config"]))
        stack.enter_context(_prompts_as_given(pipe._blocks))
        stack.enter_context(_text_from(face, pipe._blocks))
        if latent:
            stack.enter_context(_stopped_at(pipe.vae))
        try:
            _, state = pipe._blocks(face, state)
        except _Decoding as stopped:
            return (stopped.latents,)
    return tuple(made for made in map(state.get, RESULTS) if made is not None)


def _negative(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return an empty negative prompt where none is given and a guider guides: without, the blocks of some pipelines
    guide by the prompt itself."""
    prompt = call.get("prompt")
    guides = any(getattr(each, "_enabled", False) and each.num_conditions > 1 for each in guiders_of(pipe))
    if not guides or call.get(_NEGATIVE) is not None or prompt is None:
        return {}
    return {_NEGATIVE: "" if isinstance(prompt, str) else [""] * len(prompt)}


def _every_block(blocks: Any) -> Iterator[Any]:
    yield blocks
    for block in (getattr(blocks, "sub_blocks", None) or {}).values():
        yield from _every_block(block)


@contextmanager
def _undecorated(blocks: Any) -> Iterator[None]:
    """Let every block compute with the caller's setting of gradients inside: each switches them off by itself."""
    with ExitStack() as stack:
        for block in _every_block(blocks):
            kind: Any = type(block)
            raw = getattr(kind.__call__, "__wrapped__", None)
            if raw is not None:
                stack.enter_context(splice(block, __call__=raw))
        yield


@contextmanager
def _text_from(face: PipelineFace, blocks: Any) -> Iterator[None]:
    """Let the block for prompts ask the face, whose ``encode_prompt`` may know them already."""
    block = (getattr(blocks, "sub_blocks", None) or {}).get(_TEXT_BLOCK)
    if block is None:
        yield
        return

    def __call__(self: Any, components: Any, state: Any) -> tuple[Any, Any]:
        given = {each.name: state.get(each.name) for each in self.inputs if each.name}
        for each, value in zip(self.intermediate_outputs, face.encode_prompt(**given), strict=True):
            state.set(each.name, value, each.kwargs_type)
        return components, state

    with splice(block, __call__=__call__, **{_ASKING: __call__}):
        yield


@contextmanager
def _prompts_as_given(blocks: Any) -> Iterator[None]:
    """Leave out blocks that rewrite the prompt: a caption is encoded as it is."""
    with ExitStack() as stack:
        for block in (getattr(blocks, "sub_blocks", None) or {}).values():
            if any(each.name == "prompt" for each in block.intermediate_outputs):
                stack.enter_context(splice(block, __call__=lambda self, components, state: (components, state)))
        yield


@contextmanager
def _progress(blocks: Any, config: Mapping[str, Any]) -> Iterator[None]:
    """Set the progress bars of all blocks inside; a pipeline's own method reaches the first level only."""
    barred = [block for block in _every_block(blocks) if hasattr(block, "progress_bar")]
    with restore_attributes(*barred):
        for block in barred:
            block._progress_bar_config = dict(config)
        yield


@contextmanager
def _stopped_at(vae: Any) -> Iterator[None]:
    decode: Callable[..., Any] | None = vars(vae).get("decode")

    def stopped(z: Any, *args: Any, **kwargs: Any) -> Any:
        raise _Decoding(z)

    with restore_attributes(vae):
        # A recorder that watches what is decoded goes first.
        if decode is None:
            vars(vae)["decode"] = stopped
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracebacks that blocks log of every exception: a run that is stopped on purpose ends by one."""
    logger = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Let a run draw samples on a network without numbers: the pipeline's loop, its text encoders and its VAE included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from inspect import signature
from typing import Any

import torch
from accelerate.utils import send_to_device

from flowhooks.kernel.session import Session
from flowhooks.memory.live import Live, storages
from flowhooks.probe import FlowModel
from flowhooks.probe.values import map_tensors, tensors_in
from flowhooks.sampling.skipping import map_output, shape_of
from flowhooks.splice import restore_attributes, splice
from flowhooks.stage import ENCODERS, VAE, Stage

DRAWING, DECODING = "the drawing of samples", "the decoding and judging of samples"
#: Chunks of a step that are counted: the first, and one beside whose graph the gradients of another are. Others are
#: like the second.
CHUNKS = 2


class CountedStage(Stage):
    """Says when which component is on the device, and moves nothing.

    Args:
        model: whose network, and VAE, are on the device to count on; the text encoders compute on the CPU.
        live: counts the bytes there; the network's are counted already.
        part: name of the network's bytes there, all of which leave with it.
        encoders: bytes of the text encoders' weights.
    """

    def __init__(self, model: FlowModel, live: Live, part: str, encoders: int):
        super().__init__(model.pipe, model.device)
        self.here, self._home, self._live = {model.component}, model.component, live
        self._names = {model.component: part}
        self._sizes = {model.component: live.held[part], ENCODERS: encoders}
        self._phase = live.phase

    @contextmanager
    def open(self) -> Iterator[None]:
        with super().open():
            for part in self.parts.get(ENCODERS, {}).values():
                part._hf_hook.execution_device = torch.device("cpu")  # type: ignore[union-attr]
            yield

    def come(self, who: str) -> bool:
        super().come(who)
        # Nothing was moved, so arguments need not be.
        return False

    def _move(self, who: str, device: torch.device) -> None:
        comes = who not in self.here
        if who not in self._sizes:
            held = [t for part in self.parts[who].values() for t in (*part.parameters(), *part.buffers())]
            self._sizes[who] = sum({s._cdata: s.nbytes() for t in held for s in storages(t)}.values())
        size = self._sizes[who]
        if who == VAE and comes:
            self._phase, self._live.phase = self._live.phase, DECODING
        elif who == VAE:
            self._live.phase = self._phase
        self._live.add(self._names.get(who, who), size if comes else -size)


@contextmanager
def drawing_without_numbers(
    model: FlowModel, live: Live, part: str, encoders: int, dtype: torch.dtype
) -> Iterator[None]:
    """Let the pipeline's loop run inside the block, on whatever device its network is.

    Prompts are encoded by the twin's text encoders, on the CPU; times are numbers there too, since schedulers read
    them. On the meta device the network answers without computing where it drew alike before.

    Args:
        part, encoders: see :class:`CountedStage`.
        dtype: that of the conditions that the pipeline's own text encoders would give.
    """
    pipe, network, device = model.pipe, model.transformer, model.device
    with ExitStack() as stack:
        stack.enter_context(restore_attributes(pipe, network))
        if device.type == "meta":
            network.forward = _answering(network.forward, live, device)
        stack.enter_context(CountedStage(model, live, part, encoders).open())
        # A property has no signature of a method's.
        where: Any = property(lambda self: device)
        stack.enter_context(splice(pipe, _execution_device=where))
        stack.enter_context(splice(pipe.scheduler, set_timesteps=_times_on_cpu(type(pipe.scheduler).set_timesteps)))
        if hasattr(pipe, "encode_prompt"):
            pipe.encode_prompt = _on_cpu(pipe.encode_prompt, dtype)
        yield


@contextmanager
def fewer_chunks(session: Session, live: Live) -> Iterator[None]:
    """Inside the block a rollout is drawn as a whole, and few of its states are visited."""
    source, phase = session.source, live.phase
    if source is None:
        yield
        return
    drawn = source.source

    def draw(step: Any) -> Any:
        live.phase = DRAWING
        chunks = drawn(step)
        live.phase = phase
        return chunks[:CHUNKS]

    with restore_attributes(source):
        vars(source)["source"] = draw
        yield


def _times_on_cpu(real: Any) -> Any:
    known = signature(real)

    @wraps(real)
    def set_timesteps(*args: Any, **kwargs: Any) -> Any:
        # The device may come by its place or by its name.
        given = known.bind(*args, **kwargs)
        given.arguments["device"] = "cpu"
        return real(*given.args, **given.kwargs)

    return set_timesteps


def _on_cpu(encode: Any, dtype: torch.dtype) -> Any:
    known = signature(encode)

    @wraps(encode)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        given = known.bind(*args, **kwargs)
        if "device" in known.parameters:
            given.arguments["device"] = torch.device("cpu")
        found = encode(*given.args, **given.kwargs)
        return map_tensors(found, lambda t: t.to(dtype) if t.is_floating_point() else t)

    return encode_prompt


def _answering(forward: Any, live: Live, device: torch.device) -> Any:
    """A network's forward that, while samples are drawn, computes only what it did not compute before."""
    known: dict[Any, Any] = {}

    @wraps(forward)
    def answered(*args: Any, **kwargs: Any) -> Any:
        # Times are on the CPU.
        args, kwargs = send_to_device(args, device), send_to_device(kwargs, device)
        key = tuple((tuple(t.shape), t.dtype) for t in tensors_in([*args, *kwargs.values()]))
        if live.phase != DRAWING or torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if key in known:
            return map_output(known[key], lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
        output = forward(*args, **kwargs)
        known[key] = map_output(output, shape_of)
        return output

    return answered

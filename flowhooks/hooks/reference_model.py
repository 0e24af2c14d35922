"""The model that a preference run compares its policy with: the base, an adapter on it, what the run started from, or
the average of what is trained. None of them is a second network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.adapters.from_hub import fetch
from flowhooks.adapters.frozen import FrozenAdapter
from flowhooks.adapters.names import USE_DORA, digest_of, find_file
from flowhooks.errors import CheckpointError
from flowhooks.hooks.frozen_role import check_digests, frozen_role
from flowhooks.hooks.preference_spec import BASE, EMA, INIT, reference_role
from flowhooks.hooks.swapping import swapped
from flowhooks.kernel.session import Session


class ReferenceModel:
    """A role of the session that stands still, or follows the policy from afar.

    Args:
        words: what it is, in a sentence.
        is_policy: returns whether the policy as it stands is this model, to the bit, as it may be before its first
            update.
        off: context manager under which the policy is this model in any case.
    """

    def __init__(
        self, words: str, *, is_policy: Callable[[], bool], off: Callable[[], AbstractContextManager] = nullcontext
    ):
        self.words, self.is_policy, self.off = words, is_policy, off

    def started(self, session: Session) -> None:
        """Keep what training starts from, where the model is made of that."""

    def state_dict(self) -> dict[str, Any]:
        """Return what tells a resumed run that its reference is the same model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare. Raises CheckpointError where the reference is another model."""


class _Start(ReferenceModel):
    """The policy as training starts from it: a copy of what is trained."""

    def __init__(self, words: str):
        super().__init__(words, is_policy=self._unmoved, off=self.playing)
        self._parameters: Mapping[str, nn.Parameter] = {}
        self._values: list[Tensor] = []
        self._digest = ""

    def started(self, session: Session) -> None:
        self._parameters = session.parameters()
        self._values = [parameter.detach().clone() for parameter in self._parameters.values()]

    def playing(self) -> AbstractContextManager[None]:
        return swapped(self._parameters, self._values)

    def _unmoved(self) -> bool:
        return all(torch.equal(p, value) for p, value in zip(self._parameters.values(), self._values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        if not self._digest:
            digest = hashlib.sha256()
            for value in self._values:
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            self._digest = digest.hexdigest()
        return {"reference": self._digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.get("reference", self.state_dict()["reference"]) != self._digest:
            raise CheckpointError(
                "the reference, the adapter of `adapter.init_from`, is not the one that the checkpoint was trained "
                "with; put that file back, or start anew in another `output_dir`"
            )


class _Frozen(ReferenceModel):
    """The base with an adapter of its own."""

    def __init__(self, adapter: FrozenAdapter, off: Callable[[], AbstractContextManager]):
        super().__init__(f"the base model with {adapter.source}", is_policy=lambda: False, off=off)
        self._adapter = adapter

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self._adapter.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_digests({"reference": self._adapter}, state, "adapter of the")


@contextmanager
def reference_model(session: Session, reference: str) -> Iterator[ReferenceModel]:
    """Inside the block the session has the role of an option `reference`.

    Raises:
        AdapterError: its adapter cannot be read or does not fit.
    """
    adapter: Any = session.adapter
    if reference == BASE:
        off = nullcontext if adapter is None else adapter.disabled
        yield ReferenceModel("the base model", is_policy=lambda: _changes_nothing(adapter), off=off)
    elif reference == EMA:
        yield ReferenceModel("the average of what is trained, which starts as the policy", is_policy=lambda: True)
    elif reference == INIT or _is_start(adapter, reference):
        start = _Start("what the policy starts from")
        with session.roles.registered(reference_role(reference), start.playing):
            yield start
    else:
        name = reference_role(reference).removeprefix("adapter:")
        with frozen_role(session, name, reference) as frozen:

            @contextmanager
            def alone() -> Iterator[None]:
                with ExitStack() as stack:
                    stack.enter_context(adapter.disabled())
                    stack.enter_context(frozen.alone())
                    yield

            yield _Frozen(frozen, alone)


def _changes_nothing(adapter: Any) -> bool:
    """Whether it is new. A DoRA divides by norms, which compiled code may sum up in another order than those it was
    made with."""
    return adapter is not None and adapter.fresh and not adapter.config.get(USE_DORA)


def _is_start(adapter: Any, source: str) -> bool:
    """Whether an adapter on the disk or the Hub is the very file that the policy starts from: then what was read from
    it is compared with, since another way to compute the same may round otherwise."""
    start = None if adapter is None else adapter.config.get("init_from")
    return start is not None and digest_of(find_file(fetch(source))) == digest_of(find_file(Path(start)))

"""A role that a frozen adapter plays on the one backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from flowhooks.adapters.frozen import FrozenAdapter
from flowhooks.errors import CheckpointError
from flowhooks.kernel.session import Session


@contextmanager
def frozen_role(session: Session, name: str, source: str, *, parked: bool = False) -> Iterator[FrozenAdapter]:
    """Inside the block the session has the role ``adapter:<name>``: the bare model with this adapter.

    Raises:
        AdapterError: the adapter cannot be read or does not fit.
    """
    model: Any = session.model
    adapter = FrozenAdapter(model.transformer, source, name=name, parked=parked, pipeline=model.pipe)
    with session.roles.registered(f"adapter:{name}", partial(_playing, session, adapter)):
        yield adapter


def check_digests(adapters: Mapping[str, FrozenAdapter], saved: Mapping[str, str], what: str) -> None:
    """Raises CheckpointError where an adapter is not the file that a checkpoint was trained with.

    Args:
        adapters: by name.
        saved: name -> digest.
        what: they are, in a sentence.
    """
    for name, adapter in adapters.items():
        if saved.get(name) != adapter.digest:
            raise CheckpointError(
                f"the {what} {name!r} ({adapter.source}) is not the file that the checkpoint was trained with; put "
                "that file back, or start anew in another `output_dir`"
            )


@contextmanager
def _playing(session: Session, adapter: FrozenAdapter) -> Iterator[None]:
    with session.roles["reference"](), adapter.alone():
        yield

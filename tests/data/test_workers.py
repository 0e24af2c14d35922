"""Processes that read ahead end with the process that trains, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import pytest

from flowhooks.data.loader import _ends_with


def _work(parent: int, ready) -> None:
    _ends_with(parent, 0)
    ready.send(os.getpid())
    time.sleep(60)


def _train(ready) -> None:
    multiprocessing.get_context("fork").Process(target=_work, args=(os.getpid(), ready)).start()
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_worker_does_not_outlive_a_killed_parent():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    trainer = context.Process(target=_train, args=(there,))
    trainer.start()
    there.close()
    assert here.poll(20)
    worker = here.recv()
    assert trainer.pid is not None and worker != trainer.pid
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join()
    # The pipe's other end is closed when the last process that holds it is gone.
    assert here.poll(10)
    with pytest.raises(EOFError):
        here.recv()

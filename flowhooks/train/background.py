"""Write files beside the steps: in a thread, one piece of work after the other, in the order in which they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread


class Background:
    """Does what needs neither the network nor the device, such as writing files. What fails is raised in the thread of
    the steps, by whichever method is called next; what was to come after it is left undone."""

    def __init__(self) -> None:
        self._last: Thread | None = None
        self._failure: BaseException | None = None

    def submit(self, work: Callable[[], object]) -> None:
        """Do this once all that came before it is done. Does not wait, and raises what failed before."""
        self.raise_failure()
        before = self._last

        def run() -> None:
            if before is not None:
                before.join()
            if self._failure is None:
                try:
                    work()
                except BaseException as error:
                    self._failure = error

        # A second Ctrl-C ends the process at once, whatever is being written.
        self._last = Thread(target=run, daemon=True, name="flowhooks-background")
        self._last.start()

    def join(self) -> None:
        """Wait until all is done. Raises what failed."""
        if self._last is not None:
            self._last.join()
            self._last = None
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what failed, once. Does not wait."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @contextmanager
    def open(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Wait for all work at the end of the block.

        Args:
            tell: is told what failed where the block itself ends with another exception.
        """
        try:
            yield
        except BaseException:
            try:
                self.join()
            except Exception as failure:
                tell(str(failure))
            raise
        self.join()

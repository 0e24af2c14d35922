"""What a failed upload says: one sentence with the Hub's own reasons, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

#: What the Hub's client raises: of a file that cannot be sent a RuntimeError, of a card that is refused a ValueError.
FAILURES = (HTTPError, OSError, RuntimeError, ValueError)

_TOKEN = "Check that your token may write there (`hf auth whoami`)"
_REMEDIES = {
    401: _TOKEN,
    403: _TOKEN,
    404: "Check the owner's name, and that your token may write there (`hf auth whoami`)",
    409: "Somebody else may be changing the repository; wait until that is done",
    412: "Somebody else may be changing the repository; wait until that is done",
    413: "The upload is larger than it takes; take large pictures out of `validation/`",
    429: "Wait a few minutes",
}


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One call of ``push``.

    Args:
        run_dir: the run folder.
        repo_id: as the user gave it.
        private: whether a new repository is private.
        endpoint: the Hub's address.
    """

    run_dir: Path
    repo_id: str
    private: bool
    endpoint: str

    @property
    def command(self) -> str:
        """The command that does it again."""
        visibility = "--private" if self.private else "--no-private"
        return shlex.join(["flowhooks", "push", str(self.run_dir), "--repo-id", self.repo_id, visibility])

    def told(self, error: BaseException, *, begun: bool) -> str:
        """What is said of one of `FAILURES`.

        Args:
            begun: whether the repository was there already, so that the failure is one of uploading.
        """
        if isinstance(error, HFValidationError):
            return f"`repo_id` {self.repo_id!r} is not a valid name: {_line(str(error))}"
        refusal = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
        untouched = f"the files in {self.run_dir} are untouched"
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError) and refusal is not None:
            return (
                f"The Hub refused the model card {self.run_dir / 'README.md'} ({_line(str(error))}). Nothing was "
                f"uploaded and {untouched}; correct the block between the two `---` at the card's head, then go on "
                f"with `{self.command}`."
            )
        if refusal is not None:
            status = None if refusal.response is None else refusal.response.status_code
            remedy = _REMEDIES.get(status or 0, "Correct what it names")
            if status is not None and status >= 500:
                remedy = "The trouble is the Hub's (https://status.huggingface.co); wait a little"
            reasons = _line(refusal.server_message or str(refusal).splitlines()[0])
            code = "" if status is None else f"{status}: "
            return (
                f"The Hub refused {self.repo_id!r} ({code}{reasons}). {remedy}, then go on with `{self.command}`; "
                f"{untouched}."
            )
        reason = _line(str(list(_causes(error))[-1]) or type(error).__name__)
        if isinstance(error, ValueError):
            return f"The Hub refused {self.repo_id!r} ({reason}). Go on with `{self.command}`; {untouched}."
        if not begun:
            return (
                f"Cannot reach the Hub at {self.endpoint} ({reason}). Check the network and go on with "
                f"`{self.command}`; {untouched}."
            )
        return (
            f"The connection to the Hub at {self.endpoint} was cut during the upload to {self.repo_id!r} ({reason}). "
            f"Check the network and go on with `{self.command}`: large files that arrived whole are not sent again; "
            f"{untouched}."
        )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was explicitly raised from, the first cause last."""
    found: BaseException | None = error
    while found is not None and (isinstance(found, FAILURES) or found is error):
        yield found
        # A client's transport errors are raised from those of the socket, which say less.
        found = None if isinstance(found, HTTPError) else found.__cause__


def _line(text: str) -> str:
    """The lines of a text, and the items of its lists, as one line."""
    lines = [line.strip().removeprefix("- ").rstrip(".") for line in text.splitlines() if line.strip()]
    return "; ".join(lines).replace(":; ", ": ")

"""Ask a server of rewards over HTTP: JSON in, JSON out. The protocol is in docs/rewards.md."""

from __future__ import annotations

import base64
import io
import ipaddress
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
import torch
from PIL import Image
from torch import Tensor

from flowhooks.errors import RewardError, RewardUnavailable
from flowhooks.printing import one_line
from flowhooks.rewards.attempts import persistently, waits
from flowhooks.rewards.base import PictureReward
from flowhooks.rewards.registry import ServedSpec

#: Of the protocol; a server may refuse one that it does not know.
VERSION = 1
#: Longest wait for an answer to the first question, which holds no image, in seconds.
FIRST = 10.0
#: Statuses below 500 that may pass: the server waited too long, or has too many requests.
_PASSING = (408, 429)
_SHOWN = 200


def png(picture: Tensor) -> str:
    """Return an image ``[3, H, W]``, or a mask ``[1, H, W]``, in [0, 1], as base64 of an 8-bit PNG."""
    pixels = (picture.detach().float() * 255).round().clamp(0, 255).to("cpu", torch.uint8)
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    held = io.BytesIO()
    # Small steps of compression: the network is rarely what is slow.
    Image.fromarray(array).save(held, "PNG", compress_level=1)
    return base64.b64encode(held.getvalue()).decode("ascii")


class ServedReward(ServedSpec, PictureReward):
    """Asks a server. A subclass says what, and reads the answer.

    Raises:
        ValueError: the environment variable of ``token_env`` is not set.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._token = None if self.token_env is None else os.environ.get(self.token_env)
        if self.token_env is not None and not self._token:
            raise ValueError(f"`token_env` names {self.token_env!r}, and this environment variable is not set")
        self._session = requests.Session()
        # Neither a proxy nor a .netrc has to do with a server on this machine.
        self._session.trust_env = not _is_here(self.url)

    def ready(self) -> None:
        """Ask once, with no image, and do not wait long: for before the first step.

        Raises:
            RewardError: the server gives no answer, or one that no images can be judged by.
        """
        raise NotImplementedError

    def asked(self, images: Sequence[Mapping[str, Any]], **more: Any) -> Any:
        """Return the answer to these images, and ask again as ``retries`` says.

        Raises:
            RewardUnavailable: there is no answer, for a reason that may pass.
            RewardError: the server refuses, or answers anything but JSON.
        """
        body = self._body(images, more)
        pauses = waits(self.retries, self.retry_wait)
        return persistently(lambda: self._answer(body, self.timeout), RewardUnavailable, pauses, "")

    def asked_once(self) -> Any:
        """Return the answer to no images, without asking again."""
        return self._answer(self._body((), {}), min(self.timeout, FIRST))

    def refuse(self, place: str, found: str, expected: str) -> NoReturn:
        """Raise RewardError for what is wrong in an answer.

        Args:
            place: its JSON path.
        """
        raise RewardError(f"{self._who}: {place} of its answer {found}, expected {expected}")

    def numbers_in(self, value: Any, place: str, count: int, what: str) -> list[float]:
        """Return a list of an answer that must hold ``count`` finite numbers."""
        entries = self.listed(value, place, count, what)
        for i, each in enumerate(entries):
            if isinstance(each, bool) or not isinstance(each, (int, float)) or not math.isfinite(each):
                self.refuse(f"{place}[{i}]", f"is {_short(each)}", "a finite number")
        return [float(each) for each in entries]

    def listed(self, value: Any, place: str, count: int, what: str) -> list[Any]:
        """Return a list of an answer that must hold ``count`` entries, one ``what`` each."""
        if not isinstance(value, list):
            self.refuse(place, f"is {_short(value)}", f"a list of {count}, one for each {what}")
        if len(value) != count:
            self.refuse(place, f"holds {len(value)} entries", f"{count}, one for each {what}")
        return value

    def field(self, value: Any, key: str, place: str = "$") -> Any:
        """Return what an object of an answer holds under a key."""
        if not isinstance(value, dict) or key not in value:
            self.refuse(place, f"is {_short(value)}", f"an object with {key!r}")
        return value[key]

    def with_record(self, prompt: str, record: Mapping[str, Any], frames: Sequence[Tensor]) -> dict[str, Any]:
        """Return what is sent of an image ``[3, H, W]``, or of frames of a video."""
        return {"frames": [png(frame) for frame in frames], "prompt": prompt, "record": dict(record)}

    @property
    def _who(self) -> str:
        return f"reward {self.name!r} at {self.url}"

    def _body(self, images: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
        return {"version": VERSION, "reward": self.name, "images": list(images), **more}

    def _answer(self, body: Mapping[str, Any], timeout: float) -> Any:
        try:
            found = self._session.post(
                self.url, json=body, timeout=timeout, allow_redirects=False, auth=_bearer(self._token)
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, requests.RequestException):
                raise RewardError(f"{self._who} cannot be asked: {error}") from error
            raise RewardError(
                f"{self._who}: a record cannot be sent as JSON ({error}); leave columns that hold anything but texts, "
                "numbers, lists and objects out of the data"
            ) from error
        except requests.Timeout as error:
            raise RewardUnavailable(f"{self._who} gave no answer in {timeout:g} s (`timeout`)") from error
        except requests.RequestException as error:
            raise RewardUnavailable(f"{self._who} cannot be reached: {_cause(error)}") from error
        said = f"{found.status_code} {found.reason}"
        if text := one_line(found.text[:_SHOWN]).strip():
            said += f": {text}"
        if found.status_code in _PASSING or found.status_code >= 500:
            raise RewardUnavailable(f"{self._who} answered {said}")
        if found.is_redirect:
            raise RewardError(
                f"{self._who} answered {found.status_code}, which leads to {found.headers['location']}; name that "
                "address under `url`, if you trust it"
            )
        if not found.ok:
            raise RewardError(f"{self._who} refused: {said}")
        try:
            return found.json()
        except ValueError as error:
            raise RewardError(f"{self._who} answered no JSON: {said}") from error


def _bearer(token: str | None) -> Callable[[Any], Any]:
    """Return what signs a request. It is also there without a token, as requests would look for one in a .netrc."""

    def signed(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return signed


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _cause(error: Exception) -> str:
    """Return the innermost reason of a failed connection, which requests wraps several times."""
    inner: Any = error
    while getattr(inner, "reason", None) is not None or (inner.args and isinstance(inner.args[0], Exception)):
        inner = getattr(inner, "reason", None) or inner.args[0]
    return one_line(str(inner))[:_SHOWN]


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:77]}..."

"""Serve the page on this machine alone, and renew it while runs go on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from flowhooks.errors import ConfigError, Problem
from flowhooks.manifest import EVENTS, HISTORY, METRICS, RUN, VALIDATION
from flowhooks.report.page import page
from flowhooks.report.write import ReportWriter, read_all

HOST = "127.0.0.1"
#: Names under which a browser may ask: another name may be a stranger's, made to lead here.
_NAMES = (HOST, "localhost")


class ReportServer(ThreadingHTTPServer):
    """Serves the page of some runs at ``/``, and at ``/state`` a word that changes once they have written more.

    Args:
        folders: output folders of runs.
        port: 0 takes any that is free.

    Raises:
        ConfigError: a folder is no run's, or the port is in use.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[Path], port: int):
        self._writers = [ReportWriter(folder) for folder in folders]
        self._lock = threading.Lock()
        self._page: tuple[str, bytes] = ("", b"")
        self.page()
        try:
            super().__init__((HOST, port), _Answer)
        except OSError as error:
            message = f"port {port} cannot be used ({error.strerror or error}); name another --port"
            raise ConfigError(Problem(message)) from error

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def state(self) -> str:
        """Return a word that changes once a run has written more."""
        found = [_changed(writer.folder) for writer in self._writers]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def page(self) -> bytes:
        """Return the page as the runs are now. Raises ConfigError and OSError."""
        with self._lock:
            # Taken before they are read: what is written meanwhile renews the page once more.
            state = self.state()
            if state != self._page[0]:
                found = read_all(self._writers)
                text = page([record for record, _ in found], [drawn for _, drawn in found], watched=state)
                self._page = state, text.encode("utf-8", "backslashreplace")
            return self._page[1]


class _Answer(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        """Answer with the page or its state; nothing else of this machine is served."""
        if self.headers.get("Host", "").rpartition(":")[0] not in _NAMES:
            self._send(HTTPStatus.FORBIDDEN, b"ask for this page by its address\n", "text/plain")
            return
        try:
            match self.path:
                case "/":
                    self._send(HTTPStatus.OK, self.server.page(), "text/html; charset=utf-8")
                case "/state":
                    self._send(HTTPStatus.OK, self.server.state().encode(), "text/plain")
                case _:
                    self._send(HTTPStatus.NOT_FOUND, b"there is only /\n", "text/plain")
        except (ConfigError, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode("utf-8", "replace"), "text/plain")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for each request."""

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _changed(folder: Path) -> tuple[object, ...]:
    """Return something that differs once the run in a folder has written more."""
    watched = (folder / HISTORY, folder / EVENTS, folder / RUN, folder / METRICS, folder / VALIDATION)
    return tuple((file.stat().st_mtime_ns, file.stat().st_size) if file.exists() else None for file in watched)

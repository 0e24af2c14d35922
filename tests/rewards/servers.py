"""Servers on loopback that answer as a test says, and remember what they were asked."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_server"
#: Status, and an answer: an object is sent as JSON, a text as it is.
Reply = tuple[int, Any]


def example() -> ModuleType:
    """The server of `examples/reward_server`, as a module."""
    spec = importlib.util.spec_from_file_location("reward_server", EXAMPLE / "server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[str]:
    """Inside the block a server runs, in a thread: its address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answering(ThreadingHTTPServer):
    """Answers each request by a function of it. It remembers requests, and the headers of each."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.asked, self.headers = answer, [], []


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        self.server.headers.append(dict(self.headers))
        status, found = self.server.answer(request)
        body = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def answering(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[tuple[str, Answering]]:
    """Inside the block a server answers so: its address, and the server."""
    server = Answering(answer)
    with served(server) as url:
        yield url, server

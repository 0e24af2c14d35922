"""A reward server for flowhooks, of the standard library, Pillow and NumPy alone: scores images by their ink.

    python examples/reward_server/server.py --port 8000

Put your own model into `load` and `judge`; the rest is the protocol, which docs/rewards.md describes.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import io
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image


def load() -> Any:
    """Return what judges: here a number, in your server a network, loaded once and moved to its device."""
    return 255.0


def judge(model: Any, sample: dict[str, Any]) -> float:
    """Return the number of one sample, higher for better: the mean darkness of its frames, 0 for white paper.

    `sample["frames"]` are Pillow images, one of an image and several of a video; `sample["prompt"]` is its prompt, and
    `sample["record"]` the other columns of the prompt file. A network takes all samples of a request at once instead.
    """
    return float(np.mean([1 - np.asarray(frame.convert("RGB")) / model for frame in sample["frames"]]))


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request: a number for each image or, where it asks for pairs, for each pair."""
    if request["version"] != 1:
        raise ValueError(f"this server speaks version 1 of the protocol, not {request['version']}")
    samples = [{**image, "frames": [picture(frame) for frame in image["frames"]]} for image in request["images"]]
    scores = [judge(model, sample) for sample in samples]
    if "pairs" not in request:
        return {"scores": scores}
    # How probably the first of a pair is the better one. A judge that looks at both at once would be asked here.
    return {"scores": [(1 + np.sign(scores[first] - scores[second])) / 2 for first, second in request["pairs"]]}


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.server.token
        if token and not hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {token}"):
            return self.reply(401, {"error": "wrong token"})
        try:
            request = json.loads(body)
            # One at a time: a network on a device gains nothing from two requests at once.
            with self.server.lock:
                found = answer(self.server.model, request)
        except (KeyError, TypeError, ValueError, OSError) as error:
            return self.reply(400, {"error": f"{type(error).__name__}: {error}"})
        return self.reply(200, found)

    def reply(self, status: int, found: dict[str, Any]) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing for each request."""


class Server(ThreadingHTTPServer):
    """Serves on a port of this machine; port 0 takes a free one, which `server_port` then tells.

    Args:
        host: 127.0.0.1 for this machine only; 0.0.0.0 for others too, which then need the token.
        token: what clients must send, if anything.
    """

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1", port: int = 0, token: str | None = None):
        super().__init__((host, port), Handler)
        self.model, self.token, self.lock = load(), token, Lock()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score images by their ink.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    server = Server(arguments.host, arguments.port, os.environ.get("REWARD_TOKEN"))
    print(f"http://{arguments.host}:{server.server_port}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()

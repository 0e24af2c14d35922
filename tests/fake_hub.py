"""A Hub on this machine, and a token for it: what publishing meets in tests."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hub's API as creating a repository and committing files needs.

    The server's ``refusals`` answer paths that contain a key with a status and a document; ``cut`` are parts of paths
    at which it hangs up; with ``large`` it asks for weights to be sent beforehand, and keeps them by their hash.
    """

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        if self._hindered():
            return None
        if self.server.status != 200:
            return self._answer({"error": "You do not have the rights"}, self.server.status)
        if self.path == "/api/repos/create":
            request = json.loads(body)
            self.server.created = request
            return self._answer({"url": f"{self.server.address}/{request.get('organization')}/{request['name']}"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": self._mode(f["path"]), "shouldIgnore": False} for f in files
                    ]
                }
            )
        if "/objects/batch" in self.path:
            return self._answer({"transfer": "basic", "objects": [self._place(f) for f in json.loads(body)["objects"]]})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    self.server.files[entry["value"]["path"]] = self.server.stored[entry["value"]["oid"]]
            return self._answer(
                {"commitUrl": f"{self.server.address}/me/my-dpo/commit/{'0' * 40}", "commitOid": "0" * 40}
            )
        if "/paths-info/" in self.path:
            return self._answer([])
        return self._answer({"errors": [], "warnings": []})

    def do_PUT(self):  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        if not self._hindered():
            self.server.stored[self.path.rpartition("/")[2]] = body
            self._answer({})

    def do_GET(self):  # noqa: N802
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        if self.server.status != 200:
            return self._answer({"error": "Repository not found"}, 404)
        self._answer({"id": "me/my-dpo", "sha": "0" * 40, "siblings": [], "private": True, "tags": []})

    def _hindered(self):
        if any(part in self.path for part in self.server.cut):
            # Half an answer.
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            self.close_connection = True
            return True
        for part, (status, answer) in self.server.refusals.items():
            if part in self.path:
                self._answer(answer, status)
                return True
        return False

    def _mode(self, path):
        return "lfs" if self.server.large and path.endswith(".safetensors") else "regular"

    def _place(self, asked):
        place = {"upload": {"href": f"{self.server.address}/storage/{asked['oid']}", "header": {}}}
        return {**asked, **({} if asked["oid"] in self.server.stored else {"actions": place})}

    def _answer(self, document, status=200):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_args):
        pass


@pytest.fixture
def server():
    instance = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    instance.address = f"http://127.0.0.1:{instance.server_port}"
    instance.requests, instance.files, instance.created, instance.status = [], {}, None, 200
    instance.refusals, instance.cut, instance.large, instance.stored = {}, [], False, {}
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    instance.server_close()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")
    # Read from the environment at import, which other tests set.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Its client asks the Hub for another server.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # The client waits before it tries again.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)

"""What is told of a pipeline on the Hub: from cache folders laid out as the Hub's library does, and a server here."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from flowhooks.checks import hub
from flowhooks.cli import main
from tests.cli.folders import make_run, write_pipeline

REPO, COMMIT = "somebody/some-model", "a" * 40
FILES = {
    "model_index.json": 500,
    "transformer/config.json": 300,
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": 4_000_000_000,
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": 1_000_000_000,
    "transformer/diffusion_pytorch_model.fp16.safetensors": 2_500_000_000,
    "vae/diffusion_pytorch_model.safetensors": 300_000_000,
    "vae/diffusion_pytorch_model.bin": 300_000_000,
    "everything-in-one.safetensors": 9_000_000_000,
}
PLAIN = 5_300_000_800
IN_FP16 = 2_800_000_800


@pytest.fixture(autouse=True)
def _online(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # The library has it as the default of its arguments.
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@contextmanager
def serving(monkeypatch, status, document, wait=0.0):
    """A Hub on this machine that answers every question with this document."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(wait)
            body = json.dumps(document).encode()
            self.send_response(status)
            if status != 200:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def listing():
    return {
        "id": REPO,
        "modelId": REPO,
        "sha": COMMIT,
        "siblings": [{"rfilename": name, "size": size} for name, size in FILES.items()],
    }


@pytest.fixture
def snapshot(tmp_path):
    """The pipeline as a download leaves it in the Hub's cache."""
    home = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}"
    folder = home / "snapshots" / COMMIT
    write_pipeline(folder)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return folder


def checked(tmp_path, capsys, *more):
    folder = tmp_path / "mine"
    if not folder.is_dir():
        folder.mkdir()
        make_run(folder, model={"pretrained_model_name_or_path": REPO})
    code = main(["check", str(folder / "run.json"), *more])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_is_in_the_cache_is_checked_like_a_folder(tmp_path, capsys, snapshot):
    code, out, _ = checked(tmp_path, capsys)
    assert code == 0 and "download" not in out
    (snapshot / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.1}')
    code, _, err = checked(tmp_path, capsys)
    assert code == 2 and "not flow matching" in err


def test_a_part_that_is_not_in_the_cache_is_told_and_offline_refused(tmp_path, capsys, snapshot, monkeypatch):
    shutil.rmtree(snapshot / "vae")
    code, out, _ = checked(tmp_path, capsys)
    assert code == 0 and "download   somebody/some-model is in the Hub's cache in part only (has no folder 'vae'" in out
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = checked(tmp_path, capsys)
    assert code == 2 and "has no folder 'vae'" in err


@pytest.mark.parametrize("variant, size", [(None, PLAIN), ("fp16", IN_FP16)])
def test_what_is_not_in_the_cache_is_told_with_its_size(tmp_path, capsys, monkeypatch, variant, size):
    with serving(monkeypatch, 200, listing()):
        assert hub.download_size(REPO, None, variant) == size
        code, out, _ = checked(tmp_path, capsys)
    assert code == 0 and out.endswith("ok\n")
    assert f"{REPO} is not in the Hub's cache on this disk, so `train` fetches it first (" in out
    assert "in all)" in out


def test_a_pipeline_that_the_hub_does_not_have_is_refused(tmp_path, capsys, monkeypatch):
    with serving(monkeypatch, 404, {"error": "Repository not found"}):
        code, _, err = checked(tmp_path, capsys)
    assert code == 2 and f"$.model.pretrained_model_name_or_path: the Hub has no '{REPO}'" in err


@pytest.mark.parametrize("reached", [True, False])
def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path, capsys, monkeypatch, reached):
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    began = time.monotonic()
    if reached:
        with serving(monkeypatch, 200, listing(), wait=1.5):
            code, out, _ = checked(tmp_path, capsys)
            took = time.monotonic() - began
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        code, out, _ = checked(tmp_path, capsys)
        took = time.monotonic() - began
    assert code == 0 and "the Hub does not answer how much that is" in out
    assert took < 1.5


def test_judges_that_are_fetched_are_told(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    judge = {"type": "flow_grpo", "rewards": [{"type": "clip_score", "model": "openai/clip-vit-base-patch32"}]}
    make_run(folder, data=None, hooks=[judge, {"type": "on_policy_rollout", "prompts": ["a"]}])
    code, out, err = checked(tmp_path, capsys)
    assert code == 0, err
    assert "download   $.hooks[0].rewards[0].model: openai/clip-vit-base-patch32 is not in the Hub's cache" in out


def test_an_adapter_that_is_fetched_is_told_and_one_in_the_cache_is_checked(tmp_path, capsys, snapshot):
    source = "somebody/held/inside/held.safetensors"
    asked = ("--set", f"adapter.training_adapter={source}")
    code, out, _ = checked(tmp_path, capsys, *asked)
    assert code == 0 and f"download   $.adapter.training_adapter: {source} is not in the Hub's cache" in out
    assert f"the training adapter {source} is on in the loss at strength 1, off in every image, never trained" in out
    home = tmp_path / "hub" / "models--somebody--held"
    file = home / "snapshots" / COMMIT / "inside" / "held.safetensors"
    file.parent.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    file.write_bytes(b"no weights")
    code, _, err = checked(tmp_path, capsys, *asked)
    assert code == 2 and f"{file}: cannot be read as safetensors" in err


def test_a_name_to_sample_that_is_no_folder_is_looked_up_at_once_and_refused(capsys, monkeypatch):
    monkeypatch.setattr("flowhooks.pipeline.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    with serving(monkeypatch, 404, {"error": "Repository not found"}):
        assert main(["sample", REPO, "--prompt", "a"]) == 2
    err = capsys.readouterr().err
    assert (
        f"there is no folder '{REPO}' here, so it is looked up on the Hub" in err and f"the Hub has no '{REPO}'" in err
    )

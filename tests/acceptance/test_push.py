"""Publishing without a token or a network: one clear error, and the run folder as it was."""

from __future__ import annotations

import pytest

from tests.acceptance.user import assert_one_error


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """No token anywhere, and a Hub that does not answer."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none_stored"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_push_without_a_token(user, done, hub):
    before = done.state(done.out)
    found = user.command("push", str(done.out), "--repo-id", "me/dpo")
    assert_one_error(found, 1, ("No Hugging Face token found", "hf auth login", "nothing was uploaded"))
    assert done.state(done.out) == before


def test_push_without_a_network(user, done, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    before = done.state(done.out)
    found = user.command("push", str(done.out), "--repo-id", "me/dpo")
    assert_one_error(found, 1, ("Cannot reach the Hub at http://127.0.0.1:9", "Check the network", "untouched"))
    assert "hf_xxx" not in found.err and done.state(done.out) == before

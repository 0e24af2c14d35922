"""A key or a value that looks like a secret is refused, and no message repeats it."""

from __future__ import annotations

import pytest

from flowhooks.config import load_run
from tests.config.writing import problems, written

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWx12345678"


@pytest.mark.parametrize(
    "document, path",
    [
        ({"push": {"repo_id": "a/b", "token": "x"}}, "$.push.token"),
        ({"hub_token": SECRET}, "$.hub_token"),
        ({"training": {"optimizer_args": {"api_key": "abc"}}}, "$.training.optimizer_args.api_key"),
        ({"logging": {"password": None}}, "$.logging.password"),
        ({"model": {"revision": SECRET}}, "$.model.revision"),
        ({"training": {"max_train_steps": SECRET}}, "$.training.max_train_steps"),
        ({"validation": {"prompts": ["a", f"x {SECRET}"]}}, "$.validation.prompts[1]"),
        ({"data": [{"id": "a", "instance_data_dir": "x", "hf_token": SECRET}]}, "$.data[0].hf_token"),
    ],
)
def test_secrets_are_refused_and_never_repeated(tmp_path, document, path):
    found = problems(tmp_path, document)
    assert found[0].path == path
    assert "hf auth login" in found[0].message
    assert not any(SECRET in str(problem) for problem in found)


def test_what_only_resembles_a_secret_is_fine(tmp_path):
    prompts = ["a token of love", "hf_internal", "the secret garden"]
    run = load_run(
        written(tmp_path, {"validation": {"prompts": prompts}, "training": {"optimizer_args": {"tokens": 1}}})
    )
    assert run.validation["prompts"] == prompts

"""JSON blocks: checked before anything loads, completed, and built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowhooks.config import resolve_reward, resolve_rewards
from flowhooks.documents.schemas import uri, validator
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import ConfigError
from flowhooks.rewards import PictureReward, build_reward, build_rewards, scored
from flowhooks.rewards.registry import REWARDS, ModelRewardSpec

REQUIRED = {
    "classifier": {"model": "m"},
    "clip_score": {"model": "m"},
    "aesthetic": {"head": "h"},
    "ocr": {"model": "m"},
    "http": {"url": "http://127.0.0.1:9/"},
    "geneval": {"url": "https://detector.example/objects?model=1"},
}


class Share(PictureReward):
    """How much of the light one channel has."""

    range = (0.0, 1.0)
    schema = {
        "type": "object",
        "properties": {"channel": {"type": "integer", "minimum": 0, "maximum": 2, "default": 1}},
        "additionalProperties": False,
    }

    def __init__(self, *, channel):
        super().__init__(name=f"share_{channel}")
        self.channel = channel

    def score(self, pictures, prompts, records):
        means = pictures.mean((2, 3))
        return means[:, self.channel] / means.sum(1)


class Bare:
    def __init__(self, **options):
        self.options = options


SHARE, BARE = f"{__name__}:Share", f"{__name__}:Bare"


@pytest.mark.parametrize("type", REWARDS)
def test_the_defaults_are_those_of_the_schema(type):
    resolved = resolve_reward({"type": type, **REQUIRED.get(type, {})}, "$")
    assert resolved.weight == 1.0
    assert resolved.options["name"] == type
    # One that computes with no network has no precision of its own.
    assert resolved.options.get("dtype") == ("fp32" if issubclass(REWARDS[type], ModelRewardSpec) else None)
    assert "weight" not in resolved.options and "type" not in resolved.options


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "clipscore", "model": "m"}, r"\$.rewards\[0\].type: .*did you mean 'clip_score'"),
        ({"type": "clip_score"}, r"\$.rewards\[0\].model: is missing"),
        ({"type": "clip_score", "model": "m", "wieght": 1}, r"\$.rewards\[0\].wieght: .*did you mean 'weight'"),
        ({"type": "clip_score", "model": "m", "weight": "1"}, r"\$.rewards\[0\].weight: expected a number.*quotes"),
        ({"type": "clip_score", "model": "m", "scale": 0}, r"\$.rewards\[0\].scale: expected a number above 0"),
        ({"type": "clip_score", "model": "m", "dtype": "float16"}, r"\$.rewards\[0\].dtype: .*did you mean 'fp16'"),
        ({"type": "classifier", "model": "m", "target": "logit"}, r"\$.rewards\[0\].target: 'logit' is not one of"),
        ({"type": "aesthetic"}, r"\$.rewards\[0\].head: is missing"),
        ({"type": "ocr", "model": "m", "max_frames": 0}, r"\$.rewards\[0\].max_frames: expected a number at least 1"),
        ({"type": SHARE, "channel": 3}, r"\$.rewards\[0\].channel: expected a number at least 0 and at most 2"),
        ({"type": SHARE, "weight": None}, r"\$.rewards\[0\].weight: expected a number, found null"),
        (
            {"type": "http", "url": "ftp://x/"},
            r"\$.rewards\[0\].url: .*'ftp://x/' has the wrong form; .*http://127.0.0.1",
        ),
        ({"type": "http", "url": "http://a@x/"}, r"\$.rewards\[0\].url: .* has the wrong form"),
        ({"type": "http", "url": "http://x/", "numbers": {}}, r"\$.rewards\[0\].numbers: "),
        ({"type": "http", "url": "http://x/", "numbers": {"a": "1"}}, r"\$.rewards\[0\].numbers.a: expected a number"),
        ({"type": "http", "url": "http://x/", "token_env": "a-b"}, r"\$.rewards\[0\].token_env: .* the wrong form"),
        ({"type": "no_such_module:Reward"}, r"\$.rewards\[0\]: cannot import the reward 'no_such_module:Reward'"),
        ({"type": f"{__name__}:Absent"}, r"\$.rewards\[0\]: cannot import the reward"),
    ],
)
def test_errors_name_the_place(block, message):
    with pytest.raises(ConfigError, match=message):
        build_rewards([block], allow_imports=True)


def test_all_problems_at_once_and_before_a_model_loads():
    blocks = [{"type": "clip_score", "model": "not-there"}, {"type": "ocr"}, {"type": "pickscore", "scale": 2}]
    with pytest.raises(ConfigError) as caught:
        build_rewards(blocks)
    assert [problem.path for problem in caught.value.problems] == ["$.rewards[1].model", "$.rewards[2].scale"]


def test_names_differ():
    with pytest.raises(ConfigError, match=r"\$.rewards\[1\].name: 'pickscore' is the name of \$.rewards\[0\] too"):
        resolve_rewards([{"type": "pickscore"}, {"type": "pickscore", "model": "m"}], "$.rewards")
    resolve_rewards([{"type": "pickscore"}, {"type": "pickscore", "name": "other"}], "$.rewards")
    with pytest.raises(ConfigError, match=r"\$.rewards\[1\]: 'share_1' is the name of \$.rewards\[0\] too"):
        build_rewards([{"type": SHARE}, {"type": SHARE}], allow_imports=True)


def test_a_class_of_ones_own():
    rewards, weights = build_rewards(
        [{"type": SHARE, "weight": -2}, {"type": SHARE, "channel": 0, "_comment": "red"}], allow_imports=True
    )
    assert weights == [-2.0, 1.0]
    on = torch.rand(2, 3, 4, 4)
    total, each = scored(rewards, weights, on, ["a", "b"], [{}, {}])
    assert list(each) == ["share_1", "share_0"]
    torch.testing.assert_close(total, -2 * each["share_1"] + each["share_0"])


def test_a_class_that_is_no_reward():
    with pytest.raises(
        ConfigError,
        match=r"\$: cannot import the reward .*Bare': is no reward: .*docs/rewards.md.*nothing of it was called",
    ):
        build_reward({"type": BARE, "anything": 1}, allow_imports=True)


def test_resolved_rewards_are_built_as_they_are():
    entries = resolve_rewards([{"type": SHARE, "weight": 0.5}], "$.hooks[0].rewards", allow_imports=True)
    rewards, weights = build_rewards(entries)
    assert weights == [0.5] and rewards[0].name == "share_1"


def test_another_schema_can_hold_rewards():
    """As a hook's schema does, by a reference; an option of its own is validated and completed all the same."""
    item = {"$ref": uri("reward")}
    schema = {"type": "object", "properties": {"rewards": {"type": "array", "items": item}}}
    value = {"rewards": [{"type": "clip_score", "model": "m"}, {"type": "my_package.rewards:Mine", "x": 1}]}
    assert not problems_in(value, schema, file=None)
    done = with_defaults(value, schema)["rewards"]
    assert done[0]["scale"] == 1.0 and done[0]["weight"] == 1.0
    assert done[1] == {"type": "my_package.rewards:Mine", "x": 1, "weight": 1.0}
    (problem,) = problems_in({"rewards": [{"type": "clip_score", "model": 1}]}, schema, file=None)
    assert problem.path == "$.rewards[0].model"
    assert not validator("reward").is_valid({"weight": 1})


def test_checking_a_reward_imports_no_torch():
    block = json.dumps({"type": "clip_score", "model": "m"})
    script = (
        "import sys; from flowhooks.config import resolve_reward; import flowhooks.rewards.registry; "
        f"resolve_reward({block!r} and {json.loads(block)!r}, '$'); "
        "print([name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"

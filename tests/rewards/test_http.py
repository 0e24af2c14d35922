"""A reward over HTTP, asked of real servers on loopback: what travels, which answers are taken, what is tried again."""

from __future__ import annotations

import base64
import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from flowhooks.errors import ConfigError, RewardError, RewardUnavailable
from flowhooks.rewards import SampleReferences, build_reward, scored
from flowhooks.rewards.attempts import LONGEST, waits
from tests.rewards.servers import answering, example, served

PROMPTS, RECORDS = ["one", "two", "three"], [{"n": 1}, {"n": 2}, {"n": 3}]


def pixels(*shape):
    """Values that eight bits hold exactly."""
    return torch.randint(0, 256, shape or (3, 3, 6, 5)).float() / 255


def reward(url, **options):
    return build_reward({"type": "http", "url": url, "retries": 0, "retry_wait": 0.01, **options})


def ask(url, on=None, references=(), groups=(), **options):
    on = pixels() if on is None else on
    return scored([reward(url, **options)], [1.0], on, PROMPTS[: len(on)], RECORDS[: len(on)], references, groups)


def decoded(text):
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        assert image.format == "PNG"
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def counted(request):
    """A number for each image: that of its record."""
    return 200, {"scores": [image["record"]["n"] for image in request["images"]]}


def test_pictures_prompts_and_records_arrive_and_numbers_come_back():
    on = pixels()
    with answering(counted) as (url, server):
        total, each = ask(url, on)
    assert total.tolist() == [1, 2, 3] and each["http"].tolist() == [1, 2, 3]
    (request,) = server.asked
    assert request.keys() == {"version", "reward", "judges", "images"}
    assert (request["version"], request["reward"], request["judges"]) == (1, "http", "image")
    for image, own, prompt, record in zip(request["images"], on, PROMPTS, RECORDS, strict=True):
        assert image.keys() == {"frames", "prompt", "record"}
        assert (image["prompt"], image["record"]) == (prompt, record)
        assert torch.equal(decoded(image["frames"][0]), own)


def test_batches_hold_what_they_may_and_keep_the_order():
    with answering(counted) as (url, server):
        assert ask(url, batch_size=2)[0].tolist() == [1, 2, 3]
    assert [len(request["images"]) for request in server.asked] == [2, 1]


def test_a_video_is_sent_as_evenly_spread_frames():
    clip = pixels(2, 3, 9, 6, 5)
    with answering(counted) as (url, server):
        ask(url, clip, max_frames=3)
    for image, own in zip(server.asked[0]["images"], clip, strict=True):
        assert torch.equal(torch.stack([decoded(frame) for frame in image["frames"]], 1), own[:, [0, 4, 8]])


def test_several_numbers_are_weighed_and_each_is_measured():
    def answer(request):
        ns = [image["record"]["n"] for image in request["images"]]
        return 200, {"scores": {"good": ns, "bad": [-n for n in ns], "unread": None}}

    with answering(answer) as (url, _):
        total, each = ask(url, numbers={"good": 2.0, "bad": 0.5}, name="judge")
    assert total.tolist() == [1.5, 3.0, 4.5]
    assert {name: values.tolist() for name, values in each.items()} == {
        "judge": [1.5, 3.0, 4.5],
        "judge.good": [1, 2, 3],
        "judge.bad": [-1, -2, -3],
    }


def test_references_and_masks_travel_where_they_are_wanted():
    shown = [SampleReferences(images=(pixels(3, 4, 7), pixels(3, 2, 2)), mask=pixels(1, 3, 3)) for _ in range(3)]
    with answering(counted) as (url, server):
        scored([reward(url, references=True, mask=True)], [1.0], pixels(), PROMPTS, RECORDS, shown)
        scored([reward(url, references=True)], [1.0], pixels(), PROMPTS, RECORDS, shown)
        with pytest.raises(RewardError, match="compares images with their references"):
            scored([reward(url, references=True)], [1.0], pixels(), PROMPTS, RECORDS)
    for image, own in zip(server.asked[0]["images"], shown, strict=True):
        assert all(torch.equal(decoded(a), b) for a, b in zip(image["references"], own.images, strict=True))
        assert torch.equal(decoded(image["mask"])[:1], own.mask)
    assert "mask" not in server.asked[1]["images"][0] and "references" in server.asked[1]["images"][0]


def test_a_token_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OUR_TOKEN", "abc-def")
    with answering(counted) as (url, server):
        ask(url, token_env="OUR_TOKEN")
        ask(url)
    assert [held.get("Authorization") for held in server.headers] == ["Bearer abc-def", None]
    monkeypatch.delenv("OUR_TOKEN")
    with pytest.raises(ConfigError, match="`token_env` names 'OUR_TOKEN', and this environment variable is not set"):
        reward("http://127.0.0.1:9/", token_env="OUR_TOKEN")


def test_neither_a_netrc_nor_a_proxy_meddles_with_a_server_of_this_machine(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    with answering(counted) as (url, server):
        ask(url)
    assert "Authorization" not in server.headers[0]


# Answers that are refused at once.


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (200, {"scores": [1, 2]}, r"\$\.scores of its answer holds 2 entries, expected 3, one for each image"),
        (200, {"scores": [1, float("nan"), 3]}, r"\$\.scores\[1\] of its answer is nan, expected a finite number"),
        (200, {"scores": [1, 2, "3"]}, r"\$\.scores\[2\] of its answer is '3', expected a finite number"),
        (200, {"scores": [1, True, 3]}, r"\$\.scores\[1\] of its answer is True"),
        (200, {"scores": 1}, r"\$\.scores of its answer is 1, expected a list of 3"),
        (
            200,
            {"rewards": [1, 2, 3]},
            r"\$ of its answer is {'rewards': \[1, 2, 3\]}, expected an object with 'scores'",
        ),
        (200, [1, 2, 3], r"\$ of its answer is \[1, 2, 3\], expected an object with 'scores'"),
        (200, "<html>", "answered no JSON: 200 OK: <html>"),
        (404, "no such page", "refused: 404 Not Found: no such page"),
        (401, {"error": "wrong token"}, 'refused: 401 Unauthorized: {"error": "wrong token"}'),
        (307, "", "answered 307, which leads to http://127.0.0.1:9/elsewhere; name that address under `url`"),
    ],
)
def test_wrong_answers_name_address_and_place_and_are_not_asked_again(status, answer, message):
    with answering(lambda request: (status, answer)) as (url, server):
        with pytest.raises(RewardError, match=rf"^reward 'http' at {url}:? {message}") as caught:
            ask(url, retries=3)
        assert not isinstance(caught.value, RewardUnavailable)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1, 2, 3], r"\$\.scores of its answer has no names, expected an object with 'good', as `numbers` says"),
        ({"fine": [1, 2, 3]}, r"\$\.scores of its answer has 'fine', expected an object with 'good'"),
        ({"good": [1, 2]}, r"\$\.scores\['good'\] of its answer holds 2 entries"),
    ],
)
def test_numbers_that_are_not_those_of_the_run(scores, message):
    with answering(lambda request: (200, {"scores": scores})) as (url, _), pytest.raises(RewardError, match=message):
        ask(url, numbers={"good": 1.0})


def test_a_record_that_json_cannot_hold():
    with answering(counted) as (url, server), pytest.raises(RewardError, match="a record cannot be sent as JSON"):
        scored([reward(url)], [1.0], pixels(1, 3, 2, 2), ["one"], [{"n": 1, "blob": b"x"}])
    assert not server.asked


# Failures that may pass.


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_that_is_down_for_a_while_is_asked_again(status, capsys):
    replies = [(status, "busy"), (status, "busy")]
    with answering(lambda request: replies.pop() if replies else counted(request)) as (url, server):
        assert ask(url, retries=2)[0].tolist() == [1, 2, 3]
    assert len(server.asked) == 3
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in told] == [
        "asking again in 0.01 s, 1 of 2",
        "asking again in 0.02 s, 2 of 2",
    ]
    assert f"reward 'http' at {url} answered {status} " in told[0]


def test_after_the_last_attempt_it_ends():
    with answering(lambda request: (503, "down")) as (url, server):
        with pytest.raises(RewardUnavailable, match=f"'http' at {url} answered 503 Service Unavailable: down"):
            ask(url, retries=2)
        assert len(server.asked) == 3


def test_no_answer_in_time():
    release = threading.Event()

    def slow(request):
        release.wait(10)
        return counted(request)

    with answering(slow) as (url, _):
        start = time.perf_counter()
        with pytest.raises(RewardUnavailable, match=r"gave no answer in 0.2 s \(`timeout`\)"):
            ask(url, timeout=0.2)
        assert time.perf_counter() - start < 5
        release.set()


def test_nobody_is_there():
    with answering(counted) as (url, _):
        pass
    with pytest.raises(RewardUnavailable, match=f"'http' at {url} cannot be reached: .*Connection refused"):
        ask(url)


def test_waits_grow_up_to_a_minute():
    assert waits(3, 0.5) == [0.5, 1.0, 2.0]
    assert waits(9, 1.0)[-2:] == [LONGEST, LONGEST]


# Pairs and groups.


def wins(request):
    """The larger number of two records wins."""
    ns = [image["record"]["n"] for image in request["images"]]
    return 200, {"scores": [float(ns[i] > ns[j]) for i, j in request["pairs"]]}


def test_pairs_of_a_group_become_shares_of_wins():
    on, groups = pixels(5, 3, 4, 4), [7, 8, 7, 8, 7]
    records = [{"n": n} for n in (3, 1, 1, 2, 2)]
    with answering(wins) as (url, server):
        total, _ = scored([reward(url, judges="pairs")], [1.0], on, ["p"] * 5, records, (), groups)
        once, _ = scored(
            [reward(url, judges="pairs", both_orders=False, batch_size=2)], [1.0], on, ["p"] * 5, records, (), groups
        )
    assert total.tolist() == once.tolist() == [1.0, 0.0, 0.0, 1.0, 0.5]
    both, first, second = server.asked
    assert [image["group"] for image in both["images"]] == [7, 7, 7, 8, 8]
    assert both["pairs"] == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [3, 4], [4, 3]]
    assert first["pairs"] == [[0, 1], [0, 2], [1, 2]], "a group is not divided, however small a request should be"
    assert second["pairs"] == [[0, 1]]


def test_a_pair_is_a_probability():
    with (
        answering(lambda request: (200, {"scores": [0.5, 1.5]})) as (url, _),
        pytest.raises(RewardError, match=r"\$\.scores\[1\] of its answer is 1.5, expected the probability in \[0, 1\]"),
    ):
        ask(url, pixels(2, 3, 2, 2), groups=[0, 0], judges="pairs")


def test_a_group_is_told_by_its_number():
    def ranked(request):
        best = {}
        for image in request["images"]:
            best[image["group"]] = max(best.get(image["group"], 0), image["record"]["n"])
        return 200, {"scores": [image["record"]["n"] / best[image["group"]] for image in request["images"]]}

    with answering(ranked) as (url, server):
        records = [{"n": n} for n in (4, 1, 2, 5)]
        found, _ = scored(
            [reward(url, judges="group")], [1.0], pixels(4, 3, 2, 2), ["p"] * 4, records, (), [0, 1, 0, 1]
        )
    torch.testing.assert_close(found, torch.tensor([1.0, 0.2, 0.5, 1.0]))
    assert [image["group"] for image in server.asked[0]["images"]] == [0, 0, 1, 1]


# Before the first step.


@pytest.mark.parametrize("options", [{}, {"numbers": {"ink": 1.0}}, {"judges": "pairs"}])
def test_a_server_is_asked_once_without_images(options):
    with answering(lambda request: (200, {"scores": []})) as (url, server):
        reward(url, **options).ready()
    assert [request["images"] for request in server.asked] == [[]]


def test_a_wrong_address_is_not_asked_again_before_the_first_step():
    with answering(lambda request: (503, "down")) as (url, server):
        with pytest.raises(RewardUnavailable):
            reward(url, retries=9, retry_wait=60).ready()
        assert len(server.asked) == 1


# The server of the examples.


def test_the_server_of_the_examples_scores_by_ink(monkeypatch):
    module, on = example(), pixels(3, 3, 8, 8)
    ink = 1 - on.mean((1, 2, 3))
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    with served(module.Server(token="secret")) as url:
        found, _ = ask(url, on, token_env="REWARD_TOKEN")
        torch.testing.assert_close(found, ink)
        pairs, _ = ask(url, on, groups=[0, 0, 0], judges="pairs", token_env="REWARD_TOKEN")
        assert pairs.argsort().tolist() == ink.argsort().tolist()
        reward(url, token_env="REWARD_TOKEN").ready()
        with pytest.raises(RewardError, match="refused: 401 Unauthorized"):
            ask(url, on)
        raw = reward(url, token_env="REWARD_TOKEN")
        with pytest.raises(RewardError, match="refused: 400 Bad Request: .*KeyError"):
            raw.asked([{"prompt": "no frames"}])

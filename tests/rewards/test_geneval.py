"""GenEval's rules on boxes made by hand, and the reward with a detector on loopback."""

from __future__ import annotations

import json

import pytest
import torch

from flowhooks.errors import RewardError
from flowhooks.rewards import build_reward, scored
from flowhooks.rewards.geneval_rules import Detected, Rules, overlap, record_faults
from tests.rewards.servers import answering

RULES = Rules()


def seen(label, *, at=(0, 0, 10, 10), score=0.95, color=None):
    return Detected(label=label, box=at, score=score, color=color)


def wanted(name, count=1, **more):
    return {"class": name, "count": count, **more}


def met(objects, *include, exclude=(), rules=RULES, **record):
    return rules.met({"include": list(include), "exclude": list(exclude), **record}, objects)


def test_one_and_two_objects():
    assert met([seen("dog")], wanted("dog")) == [True]
    assert met([seen("cat")], wanted("dog")) == [False]
    assert met([seen("dog"), seen("cat")], wanted("dog"), wanted("cat")) == [True, True]
    assert met([], wanted("dog"), wanted("cat")) == [False, False]


def test_counts_are_exact_by_what_is_excluded():
    three = wanted("cup", 3), [wanted("cup", 4)]
    for found, right in ((2, [False, True]), (3, [True, True]), (4, [True, False])):
        assert met([seen("cup")] * found, three[0], exclude=three[1]) == right


def test_counting_has_a_threshold_of_its_own():
    objects = [seen("cup", score=0.95), seen("cup", score=0.9), seen("cup", score=0.31), seen("cup", score=0.3)]
    assert met(objects, wanted("cup", 3)) == [True]
    assert met(objects, wanted("cup", 4)) == [False], "as sure as the threshold is not surer"
    assert met(objects, wanted("cup", 1), tag="counting") == [True]
    assert met(objects, wanted("cup", 2), tag="counting") == [False]


def test_no_more_objects_of_a_class_than_the_limit_count():
    objects = [seen("cup"), seen("cup"), seen("cup"), seen("dog")]
    assert met(objects, wanted("cup", 3), wanted("dog"), rules=Rules(max_objects=2)) == [False, True]


def test_objects_that_lie_over_each_other_count_once_where_that_is_wanted():
    objects = [seen("cup", at=(0, 0, 9, 9), score=0.8), seen("cup", at=(0, 0, 9, 4), score=0.9)]
    assert overlap(objects[0].box, objects[1].box) == 0.5
    assert met(objects, wanted("cup", 2)) == [True]
    assert met(objects, wanted("cup", 2), rules=Rules(max_overlap=0.6)) == [True]
    assert met(objects, wanted("cup", 2), rules=Rules(max_overlap=0.5)) == [False]
    assert overlap((0, 0, 4, 4), (6, 0, 9, 9)) == 0


def test_colours_are_those_of_the_surest_objects():
    red, blue = seen("car", color="red", score=0.9), seen("car", color="blue", score=0.8)
    assert met([red, blue], wanted("car", color="red")) == [True]
    assert met([blue, red], wanted("car", color="blue")) == [False], "the blue one is the second"
    assert met([red, blue], wanted("car", 2, color="red")) == [False]
    with pytest.raises(ValueError, match="asks for the color of 'car'"):
        met([seen("car")], wanted("car", color="red"))
    assert met([], wanted("car", color="red")) == [False]


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        ((-30, 0, -20, 10), {"left of"}),
        ((20, 0, 30, 10), {"right of"}),
        ((0, -30, 10, -20), {"above"}),
        ((0, 20, 10, 30), {"below"}),
        ((20, 20, 30, 30), {"right of", "below"}),
        ((-30, -30, -20, -20), {"left of", "above"}),
        # Off by 2, a tenth of both sizes: nothing is left.
        ((2, 0, 12, 10), set()),
        # Off by 3, of which a third is left.
        ((3, 0, 13, 10), set()),
        # Off by 5, of which more than half is left.
        ((5, 0, 15, 10), {"right of"}),
        # Off by (20, 6): (18, 4) is left of a length of 20.9.
        ((20, 6, 30, 16), {"right of"}),
        ((0, 0, 10, 10), set()),
    ],
)
def test_positions_by_the_offset_of_centres(box, relations):
    assert RULES.relations(box, (0, 0, 10, 10)) == relations


def test_an_object_stands_to_all_of_another_entry():
    record = wanted("dog"), wanted("cat", position=["right of", 0])
    dog, cat = seen("dog"), seen("cat", at=(30, 0, 40, 10))
    assert met([dog, cat], *record) == [True, True]
    assert met([dog, seen("cat", at=(-30, 0, -20, 10))], *record) == [True, False]
    assert met([cat], *record) == [False, False], "there is no dog to be right of"
    two = wanted("dog", 2), wanted("cat", position=["right of", 0])
    assert met([dog, seen("dog", at=(50, 0, 60, 10)), cat], *two) == [True, False]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, "has no list under `include`"),
        ({"include": []}, "has no list under `include`"),
        ({"include": ["dog"]}, "`include[0]` names no `class`"),
        ({"include": [wanted("dog")], "exclude": {}}, None),
        ({"include": [wanted("dog")], "exclude": "dog"}, "`exclude` is no list"),
        ({"include": [wanted("dog", 0)]}, "`include[0]` has no `count` of 1 or more"),
        ({"include": [wanted("dog")], "exclude": [{"class": "dog"}]}, "`exclude[0]` has no `count`"),
        ({"include": [wanted("dog"), wanted("cat", position=["beside", 0])]}, "`position` is ['beside', 0], expected"),
        ({"include": [wanted("dog", position=["above", 0])]}, "`position` names entry 0, expected one before it"),
        ({"include": [wanted("dog"), wanted("cat", position=["above", 0])], "tag": "position"}, None),
    ],
)
def test_records_are_checked(record, fault):
    found = list(record_faults(record))
    assert not found if fault is None else fault in found[0]


# With a detector.

RECORDS = [
    {"tag": "two_object", "include": [wanted("dog"), wanted("cat")]},
    {"tag": "color_attr", "include": [wanted("car", color="red"), wanted("dog", color="brown")]},
    {"tag": "counting", "include": [wanted("cup", 2)], "exclude": [wanted("cup", 3)]},
]


def found(label, color=None, score=0.95):
    return {"label": label, "box": [0, 0, 10, 10.5], "score": score, "color": color}


OBJECTS = [
    [found("dog")],
    [found("car", "red"), found("dog", "brown")],
    [found("cup"), found("cup"), found("cup"), found("cup", score=0.5)],
]


def judged(url, **options):
    reward = build_reward({"type": "geneval", "url": url, "retries": 0, **options})
    reward.ready()
    return scored([reward], [1.0], torch.rand(3, 3, 8, 8), ["a", "b", "c"], RECORDS)[0].tolist()


def test_a_detector_is_asked_with_records_and_judged_by_the_rules():
    def answer(request):
        return 200, {"objects": [OBJECTS[RECORDS.index(image["record"])] for image in request["images"]]}

    with answering(answer) as (url, server):
        assert judged(url, batch_size=2) == [0.0, 1.0, 0.0]
        assert judged(url, result="share") == [0.5, 1.0, 0.5]
        assert judged(url, counting_threshold=0.96) == [0.0, 1.0, 0.0]
    assert [len(request["images"]) for request in server.asked] == [0, 2, 1, 0, 3, 0, 3]
    assert json.dumps(server.asked[1]["images"][0]["record"]) == json.dumps(RECORDS[0])


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([[], []], r"\$\.objects of its answer holds 2 entries, expected 3, one for each image"),
        ([[], {}, []], r"\$\.objects\[1\] of its answer is dict, expected the list of the objects"),
        ([[{"label": "dog"}], [], []], r"\$\.objects\[0\]\[0\] of its answer is {'label': 'dog'}, expected .* 'box'"),
        ([[found(7)], [], []], r"\$\.objects\[0\]\[0\]\.label of its answer is 7"),
        ([[{**found("a"), "box": [1, 2, 3]}], [], []], r"\$\.objects\[0\]\[0\]\.box of its answer holds 3 entries"),
        ([[found("a", score=None)], [], []], r"\$\.objects\[0\]\[0\]\.score\[0\] of its answer is None"),
        ([[found("a", 3)], [], []], r"\$\.objects\[0\]\[0\]\.color of its answer is 3, expected the name of a color"),
        ([[], [found("car")], []], r"\$\.objects\[1\] of its answer has objects without a color, and the record asks"),
    ],
)
def test_answers_of_a_detector_that_are_none(objects, message):
    with (
        answering(lambda request: (200, {"objects": objects if request["images"] else []})) as (url, _),
        pytest.raises(RewardError, match=f"reward 'geneval' at {url}: {message}"),
    ):
        judged(url)


def test_a_record_that_is_none():
    with answering(lambda request: (200, {"objects": []})) as (url, _):
        reward = build_reward({"type": "geneval", "url": url})
        with pytest.raises(RewardError, match="'geneval': the record of prompt 'a' has no list under `include`"):
            scored([reward], [1.0], torch.rand(1, 3, 4, 4), ["a"], [{"tag": "x"}])

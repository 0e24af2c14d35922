"""`check` counts the labels of both kinds, and warns where there is one only."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowhooks.checks.labels import describe_labels, label_problems, label_warnings
from flowhooks.config import resolve_run
from flowhooks.data import Record
from flowhooks.data.assets import FileAsset
from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import Picture

IMAGE = Picture(asset=FileAsset(Path("x.png")), width=8, height=8, digest="")
CUT = Geometry(width=8, height=8)


def samples(*labels):
    return [
        Record(key=f"{i}", dataset="votes", image=IMAGE, caption="a", geometry=CUT, columns={"label": label})
        for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("labels", "counts", "warned"),
    [
        ((1, "down", "up"), "'label': 2 liked, 1 disliked", None),
        ((1, "up"), "'label': 2 liked, 0 disliked", "all 2 samples are liked by 'label', and none is disliked"),
        ((0,), "'label': 0 liked, 1 disliked", "the only sample is disliked by 'label', and none is liked"),
    ],
)
def test_labels_of_one_kind_are_counted_and_warned_of(labels, counts, warned, tmp_path):
    run, records = resolve_run({"hooks": [{"type": "kto"}]}, tmp_path / "run.json"), samples(*labels)
    assert not list(label_problems(run, records))
    assert describe_labels(run, records) == [counts]
    found = label_warnings(run, records)
    assert [f"$.hooks[0].label: {warned}" in each for each in found] == ([] if warned is None else [True])


def test_a_run_without_labels_has_nothing_to_count(tmp_path):
    for hooks in ([{"type": "kto", "label": None}], [{"type": "flow_dpo"}]):
        run = resolve_run({"hooks": hooks}, tmp_path / "run.json")
        assert not describe_labels(run, samples(1)) and not label_warnings(run, samples(1))
    run = resolve_run({"hooks": [{"type": "kto"}]}, tmp_path / "run.json")
    assert not describe_labels(run, []) and not label_warnings(run, [])

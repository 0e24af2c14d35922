"""References: images that the pipeline is given beside the prompt, read from columns, linked sets and first frames."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flowhooks.batch import Batch
from flowhooks.data import build_cache, collate
from flowhooks.data.references import shows_references
from flowhooks.data.transform import load_picture
from flowhooks.errors import DataError
from flowhooks.probe.learn import called_at
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.references import as_argument
from flowhooks.probe.runs import find_networks, walked
from tests.data.folders import audit_in, image_set, load, partner_set, problems_in, write_image
from tests.families import learnt

#: Row -> sizes of its references; the images are of 80 x 48 pixels.
ROWS = {"a": [(32, 64)], "b": [(64, 64), (48, 64)], "c": [], "d": [(64, 32)]}


def table(root, rows=ROWS, **keys):
    """A CSV set of images of 80 x 48 pixels, with up to two references each."""
    lines = ["file_name,caption,one,two"]
    for seed, (name, sizes) in enumerate(rows.items()):
        write_image(root / f"{name}.png", (80, 48), seed)
        files = [f"ref/{name}{i}.png" for i in range(len(sizes))]
        for i, (file, size) in enumerate(zip(files, sizes, strict=True)):
            write_image(root / file, size, 100 + 10 * seed + i)
        lines.append(",".join([f"{name}.png", f"a photo of {name}", *(files + ["", ""])[:2]]))
    (root / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    return {
        "id": "edits",
        "type": "csv",
        "instance_data_dir": "table.csv",
        "reference_column": ["one", "two"],
        "missing_reference": "none",
        **keys,
    }


def predicted_by_the_pipeline(model, record):
    """State, sigma and velocity of the first step of a run with the record's own references."""
    images = {"image": [load_picture(each.image.asset.read(), each.geometry) for each in record.references]}
    images = {name: as_argument(each) for name, each in images.items() if each}
    networks = find_networks(model.pipe)
    call = model.call(prompt=record.caption, generator=torch.Generator().manual_seed(3), **images)
    with torch.no_grad(), without_side_effects(model.pipe, networks):
        walk = walked(model.pipe, networks, call, 2)
    return walk.steps[0].sample, called_at(model, walk.calls[0], walk.steps[0].sigma), walk.steps[0].velocity


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("flux-kontext", {name: sizes[:1] for name, sizes in ROWS.items()}),
        ("flux2-klein-edit", {"a": [(64, 96)], "b": [(64, 64), (80, 64)], "c": [], "d": [(96, 64)]}),
        ("qwen-image-edit-plus", {name: sizes for name, sizes in ROWS.items() if sizes}),
    ],
)
def test_references_of_other_sizes_two_for_some_rows_and_none_for_others(tmp_path, name, rows):
    """Every batch's prediction equals the pipeline's, from a cache that was just made and from one that was found."""
    found = audit_in(tmp_path, [table(tmp_path, rows)])
    assert "reference" in found.provides and found.arguments == (None,)
    model = learnt(name)
    build_cache(found, model, tmp_path / "cache", progress=False)
    model = learnt(name)
    dataset = build_cache(found, model, tmp_path / "cache", progress=False)
    batch = collate([dataset[i] for i in range(len(rows))])
    assert isinstance(batch, Batch) and batch.size == (48, 80, 1)
    at = model.at(*batch.size)
    noisy, sigma, wanted = zip(*(predicted_by_the_pipeline(at, record) for record in dataset.records), strict=True)
    with torch.no_grad():
        mine = at.predict(torch.cat(noisy), torch.tensor(sigma), batch.condition)
    for one, theirs in zip(mine, wanted, strict=True):
        assert float((one - theirs[0]).abs().max() / theirs.abs().max().clamp(min=1)) < 1e-5
    assert len(batch.condition.groups()) == len({tuple(sizes) for sizes in rows.values()})


def test_references_that_the_pipeline_refuses_are_one_problem_with_a_count(tmp_path):
    rows = {"a": [(32, 64)] * 2, "b": [(64, 64), (48, 64)], "c": []}
    found = audit_in(tmp_path, [table(tmp_path, rows)])
    with pytest.raises(DataError) as caught:
        build_cache(found, learnt("flux-kontext"), tmp_path / "cache", progress=False)
    (problem,) = map(str, caught.value.problems)
    assert "the pipeline refuses references: " in problem and " (2 samples: " in problem
    assert "a0.png + " in problem and "b0.png + " in problem


def test_a_sample_without_a_reference_is_refused_left_out_or_trained(tmp_path):
    rows = {name: ROWS[name] for name in "ac"}
    (problem,) = problems_in(tmp_path, [table(tmp_path, rows, missing_reference="error", reference_column="one")])
    assert "$[0].reference_column: 1 of 2 images of 'edits' have no reference in 'edits.one': " in problem
    assert "'leave_out'" in problem and "'none'" in problem
    left = audit_in(tmp_path, [table(tmp_path, rows, missing_reference="leave_out", reference_column="one")])
    assert [record.key for record in left.records] == ["a"]
    kept = audit_in(tmp_path, [table(tmp_path, rows)])
    assert [len(record.references) for record in kept.records] == [1, 0]
    assert any("edits: references: 1 with 0, 1 with 1" in line for line in kept.report)


def test_a_linked_set_gives_references_to_both_sides_of_a_pair(tmp_path):
    for seed, name in enumerate(("one", "two")):
        for k, folder in enumerate(("win", "lose", "source")):
            write_image(tmp_path / folder / f"{name}.png", (16, 16), 10 * k + seed)
        (tmp_path / "win" / f"{name}.txt").write_text("a", encoding="utf-8")
    sets = [
        image_set("win", conditioning_data=["lose", "source"], reference_resolution="target"),
        partner_set("lose", "reference_strict"),
        partner_set("source", "reference_image", reference_argument="image"),
    ]
    found = audit_in(tmp_path, sets)
    assert found.provides >= {"rejected", "reference"} and found.arguments == ("image",)
    assert load(tmp_path, sets).provides >= {"data:rejected", "data:reference"}
    for record in found.records:
        (reference,) = record.references
        assert reference.image.asset.name.endswith(f"source/{record.key}.png")
        assert reference.geometry == record.geometry, "cut like its image"
    write_image(tmp_path / "source" / "two.png", (16, 32), 5)
    assert "references of another aspect ratio than their image (1): two" in problems_in(tmp_path, sets)[0]


def test_columns_by_argument_and_the_first_frame(tmp_path):
    block = table(tmp_path, {"b": ROWS["b"]}, reference_column={"image": "one", "last_image": ["two"]})
    assert audit_in(tmp_path, [block]).arguments == ("image", "last_image")
    found = problems_in(tmp_path, [{**block, "reference_column": ["three"]}])
    assert any("$[0].reference_column: there is no column 'three'" in problem for problem in found), found
    (problem,) = problems_in(tmp_path, [{**block, "reference_column": None, "reference": "first_frame"}])
    assert "$[0].reference: is the first frame of a video; set `num_frames`" in problem
    (problem,) = problems_in(
        tmp_path, [{**block, "reference_column": None, "missing_reference": "error", "reference_dropout": 0.5}]
    )
    assert "$[0].reference_dropout: the set has no references" in problem


def test_references_are_dropped_for_a_share_of_visits(tmp_path):
    (record,) = audit_in(tmp_path, [table(tmp_path, {"a": ROWS["a"]}, reference_dropout=0.3)]).records
    shown = [shows_references(record, seed=1, place=place) for place in range(400)]
    assert 0.62 < sum(shown) / len(shown) < 0.78
    assert shown == [shows_references(record, seed=1, place=place) for place in range(400)]
    assert record.drawn_references == (record.references, ())
    whole = SimpleNamespace(drawing=SimpleNamespace(reference_dropout=0.0))
    assert shows_references(whole, seed=1, place=0)

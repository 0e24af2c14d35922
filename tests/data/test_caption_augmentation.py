"""The words of a visit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowhooks.data import Schedule, build_cache, data_loader, streams
from flowhooks.data.caption_augmentation import caption_of, template_fault, wordings
from flowhooks.documents.schemas import schemas
from tests.data.folders import audit_in, image_set, write_pairs

KEYS = schemas()["dataloader"]["$defs"]["dataset"]["properties"]
DEFAULTS = {key: part["default"] for key, part in KEYS.items() if "default" in part}
words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4)


def worded(caption: str, **keys) -> tuple[str, ...]:
    return wordings(caption, {**DEFAULTS, **keys})


def test_a_caption_is_left_as_it_is_unless_a_key_says_so():
    assert worded("a, b {x}\nc") == ("a, b {x}\nc",)


@given(st.lists(words, min_size=1, max_size=9), st.integers(0, 4), st.integers(2, 9))
def test_shuffled_tags_are_the_same_tags_with_the_first_kept(tags, kept, variants):
    found = worded(",".join(tags), caption_shuffle=True, keep_tags=kept, caption_variants=variants)
    assert found[0] == ",".join(tags) and len(found) == len(set(found)) <= variants
    for each in found[1:]:
        assert each.split(", ")[:kept] == tags[:kept] and Counter(each.split(", ")) == Counter(tags)
    assert found == worded(",".join(tags), caption_shuffle=True, keep_tags=kept, caption_variants=variants)


def test_every_order_of_few_tags_is_found_and_no_more():
    assert set(worded("x, a, b, ,c", caption_shuffle=True, keep_tags=1, caption_variants=64)) == {
        "x, a, b, ,c",
        *(f"x, {order}" for order in ("a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a")),
    }


def test_lines_and_templates_are_equally_likely():
    keys = {"caption_lines": "any", "caption_template": ["a photo of {caption}", "{{{caption}}}"]}
    found = Counter(worded("  a, b, c \n\nd\n", caption_shuffle=True, **keys))
    assert found["a photo of d"] == found["{d}"] == 4
    assert sum(found[f"a photo of {line}"] for line in worded("a, b, c", caption_shuffle=True)) == 4
    assert found.total() == 16
    assert worded("one\ntwo", **keys)[0] == "a photo of one"


@pytest.mark.parametrize(
    "template, words",
    [
        ("a photo", "makes all captions the same"),
        ("a {captoin}", "unknown placeholder {captoin}; the only one is {caption}"),
        ("a {}", "unknown placeholder {}"),
        ("a {caption.__class__}", "unknown placeholder {caption.__class__}"),
        ("a {caption!r}", "formats its placeholder"),
        ("a {caption:>9}", "formats its placeholder"),
        ("a {caption", "is no template"),
        ("{{caption}}", "makes all captions the same"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(template, words):
    assert words in (template_fault(template) or "")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    root = tmp_path_factory.mktemp("words")
    write_pairs(root, "abc")
    (root / "win" / "a.txt").write_text("red, round, ripe, sweet\nan apple", encoding="utf-8")
    keys = {"caption_shuffle": True, "caption_lines": "any", "caption_dropout": 0.25}
    return audit_in(root, [image_set("win", **keys)])


def test_a_visit_is_a_function_of_seed_and_place(audited):
    record = audited.records[0]
    assert record.caption == "red, round, ripe, sweet"
    seen = Counter(caption_of(record, 7, place) for place in range(4000))
    assert seen[""] == pytest.approx(1000, abs=120) and seen["an apple"] == pytest.approx(1500, abs=120)
    assert set(seen) == {"", *record.captions} and len(seen) == 6
    assert [caption_of(record, 7, 5 * i) for i in range(9)] != [caption_of(record, 8, 5 * i) for i in range(9)]


def test_batches_say_which_caption_they_were_made_under(audited, model, tmp_path):
    """Each text is encoded once, and the condition is that of the words in the batch, whatever reads it."""
    dataset = build_cache(audited, model, tmp_path, progress=False)
    assert "" in audited.captions and {caption for caption, _ in dataset._captions} == set(audited.captions)
    assert audited.counts["captions"] == len(audited.captions) == 8
    schedule = Schedule(streams(audited.records), batch_size=3, seed=3)
    batches = list(islice(data_loader(dataset, schedule), 12))
    for other in (data_loader(dataset, schedule, num_workers=2), data_loader(dataset, schedule, start=4)):
        theirs = list(islice(other, 8))
        mine = batches[:8] if other.num_workers else batches[4:]
        assert [each.prompts for each in theirs] == [each.prompts for each in mine]
    assert {"", "an apple"} < {prompt for batch in batches for prompt in batch.prompts}
    size = audited.records[0].geometry.size
    for batch in batches:
        for row, prompt in enumerate(batch.prompts):
            mine, stored = batch.condition[row : row + 1].flatten(), dataset.condition(prompt, size).flatten()
            assert all(torch.equal(mine[name], stored[name]) for name in stored)


def test_the_empty_caption_is_encoded_only_where_captions_are_dropped(audited):
    record = audited.records[1]
    kept = replace(record, drawing=replace(record.drawing, caption_dropout=0.0))
    assert replace(audited, records=(record,)).captions == ("", "a photo of b")
    assert replace(audited, records=(kept,)).captions == ("a photo of b",)

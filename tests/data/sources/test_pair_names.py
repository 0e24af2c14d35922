"""Both sides of pairs in one folder, told apart by the names of their files."""

from __future__ import annotations

import pytest

from flowhooks.errors import ConfigError
from tests.data.folders import audit_in, image_set, load, partner_set, problems_in, write_image
from tests.data.sources.kept import half_mask


def folder(root, *stems: str) -> None:
    for seed, stem in enumerate(stems):
        write_image(root / f"pairs/{stem}.png", seed=seed)


def block(*patterns: str, **keys) -> dict:
    return {**image_set("pairs"), "pair_names": list(patterns), **keys}


@pytest.mark.parametrize(
    "patterns, stems, texts",
    [
        (("*_w", "*_l"), ("b/a_w", "b/a_l"), ("b/a.txt",)),
        (("*_w", "*_l"), ("b/a_w", "b/a_l"), ("b/a_w.caption",)),
        (("w/*", "l/*"), ("w/b/a", "l/b/a"), ("b/a.txt", "w/b/a.txt")),
        (("10_good/*", "bad/*.no"), ("10_good/b/a", "bad/b/a.no"), ("b/a.caption",)),
    ],
)
def test_a_pair_is_what_the_star_stands_for(tmp_path, patterns, stems, texts):
    folder(tmp_path, *stems)
    for text in reversed(texts):
        (tmp_path / "pairs" / text).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / text).write_text(f"from {text}")
    assert load(tmp_path, [block(*patterns)]).provides == {"data:image", "data:rejected"}
    (record,) = audit_in(tmp_path, [block(*patterns)]).records
    assert record.key == "b/a" and record.caption == f"from {texts[0]}"
    assert [each.asset.path.relative_to(tmp_path / "pairs").as_posix() for each in (record.image, record.rejected)] == [
        f"{stem}.png" for stem in stems
    ]


def test_a_linked_set_of_masks_follows_the_name_of_the_pair(tmp_path):
    folder(tmp_path, "w/a", "l/a")
    (tmp_path / "mask").mkdir()
    (tmp_path / "mask/a.png").write_bytes(half_mask())
    blocks = [
        block("w/*", "l/*", caption_strategy="filename", conditioning_data=["mask"]),
        partner_set("mask", "mask"),
    ]
    (record,) = audit_in(tmp_path, blocks).records
    assert record.caption == "a" and len(record.masks) == 1


def test_what_makes_no_pair(tmp_path):
    folder(tmp_path, "a_w", "a_l", "b_w", "c_l", "d")
    problems = problems_in(tmp_path, [block("*_w", "*_l", caption_strategy="filename")])
    assert len(problems) == 2
    assert "files that neither '*_w' nor '*_l' matches (1): d" in problems[0]
    assert "rejected files without a preferred one" in problems[1]
    for name in ("c_l", "d"):
        (tmp_path / f"pairs/{name}.png").unlink()
    found = audit_in(tmp_path, [block("*_w", "*_l", caption_strategy="filename")])
    assert [record.key for record in found.records] == ["a"]
    assert any("1 image without a rejected side, left out: b" in line for line in found.report)
    (problem, *_) = problems_in(tmp_path, [block("*", "*_l", caption_strategy="filename")])
    assert "files that both patterns match (1): a_l" in problem
    (problem,) = problems_in(tmp_path, [block("*", "*_lost", caption_strategy="filename")])
    assert "'*_lost' matches no file" in problem


@pytest.mark.parametrize(
    "wrong",
    [
        {"pair_names": ["*_w"]},
        {"pair_names": ["w", "l/*"]},
        {"pair_names": ["*/*", "l/*"]},
        {"pair_names": ["*_w", "*_w"]},
        {"type": "imagefolder"},
        {"dataset_type": "conditioning", "conditioning_type": "mask"},
    ],
)
def test_where_it_does_not_belong(tmp_path, wrong):
    folder(tmp_path, "a_w", "a_l")
    with pytest.raises(ConfigError, match="pair_names"):
        load(tmp_path, [{**block("*_w", "*_l"), **wrong}])

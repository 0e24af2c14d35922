"""What holds for every source: the same samples give the same records, the same faults are told with their place."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from flowhooks.data import Record
from flowhooks.data.sources import SOURCES
from tests.data.folders import audit_in, load, problems_in
from tests.data.sources.kept import KEEPERS, Sample, picture, samples

KEYS = ("a", "b", "sub/c", "sub/d")


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(params=KEEPERS)
def keep(request):
    return KEEPERS[request.param]


def test_every_source_is_kept_here():
    assert {name.split(",")[0] for name in KEEPERS} == set(SOURCES)


def digest(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def seen(record: Record) -> tuple:
    rejected = record.rejected.digest if record.rejected else None
    masks = tuple(mask.digest for mask in record.masks)
    return record.image.digest, record.image.size, record.caption, rejected, masks, record.geometry


def test_the_same_samples_give_the_same_records(tmp_path, keep):
    kept = samples(KEYS)
    result = audit_in(tmp_path, keep(tmp_path, kept))
    found = {record.image.digest: seen(record) for record in result.records}
    assert len(result.records) == len(KEYS) and result.provides == {"image", "rejected", "mask"}
    assert result.counts == {"samples": 4, "images": 4, "rejected": 4, "masks": 4, "captions": 4}
    for sample in kept:
        image, size, caption, rejected, masks, _ = found[digest(sample.image)]
        assert (size, caption) == ("16x16", sample.caption.decode())
        assert rejected == digest(sample.rejected) and masks == (digest(sample.mask),)


def test_pictures_are_read_again_in_another_process(tmp_path, keep):
    kept = samples(KEYS)
    records = audit_in(tmp_path, keep(tmp_path, kept)).records
    again = pickle.loads(pickle.dumps(records))
    assert again == records and hash(again[0].image) == hash(records[0].image)
    read = {digest(record.image.asset.read()): digest(record.rejected.asset.read()) for record in reversed(again)}
    assert read == {digest(sample.image): digest(sample.rejected) for sample in kept}
    assert len(pickle.dumps(records[0].image)) < 6000
    many = len(pickle.dumps(records * 10)) - len(pickle.dumps(records))
    assert many < 2000  # the table behind the pictures is not pickled with each


def test_a_plan_knows_of_pairs_and_masks_before_the_audit(tmp_path, keep):
    assert load(tmp_path, keep(tmp_path, samples(KEYS))).provides == {"data:image", "data:rejected", "data:mask"}


FAULTS = {
    "empty image": ({"image": b""}, "is empty (0 bytes)"),
    "no image": ({"image": b"some text"}, "is not a PNG"),
    "cut image": ({"image": picture(0)[:200]}, "damaged"),
    "empty caption": ({"caption": b" "}, "empty captions (1)"),
    "bad caption": ({"caption": b"caf\xe9"}, "captions that are not UTF-8 text (1)"),
    "cut rejected": ({"rejected": picture(0)[:200]}, "damaged"),
    "no rejected": ({"rejected": None}, ""),
    "empty mask": ({"mask": b""}, "is empty (0 bytes)"),
    "no mask": ({"mask": None}, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_problem_that_names_its_place(tmp_path, keep, fault):
    change, words = FAULTS[fault]
    kept: list[Sample] = samples(KEYS)
    kept[1] = replace(kept[1], **change)
    problems = problems_in(tmp_path, keep(tmp_path, kept))
    assert len(problems) == 1 and words in problems[0], problems
    place = problems[0].split(": ", 1)[1]
    assert any(name in place for name in ("b.png", "b.txt", ": b", "line 3", "line 2", "row 1")), place


def test_partners_of_another_aspect_are_refused(tmp_path, keep):
    kept = samples(KEYS)
    kept[2] = replace(kept[2], rejected=picture(99, (16, 32)))
    (problem,) = problems_in(tmp_path, keep(tmp_path, kept))
    assert "partners of another aspect ratio than their image (1)" in problem


def test_an_empty_source_says_so(tmp_path, keep):
    blocks = keep(tmp_path, [])
    for block in blocks:
        (tmp_path / block["instance_data_dir"]).parent.mkdir(exist_ok=True)
        if "." not in block["instance_data_dir"]:
            (tmp_path / block["instance_data_dir"]).mkdir(exist_ok=True)
    problems = problems_in(tmp_path, blocks)
    # What `datasets` writes without a row it does not read again.
    assert problems and all("holds no" in each or "cannot be loaded" in each for each in problems), problems


def test_what_is_not_there_says_so(tmp_path, keep):
    blocks = [{**block, "instance_data_dir": "gone/away"} for block in keep(tmp_path, samples(KEYS))]
    problems = problems_in(tmp_path, blocks)
    assert len(problems) == len(blocks) and all(
        "does not exist" in each or "no such folder" in each for each in problems
    )


def test_the_document_is_read_from_anywhere(tmp_path, keep):
    data = load(tmp_path, keep(tmp_path, samples(KEYS)))
    (tmp_path / "elsewhere").mkdir()
    again = load(tmp_path / "elsewhere", data.document())
    assert again.document() == data.document()
    assert [seen(each) for each in audit_in(tmp_path / "elsewhere", data.document()).records] == [
        seen(each) for each in audit_in(tmp_path, data.document()).records
    ]


@pytest.mark.parametrize("name", ["local", "csv", "imagefolder, jsonl", "webdataset"])
def test_a_quick_audit_imports_no_more_than_it_needs(tmp_path, name):
    load(tmp_path, KEEPERS[name](tmp_path, samples(KEYS)))
    code = (
        "import sys\nfrom pathlib import Path\nfrom flowhooks.config import load_datasets\n"
        "from flowhooks.data import audit\n"
        f"audit(load_datasets('data.json', Path({str(tmp_path)!r})))\n"
        "assert not {'torch', 'datasets', 'pyarrow', 'pandas', 'fsspec'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

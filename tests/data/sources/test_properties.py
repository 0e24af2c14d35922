"""Random trees of files and random configurations: a correct plan or a clear error, and nothing lost without a word."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowhooks.config import load_datasets
from flowhooks.data import Audit, audit
from flowhooks.data.files import is_image
from flowhooks.data.pairing import survey
from flowhooks.errors import ConfigError
from tests.data.folders import snapshot
from tests.data.sources.kept import half_mask, picture
from tests.data.test_inspection import bomb

CONTENTS = [
    *(picture(i) for i in range(4)),
    *(picture(9, size) for size in ((16, 32), (8, 8), (1, 1))),
    *(half_mask(), half_mask((32, 32)), bomb(40_000), b"", b"text", picture(0)[:100]),
]
TEXTS = [b"a photo", b"", b" \n", "é".encode(), b"caf\xe9", b"\xef\xbb\xbfwith a mark", b"\0"]
STEMS = ["a", "b", "c", "A", "a.b", "sub/a", "sub/b", "sub/deeper/c", ".hidden", "é", "e\u0301", " ", "#1", "a#2"]
SUFFIXES = [".png", ".jpg", ".PNG", ".webp", ".gif", ""]
CELLS = [
    *("a.png", "b.png", "sub/a.png", "bad/a.png", "bad/b.png", "where/a.png", "./a.png", "../a.png", "/etc/passwd"),
    *("C:\\a.png", "file:///a", "", "a\0", ".", "link.png", "\ud800", "x" * 300, "a photo", None, 3, ["a.png"], {}),
]
COLUMNS = [
    "file_name",
    "image",
    "text",
    "caption",
    "rejected",
    "rejected_file_name",
    "mask",
    "mask_file_name",
    "other",
    "",
]
PLACES = [
    "one",
    "two",
    "one/metadata.csv",
    "one/data.csv",
    "one/data.parquet",
    "one/data.tar",
    "one/*.tar",
    "gone",
    ".",
]
FOLDERS = ["one", "two", "one/bad", "one/where"]
TYPES = ["local", "imagefolder", "csv", "parquet", "webdataset"]

trees = st.fixed_dictionaries(
    {
        "pictures": st.dictionaries(
            st.tuples(
                st.sampled_from(FOLDERS),
                st.sampled_from(STEMS),
                st.sampled_from(SUFFIXES),
            ),
            st.sampled_from(CONTENTS),
            max_size=8,
        ),
        "texts": st.dictionaries(
            st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(STEMS), st.just(".txt")),
            st.sampled_from(TEXTS),
            max_size=8,
        ),
        "link": st.sampled_from([None, "/etc/passwd", "a.png", ".", "link.png"]),
        "header": st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5),
        "rows": st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=5), max_size=4),
        "table": st.sampled_from([None, "metadata.csv", "metadata.jsonl", "data.csv", "data.parquet", "data.tar"]),
        "members": st.lists(
            st.tuples(
                st.sampled_from(["0", "1", "sub/0", "../0", "/0", ".0"]),
                st.sampled_from([".png", ".rejected.png", ".mask.png", ".txt", ".json", ".cls", ""]),
                st.sampled_from([*CONTENTS, *TEXTS, b'{"text": "x"}']),
                st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE]),
            ),
            max_size=6,
        ),
        "damage": st.sampled_from([None, None, None, 0.0, 0.5, 0.9]),
    }
)
names = st.sampled_from(["one", "two", "three", ""])
columns = st.one_of(st.none(), st.sampled_from(COLUMNS), st.lists(st.sampled_from(COLUMNS), max_size=2))
blocks = st.fixed_dictionaries(
    {"id": names, "instance_data_dir": st.sampled_from(PLACES)},
    optional={
        "type": st.sampled_from([*TYPES, *TYPES, "huggingfase"]),
        "dataset_type": st.sampled_from(["image", "conditioning"]),
        "conditioning_type": st.sampled_from([None, "reference_strict", "reference_loose", "mask", "segmentation"]),
        "conditioning_data": st.one_of(st.none(), names, st.lists(names, max_size=2)),
        "source_dataset_id": st.one_of(st.none(), names),
        "image_column": st.one_of(st.none(), st.sampled_from(COLUMNS)),
        "caption_column": st.one_of(st.none(), st.sampled_from(COLUMNS)),
        "rejected_column": columns,
        "mask_column": columns,
        "caption_strategy": st.sampled_from(["textfile", "column", "filename", "instanceprompt", "file"]),
        "instance_prompt": st.sampled_from([None, "", "a thing", " "]),
        "resolution": st.sampled_from([None, 8, 16, [16, 8], 0, "16", 1.5]),
        "repeats": st.sampled_from([0, 1, -1]),
        "disabled": st.booleans(),
    },
)
# Configurations that are likely to work, so that the plans are looked at too and not only the errors.
sound = st.fixed_dictionaries(
    {
        "id": st.just("one"),
        "instance_data_dir": st.just("one"),
        "type": st.sampled_from(TYPES),
        "caption_strategy": st.sampled_from(["filename", "instanceprompt"]),
        "instance_prompt": st.just("a thing"),
        "resolution": st.just(8),
    }
)


def plant(root: Path, tree: dict[str, Any]) -> None:
    for (folder, stem, suffix), data in {**tree["pictures"], **tree["texts"]}.items():
        path = root / folder / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    one = root / "one"
    one.mkdir(exist_ok=True)
    if tree["link"] is not None:
        (one / "link.png").symlink_to(tree["link"])
    if tree["table"] is not None:
        data = table(tree)
        kept = len(data) if tree["damage"] is None else int(len(data) * tree["damage"])
        (one / tree["table"]).write_bytes(data[:kept])


def table(tree: dict[str, Any]) -> bytes:
    header, rows = tree["header"], tree["rows"]
    match tree["table"].rpartition(".")[2]:
        case "jsonl":
            lines = [json.dumps(dict(zip(header, row, strict=False))) for row in rows]
            return "\n".join(lines).encode()
        case "csv":
            text = io.StringIO()
            csv.writer(text).writerows([header, *rows])
            return text.getvalue().encode("utf-8", "surrogatepass")
        case "parquet":
            cells = [[row[i] if i < len(row) else None for row in rows] for i in range(len(header))]
            texts = [[str(each).encode("utf-8", "surrogatepass") if each else None for each in one] for one in cells]
            arrays = [pa.array(one, pa.binary()) for one in texts]
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_arrays(arrays, header), buffer)
            return buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for stem, extension, data, kind in tree["members"]:
            info = tarfile.TarInfo(f"{stem}{extension}")
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(data) if kind == tarfile.REGTYPE else 0
            shard.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@contextmanager
def folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp())
    try:
        yield root
    finally:
        shutil.rmtree(root)


def planned(root: Path, written: Any) -> Audit | None:
    """The plan, or None after a clear error. What there was is as it was, and nothing came to it."""
    (root / "data.json").write_text(json.dumps(written), encoding="utf-8")
    before = snapshot(root)
    try:
        return audit(load_datasets("data.json", root), root / "cache")
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.file and problem.path and problem.message.strip()
            str(problem).encode()
        return None
    finally:
        assert snapshot(root) == before


def check_plan(root: Path, plan: Audit) -> None:
    """Every sample is whole, and every image file of a folder is in one or named."""
    text = "\n".join((*plan.report, *plan.warnings))
    text.encode()
    assert plan.counts["samples"] == len(plan.records) and plan.records
    for record in plan.records:
        assert record.caption.strip() and all(data.asset.read() for data in (record.image, *record.masks))
    for name in {record.dataset for record in plan.records}:
        assert name in text


#: One problem about the table or the folder as a whole stands for all that it holds.
UNREAD = re.compile(r"holds no (metadata|row|image|sample)|_column: |metadata.* (cannot be read|no Parquet|two col)")

SLOW = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@SLOW
@given(tree=trees, written=st.one_of(st.lists(blocks, min_size=1, max_size=3), st.tuples(sound).map(list)))
def test_every_kind_of_tree_and_configuration(tree, written):
    with folder() as root:
        plant(root, tree)
        plan = planned(root, written)
        if plan is not None:
            check_plan(root, plan)


@SLOW
@given(tree=trees, block=sound.filter(lambda block: block["type"] in ("local", "imagefolder")))
def test_no_image_of_a_folder_is_lost_without_a_word(tree, block):
    with folder() as root:
        plant(root, {**tree, "link": None})
        looked = survey(load_datasets([block], root))
        found = looked.found
        told = "\n".join((*map(str, found.problems), *found.warnings, *found.notes))
        sides = (side for record in looked.records for side in (record.image, record.rejected, *record.masks) if side)
        used = {side.asset.path for side in sides}
        for path in (root / "one").rglob("*"):
            name = path.relative_to(root / "one")
            if path.is_file() and is_image(name.name) and not any(part.startswith(".") for part in name.parts):
                named = name.as_posix() in told or repr(name.with_suffix("").as_posix()) in told
                assert path in used or named or UNREAD.search(told), (name, told)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.one_of(st.text(max_size=4), st.sampled_from(["datasets", "id", "type", "instance_data_dir"])),
                inner,
                max_size=4,
            ),
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_clear_error_or_data_sets(tmp_path_factory, document):
    try:
        load_datasets(document, tmp_path_factory.getbasetemp()) if isinstance(document, (list, dict)) else None
    except ConfigError as error:
        assert error.problems and all(problem.message for problem in error.problems)

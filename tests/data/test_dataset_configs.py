"""Every file of `dataset_configs`, beside data of the shape that it says it is for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from flowhooks.config import load_datasets
from flowhooks.data import Audit, audit
from tests.data.folders import write_image, write_mask
from tests.data.sources.kept import keep_parquet, keep_webdataset, picture, samples

CONFIGS = Path(__file__).resolve().parents[2] / "dataset_configs"
SIZE = (64, 64)
NAMES = ("a", "b", "sub/c", "sub/d")


def captioned(folder: Path, text: str = "a photo", size: tuple[int, int] = SIZE) -> None:
    for i, name in enumerate(NAMES):
        write_image(folder / f"{name}.png", size, seed=i)
        (folder / f"{name}.txt").write_text(text)


def partners(folder: Path, names: tuple[str, ...] = NAMES, size: tuple[int, int] = SIZE) -> None:
    for i, name in enumerate(names):
        write_image(folder / f"{name}.png", size, seed=50 + i)


def masks(folder: Path, level: int = 255) -> None:
    for name in NAMES:
        write_mask(folder / f"{name}.png", np.full(SIZE, level))


def whole(result: Audit, pairs: int = 4, masks: int = 1) -> None:
    assert len(result.records) == pairs and all(record.rejected for record in result.records)
    assert all(len(record.masks) == masks for record in result.records)


def plain(result: Audit) -> None:
    assert len(result.records) == 4 and result.provides == {"image"}


def local_folder(root: Path) -> Callable[[Audit], None]:
    captioned(root / "photos")
    return plain


def local_pairs(root: Path) -> Callable[[Audit], None]:
    captioned(root / "win"), partners(root / "lose"), masks(root / "mask")
    return whole


def loose_pairs(root: Path) -> Callable[[Audit], None]:
    captioned(root / "win"), partners(root / "lose", ("a", "sub/c"), (128, 64))

    def check(result: Audit) -> None:
        assert [record.key for record in result.records] == ["a", "sub/c"]
        assert any("2 images without a partner" in line for line in result.report)

    return check


def several_masks(root: Path) -> Callable[[Audit], None]:
    captioned(root / "photos"), masks(root / "people"), masks(root / "sharp", 128)

    def check(result: Audit) -> None:
        assert len(result.records) == 4 and all(len(record.masks) == 2 for record in result.records)

    return check


def imagefolder_pairs(root: Path) -> Callable[[Audit], None]:
    captioned(root / "pairs/win"), partners(root / "pairs/lose"), masks(root / "pairs/mask")
    lines = [
        json.dumps(
            {
                "file_name": f"win/{name}.png",
                "rejected_file_name": f"lose/{name}.png",
                "mask_file_name": f"mask/{name}.png",
                "text": "a photo",
            }
        )
        for name in NAMES
    ]
    (root / "pairs/metadata.jsonl").write_text("\n".join(lines))
    return whole


def csv_pairs(root: Path) -> Callable[[Audit], None]:
    captioned(root / "pairs/win"), partners(root / "pairs/lose")
    lines = ["good,worse,words", *(f'win/{name}.png,lose/{name}.png,"a, b"' for name in NAMES)]
    (root / "pairs/list.csv").write_text("\n".join(lines))
    return lambda result: whole(result, masks=0)


def kept() -> list:
    return samples(NAMES, SIZE)


def csv_labels(root: Path) -> Callable[[Audit], None]:
    captioned(root / "votes")
    rows = [f"{name}.png,a photo,{i % 2},{'deep' if i else 'flat'}" for i, name in enumerate(NAMES)]
    (root / "votes/list.csv").write_text("\n".join(["file,words,thumbs,task", *rows]))

    def labelled(result: Audit) -> None:
        assert result.provides == {"image", "label", "task"}
        assert [record.columns["label"] for record in result.records] == ["0", "1", "0", "1"]

    return labelled


def parquet_pairs(root: Path) -> Callable[[Audit], None]:
    keep_parquet(root, kept())
    return whole


def webdataset(root: Path) -> Callable[[Audit], None]:
    keep_webdataset(root, kept())
    return whole


def rows() -> datasets.Dataset:
    def cells(first: int) -> list[dict]:
        return [{"bytes": picture(first + i, SIZE), "path": None} for i in range(4)]

    table = pa.table({"image": cells(0), "rejected": cells(4), "text": ["a photo"] * 4})
    return datasets.Dataset(table).cast(
        datasets.Features({"image": datasets.Image(), "rejected": datasets.Image(), "text": datasets.Value("string")})
    )


def huggingface_saved(root: Path) -> Callable[[Audit], None]:
    datasets.DatasetDict({"good": rows()}).save_to_disk(root / "saved")
    return lambda result: whole(result, masks=0)


def huggingface_stream(root: Path) -> Callable[[Audit], None]:
    (root / "repository").mkdir()
    rows().to_parquet(root / "repository/train.parquet")
    return lambda result: whole(result, pairs=3, masks=0)


def remote(root: Path) -> Callable[[Audit], None]:
    captioned(root / "photos")
    files = fsspec.filesystem("memory")
    for path in (root / "photos").rglob("*.*"):
        files.pipe_file(f"/bucket/{path.relative_to(root).as_posix()}", path.read_bytes())
    config = root / "data.json"
    config.write_text(config.read_text().replace("s3://", "memory://"))
    return plain


def aspect_buckets(root: Path) -> Callable[[Audit], None]:
    captioned(root / "photos", size=(96, 64))
    write_image(root / "photos/tall.png", (64, 128), seed=20)
    write_image(root / "photos/tiny.png", (8, 8), seed=21)
    for name in ("tall", "tiny"):
        (root / f"photos/{name}.txt").write_text("a photo")

    def check(result: Audit) -> None:
        assert len(result.records) == 5 and len(result.buckets) == 2
        assert any("tiny" in line for line in result.report)

    return check


def captions(root: Path) -> Callable[[Audit], None]:
    captioned(root / "photos", "red, round, on a table")

    def check(result: Audit) -> None:
        assert all(text.startswith("a photo, red, ") for record in result.records for text in record.captions)
        assert len(result.records[0].captions) > 1

    return check


def mixture(root: Path) -> Callable[[Audit], None]:
    captioned(root / "faces"), captioned(root / "hands")

    def check(result: Audit) -> None:
        assert len(result.records) == 8
        assert {record.caption for record in result.records} == {"a", "b", "c", "d", "a hand"}
        assert any(line == "drawn from step 100: faces 25.0%, hands 75.0%" for line in result.report)

    return check


def clips(root: Path) -> Callable[[Audit], None]:
    (root / "clips").mkdir()
    frames = [Image.fromarray(np.full((64, 64, 3), 20 * i, np.uint8)) for i in range(9)]
    for name in "abcd":
        frames[0].save(root / f"clips/{name}.webp", save_all=True, append_images=frames[1:], lossless=True)
        (root / f"clips/{name}.txt").write_text("a photo")

    def check(result: Audit) -> None:
        assert [record.geometry.shown for record in result.records] == [(2, 3, 4, 5, 6)] * 4

    return check


def digits_pairs(root: Path) -> Callable[[Audit], None]:
    def check(result: Audit) -> None:
        assert result.provides == {"image", "rejected", "mask"} and len(result.records) > 1000

    return check


MAKERS = {
    make.__name__: make
    for make in (
        *(
            local_folder,
            local_pairs,
            loose_pairs,
            several_masks,
            imagefolder_pairs,
            csv_pairs,
            csv_labels,
            parquet_pairs,
            clips,
        ),
        *(huggingface_saved, huggingface_stream, webdataset, remote, aspect_buckets, captions, mixture, digits_pairs),
    )
}


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def test_every_file_is_run_here():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_the_configuration_works_on_what_it_says_it_is_for(tmp_path, name):
    shutil.copy(CONFIGS / f"{name}.json", tmp_path / "data.json")
    assert json.loads((tmp_path / "data.json").read_text())["_comment"]
    check = MAKERS[name](tmp_path)
    data = load_datasets("data.json", tmp_path)
    result = audit(data, tmp_path / "cache")
    check(result)
    assert {f"data:{each}" for each in result.provides} == data.provides

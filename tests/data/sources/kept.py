"""The same samples, kept in every shape that a data set may have."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample as bytes; None for what is not there."""

    key: str
    image: bytes | None
    caption: bytes | None
    rejected: bytes | None
    mask: bytes | None
    label: Any = None


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return _png(pixels)


def half_mask(size: tuple[int, int] = (16, 16)) -> bytes:
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, : size[0] // 2] = 255
    return _png(mask)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def samples(keys: Sequence[str], size: tuple[int, int] = (16, 16)) -> list[Sample]:
    return [
        Sample(
            key=key,
            image=picture(2 * i, size),
            caption=f'a photo of "{key}", é'.encode(),
            rejected=picture(2 * i + 1, size),
            mask=half_mask(size),
        )
        for i, key in enumerate(keys)
    ]


def _put(path: Path, data: bytes | None) -> None:
    if data is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def keep_local(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    for each in kept:
        _put(root / f"win/{each.key}.png", each.image)
        _put(root / f"win/{each.key}.txt", each.caption)
        _put(root / f"lose/{each.key}.png", each.rejected)
        _put(root / f"mask/{each.key}.png", each.mask)
    linked = {"dataset_type": "conditioning", "source_dataset_id": "win"}
    return [
        {"id": "win", "instance_data_dir": "win"},
        {"id": "lose", "instance_data_dir": "lose", "conditioning_type": "reference_strict", **linked},
        {"id": "mask", "instance_data_dir": "mask", "conditioning_type": "mask", **linked},
    ]


def _rows(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    """Rows of paths and captions, the files written below `root`."""
    rows = []
    for each in kept:
        paths = {"file_name": each.key, "rejected_file_name": f"bad/{each.key}", "mask_file_name": f"where/{each.key}"}
        given = {"file_name": each.image, "rejected_file_name": each.rejected, "mask_file_name": each.mask}
        row: dict[str, Any] = {"caption": each.caption or b""}
        for column, data in given.items():
            _put(root / f"{paths[column]}.png", data)
            row[column] = f"{paths[column]}.png".encode() if data is not None else b""
        if each.label is not None:
            row["thumbs"] = each.label
        rows.append(row)
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    names = ["file_name", "caption", "rejected_file_name", "mask_file_name"]
    table = csv.DictWriter(text, list(dict.fromkeys([*names, *(name for row in rows for name in row)])))
    table.writeheader()
    table.writerows({name: _as_text(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _as_text(cell: Any) -> Any:
    return cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell


def keep_csv(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    (root / "csv").mkdir()
    (root / "csv/data.csv").write_bytes(_csv(_rows(root / "csv", kept)))
    return [{"id": "win", "type": "csv", "instance_data_dir": "csv/data.csv"}]


def keep_metadata_csv(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    (root / "folder").mkdir()
    (root / "folder/metadata.csv").write_bytes(_csv(_rows(root / "folder", kept)))
    return [{"id": "win", "type": "imagefolder", "instance_data_dir": "folder"}]


def keep_metadata_jsonl(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    (root / "folder").mkdir()
    lines = []
    for row in _rows(root / "folder", kept):
        text = {name: None if (cell := _as_text(given)) == "" else cell for name, given in row.items()}
        lines.append(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    (root / "folder/metadata.jsonl").write_bytes(b"\n".join(lines))
    return [{"id": "win", "type": "imagefolder", "instance_data_dir": "folder"}]


def _text(data: bytes | None) -> pa.Array:
    """A cell of text, also where it is not UTF-8."""
    return pa.array([data], pa.binary()).view(pa.string())


def _label_column(kept: Sequence[Sample]) -> dict[str, Any]:
    labels = [each.label for each in kept]
    return {"thumbs": pa.array(labels)} if any(label is not None for label in labels) else {}


def keep_metadata_parquet(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    (root / "folder").mkdir()
    rows = _rows(root / "folder", kept)
    names = ("file_name", "caption", "rejected_file_name", "mask_file_name")
    columns = {name: pa.chunked_array([_text(row[name] or None) for row in rows], pa.string()) for name in names}
    columns |= _label_column(kept)
    pq.write_table(pa.table(columns), root / "folder/metadata.parquet")
    return [{"id": "win", "type": "imagefolder", "instance_data_dir": "folder"}]


def keep_parquet(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    """Two files: structs of bytes and path as Hugging Face writes them, in groups of two rows."""
    (root / "tables").mkdir()
    half = (len(kept) + 1) // 2
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for part, name in ((kept[:half], "train-0"), (kept[half:], "train-1")):
        given = {
            "image": [(each.image, each.key) for each in part],
            "rejected": [(each.rejected, each.key) for each in part],
            "mask": [(each.mask, each.key) for each in part],
        }
        columns: dict[str, Any] = {
            name: pa.array([data and {"bytes": data, "path": f"{key}.png"} for data, key in cells], struct)
            if all(data != b"" for data, _ in cells)
            else pa.array([None if data is None else {"bytes": data, "path": None} for data, _ in cells], struct)
            for name, cells in given.items()
        }
        columns["caption"] = pa.chunked_array([_text(each.caption) for each in part], pa.string())
        columns |= _label_column(part)
        pq.write_table(pa.table(columns), root / f"tables/{name}.parquet", row_group_size=2)
    return [{"id": "win", "type": "parquet", "instance_data_dir": "tables"}]


def keep_parquet_bytes(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    """One file of plain bytes under columns of other names."""
    columns: dict[str, Any] = {
        "good": pa.array([each.image for each in kept], pa.binary()),
        "worse": pa.array([each.rejected for each in kept], pa.large_binary()),
        "where": pa.array([each.mask for each in kept], pa.binary()),
        "words": pa.chunked_array([_text(each.caption) for each in kept], pa.string()),
    }
    pq.write_table(pa.table({**columns, **_label_column(kept)}), root / "data.parquet", row_group_size=3)
    named = {"image_column": "good", "rejected_column": "worse", "mask_column": ["where"], "caption_column": "words"}
    return [{"id": "win", "type": "parquet", "instance_data_dir": "data.parquet", **named}]


def _tar(path: Path, members: Sequence[tuple[str, bytes | None]]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))


def keep_webdataset(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    """Two shards with captions in text members."""
    (root / "shards").mkdir()
    half = (len(kept) + 1) // 2
    for number, part in enumerate((kept[:half], kept[half:])):
        members = []
        for each in part:
            members += [(f"{each.key}.png", each.image), (f"{each.key}.txt", each.caption)]
            members += [(f"{each.key}.rejected.png", each.rejected), (f"{each.key}.mask.PNG", each.mask)]
            if each.label is not None:
                members += [(f"{each.key}.json", json.dumps({"thumbs": each.label}).encode())]
        _tar(root / f"shards/{number:03}.tar", members)
    return [{"id": "win", "type": "webdataset", "instance_data_dir": "shards"}]


def keep_webdataset_json(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    """One shard with captions in JSON members."""
    members = []
    for each in kept:
        words = {"prompt": (each.caption or b"").decode("utf-8", "surrogateescape"), "thumbs": each.label}
        text = json.dumps({key: value for key, value in words.items() if value is not None}, ensure_ascii=False)
        members += [(f"{each.key}.png", each.image), (f"{each.key}.rejected.png", each.rejected)]
        members += [(f"{each.key}.segmentation.png", each.mask)]
        members += [(f"{each.key}.json", text.encode("utf-8", "surrogateescape"))]
    _tar(root / "data.tar", members)
    return [{"id": "win", "type": "webdataset", "instance_data_dir": "data.tar", "caption_strategy": "column"}]


def _hub(kept: Sequence[Sample]) -> datasets.Dataset:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def cells(given: Sequence[bytes | None]) -> pa.Array:
        return pa.array([None if data is None else {"bytes": data, "path": None} for data in given], struct)

    table = pa.table(
        {
            "image": cells([each.image for each in kept]),
            "text": pa.chunked_array([_text(each.caption) for each in kept], pa.string()),
            "rejected": cells([each.rejected for each in kept]),
            "mask": cells([each.mask for each in kept]),
            **_label_column(kept),
        }
    )
    pictures = {name: datasets.Image() for name in ("image", "rejected", "mask")}
    labels = {name: datasets.Features.from_arrow_schema(table.schema)[name] for name in _label_column(kept)}
    features = datasets.Features({**pictures, "text": datasets.Value("string"), **labels})
    return datasets.Dataset(table).cast(features)


def keep_saved(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    _hub(kept).save_to_disk(root / "saved")
    return [{"id": "win", "type": "huggingface", "instance_data_dir": "saved"}]


def keep_saved_splits(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    splits = {"good": _hub(kept), "train": _hub(samples(["other"]))}
    datasets.DatasetDict(splits).save_to_disk(root / "saved")
    return [{"id": "win", "type": "huggingface", "instance_data_dir": "saved", "split": "good"}]


def _data_files(root: Path, kept: Sequence[Sample]) -> dict[str, Any]:
    (root / "repository/data").mkdir(parents=True)
    _hub(kept).to_parquet(root / "repository/data/train-00000-of-00001.parquet")
    partners = {"rejected_column": "rejected", "mask_column": "mask"}
    return {"id": "win", "type": "huggingface", "instance_data_dir": "repository", **partners}


def keep_data_files(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    return [_data_files(root, kept)]


def keep_streamed(root: Path, kept: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{**_data_files(root, kept), "streaming": True}]


KEEPERS: dict[str, Callable[[Path, Sequence[Sample]], list[dict[str, Any]]]] = {
    "local": keep_local,
    "imagefolder, csv": keep_metadata_csv,
    "imagefolder, jsonl": keep_metadata_jsonl,
    "imagefolder, parquet": keep_metadata_parquet,
    "csv": keep_csv,
    "parquet": keep_parquet,
    "parquet, bytes": keep_parquet_bytes,
    "webdataset": keep_webdataset,
    "webdataset, json": keep_webdataset_json,
    "huggingface, saved": keep_saved,
    "huggingface, saved splits": keep_saved_splits,
    "huggingface, data files": keep_data_files,
    "huggingface, streamed": keep_streamed,
}

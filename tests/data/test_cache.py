"""Latents and conditions of real files through a real pipeline, cached, damaged, and cached again."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

from flowhooks.data import Schedule, build_cache, collate, data_loader, streams
from flowhooks.data.shards import contents
from flowhooks.data.store import Entries
from flowhooks.errors import DataError
from flowhooks.probe import probe
from tests.data.folders import (
    PAIR,
    TRIPLE,
    audit_in,
    image_set,
    partner_set,
    snapshot,
    write_image,
    write_mask,
    write_pairs,
)
from tests.families import tiny

NAMES = ("a", "b", "sub/c", "d", "e")


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, NAMES)
    return tmp_path


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def build(root, model, cache, blocks=TRIPLE, **options):
    return build_cache(audit_in(root, blocks), model, cache, progress=False, **options)


def shards_of(cache: Path, kind: str) -> list[Path]:
    return sorted((cache / kind).glob("*.safetensors"))


def entries_of(cache: Path, kind: str) -> set[str]:
    return {key for path in shards_of(cache, kind) for key in contents(path)}


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_a_sample_holds_what_the_model_makes_of_its_files(root, model, cache):
    before = snapshot(root)
    dataset = build(root, model, cache)
    assert snapshot(root) == {**before, root / "data.json": (root / "data.json").read_bytes()}
    assert len(dataset) == 5
    item = dataset[4]
    assert item["file"] == str(root / "win/sub/c.png")
    assert item["clean"].shape == (4, 8, 8) and item["clean"].dtype == torch.float32
    torch.testing.assert_close(item["clean"][None], model.encode_images(pixels_of(root / "win/sub/c.png")))
    torch.testing.assert_close(item["rejected"][None], model.encode_images(pixels_of(root / "lose/sub/c.png")))
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    assert torch.equal(item["mask"], left)
    expected = model.encode_prompts(["a photo of sub/c"])
    torch.testing.assert_close(item["condition"].flatten(), expected.flatten())
    with pytest.raises(KeyError):
        dataset.condition("", (16, 16, 1))


def test_collate_makes_a_batch(root, model, cache):
    dataset = build(root, model, cache)
    batch = collate([dataset[0], dataset[2], dataset[2]])
    assert batch.clean.shape == batch.rejected.shape == (3, 4, 8, 8)
    assert batch.mask.shape == (3, 1, 8, 8)
    assert batch.condition.size == 3
    assert batch.files == tuple(str(root / f"win/{name}.png") for name in ("a", "d", "d"))
    assert torch.equal(batch.clean[1], dataset[2]["clean"])
    model.predict(batch.clean, torch.full((3,), 0.5), batch.condition)


def test_without_partners_a_batch_has_neither_rejected_nor_mask(root, model, cache):
    batch = collate([build(root, model, cache, [image_set("win")])[0]])
    assert batch.rejected is None and batch.mask is None


def test_masks_multiply_and_a_sample_without_trains_everywhere(root, model, cache):
    for name in NAMES:
        write_mask(root / "zone" / f"{name}.png", np.full((16, 16), 51))
    write_image(root / "plain/z.png", seed=90)
    blocks = [
        image_set("win", conditioning_data=["mask", "zone"]),
        partner_set("mask", "mask"),
        partner_set("zone", "segmentation"),
        image_set("plain", caption_strategy="filename"),
    ]
    dataset = build(root, model, cache, blocks)
    assert dataset[0]["mask"][..., :4].unique().item() == pytest.approx(0.2)
    assert dataset[0]["mask"][..., 4:].unique().item() == 0
    assert torch.equal(dataset[5]["mask"], torch.ones(1, 8, 8))
    assert torch.equal(collate([dataset[0], dataset[5]]).mask[1], torch.ones(1, 8, 8))


def test_a_second_build_reads_every_entry_and_writes_none(root, model, cache):
    first = build(root, model, cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert {kind: len(entries_of(cache, kind)) for kind in ("latents", "masks", "text")} == {
        "latents": 10,
        "masks": 1,  # all masks have one content
        "text": 5,
    }
    again = build(root, model, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == before
    assert all(torch.equal(first[i]["clean"], again[i]["clean"]) for i in range(len(first)))
    assert not list((cache / "partial").iterdir())


def test_a_rebuild_makes_what_this_run_needs_again_and_nothing_else(root, model, cache):
    build(root, model, cache)
    before = snapshot(cache)
    write_pairs(root / "more", ["z"])
    build(root / "more", model, cache, [image_set("win", resolution=32, allow_upscale=True)])
    (other,) = set(shards_of(cache, "latents")) - set(before)
    # Values that are old but sound: only a rebuild replaces them.
    (path,) = set(shards_of(cache, "latents")) & set(before)
    save_file({name: tensor + 1 for name, tensor in load(path.read_bytes()).items()}, path)
    old = build(root, model, cache)[0]["clean"]
    again = build(root, model, cache, rebuild=True)
    torch.testing.assert_close(again[0]["clean"] + 1, old)
    after = snapshot(cache)
    assert path in after and load(path.read_bytes()).keys() == load(before[path]).keys()
    assert other in after and not (cache / "rebuilding").exists()


def test_two_data_sets_share_the_entries_that_both_need(root, model, cache):
    build(root, model, cache, [image_set("win")])
    (first,) = snapshot(cache / "latents").items()
    build(root, model, cache, PAIR)
    assert dict([first]).items() <= snapshot(cache / "latents").items()
    assert len(entries_of(cache, "latents")) == 10
    assert sum(len(contents(path)) for path in shards_of(cache, "latents")) == 10


def test_only_a_file_whose_content_changed_is_encoded_again(root, model, cache):
    old = build(root, model, cache)[0]["clean"]
    write_image(root / "win/a.png", seed=99)
    assert not torch.equal(build(root, model, cache)[0]["clean"], old)
    assert len(entries_of(cache, "latents")) == 11


def test_a_renamed_file_is_not_encoded_again(root, model, cache):
    build(root, model, cache, [image_set("win")])
    (root / "win/a.png").rename(root / "win/renamed.png")
    (root / "win/a.txt").rename(root / "win/renamed.txt")
    build(root, model, cache, [image_set("win")])
    assert len(entries_of(cache, "latents")) == 5


def test_another_crop_makes_other_entries(tmp_path, model, cache):
    write_image(tmp_path / "win/a.png", (64, 16))
    block = image_set("win", caption_strategy="filename", resolution=16)
    center = build(tmp_path, model, cache, [block])[0]["clean"]
    random = build(tmp_path, model, cache, [{**block, "crop": "random"}])[0]["clean"]
    assert not torch.equal(center, random)
    assert len(entries_of(cache, "latents")) == 2


def test_another_model_makes_other_entries(root, cache, model):
    build(root, model, cache, [image_set("win")])
    other = tiny("sd3")
    with torch.no_grad():
        next(other.vae.parameters()).mul_(1.5)
    build(root, probe(other, arguments={"max_sequence_length": 8}), cache, [image_set("win")])
    assert len(entries_of(cache, "latents")) == 10


def test_training_the_transformer_does_not_make_the_cache_stale(root, cache):
    pipe = tiny("sd3")
    learnt = probe(pipe, arguments={"max_sequence_length": 8})
    build(root, learnt, cache, [image_set("win")])
    with torch.no_grad():
        next(pipe.transformer.parameters()).mul_(1.5)
    build(root, learnt, cache, [image_set("win")])
    assert len(entries_of(cache, "latents")) == 5


@pytest.mark.parametrize("kind", ["latents", "masks", "text"])
@pytest.mark.parametrize("damage", ["cut short", "a flipped bit"])
def test_a_damaged_shard_is_made_again_with_a_warning(root, model, cache, kind, damage):
    build(root, model, cache)
    before = snapshot(cache)
    (path,) = shards_of(cache, kind)
    data = path.read_bytes()
    path.write_bytes(data[:-7] if damage == "cut short" else data[:-7] + bytes([data[-7] ^ 2]) + data[-6:])
    with pytest.warns(UserWarning, match=f"{path} is damaged .*; it is made again"):
        build(root, model, cache)
    assert snapshot(cache) == before


@pytest.mark.parametrize("kind", ["latents", "masks", "text"])
def test_nan_in_a_cache_file_is_one_clear_error(root, model, cache, kind):
    build(root, model, cache)
    (path,) = shards_of(cache, kind)
    tensors = load(path.read_bytes())
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.view(-1)[0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(
        DataError, match="holds NaN or infinity in .*; delete this file, or .*--rebuild-cache"
    ) as caught:
        build(root, model, cache)
    assert [problem.file for problem in caught.value.problems] == [str(path)]
    assert path.exists()
    build(root, model, cache, rebuild=True)[0]


def test_an_entry_that_goes_bad_during_the_run_is_named(root, model, cache):
    dataset = build(root, model, cache)
    dataset.entries = Entries(dataset.entries.places, limit=0)
    (path,) = shards_of(cache, "text")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=f"{path}.*damaged during the run"):
        [dataset[i] for i in range(5)]
    assert not path.exists(), "so that a resumed run makes it again"
    with pytest.raises(DataError, match=f"{path}.*removed during the run"):
        [dataset[i] for i in range(5)]


def test_an_image_that_the_vae_turns_into_nan_is_named_and_not_cached(root, cache):
    pipe = tiny("sd3")
    learnt = probe(pipe, arguments={"max_sequence_length": 8})
    with torch.no_grad():
        next(pipe.vae.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="VAE turns this image into NaN") as caught:
        build(root, learnt, cache, PAIR)
    assert {problem.file for problem in caught.value.problems} == {
        str(root / folder / f"{name}.png") for folder in ("win", "lose") for name in NAMES
    }
    assert shards_of(cache, "latents") == []


def test_a_file_that_changes_after_the_audit_is_named(root, model, cache):
    result = audit_in(root, PAIR)
    write_image(root / "win/a.png", seed=98)
    (root / "lose/d.png").unlink()
    with pytest.raises(DataError) as caught:
        build_cache(result, model, cache, progress=False)
    messages = {problem.file: problem.message for problem in caught.value.problems}
    assert "changed while the run was starting" in messages[str(root / "win/a.png")]
    assert "cannot be read (No such file" in messages[str(root / "lose/d.png")]
    assert len(messages) == 2


def test_a_size_that_the_pipeline_refuses_is_one_clear_error(tmp_path, model, cache):
    write_image(tmp_path / "win/a.png", (17, 17))
    with pytest.raises(DataError, match="refuses images of 17x17.*set `resolution`"):
        build(tmp_path, model, cache, [image_set("win", caption_strategy="filename")])


def test_no_file_in_the_cache_is_a_pickle(root, model, cache):
    build(root, model, cache)
    for path in (path for path in cache.rglob("*") if path.is_file()):
        assert path.suffix == ".safetensors"
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError)):
            pickle.loads(path.read_bytes())


def files_of(dataset, steps: int, **options) -> list[tuple[str, ...]]:
    return [batch.files for batch in islice(loader_of(dataset, **options), steps)]


def loader_of(dataset, world_size: int = 1, kept: list[int] | None = None, **options):
    schedule = Schedule(streams(dataset.records, kept), batch_size=3, seed=5, world_size=world_size)
    return data_loader(dataset, schedule, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_loader_s_order_does_not_depend_on_workers(root, model, cache, workers):
    dataset = build(root, model, cache)
    alone = list(islice(loader_of(dataset), 6))
    shared = list(islice(loader_of(dataset, num_workers=workers), 6))
    assert [batch.files for batch in alone] == [batch.files for batch in shared]
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.clean, other.clean) and torch.equal(one.mask, other.mask)
        torch.testing.assert_close(one.condition.flatten(), other.condition.flatten(), rtol=0, atol=0)


def test_the_loader_resumes_and_splits_over_ranks(root, model, cache):
    dataset = build(root, model, cache)
    whole = files_of(dataset, 8)
    assert files_of(dataset, 3, start=5) == whole[5:]
    ranks = [files_of(dataset, 4, world_size=2, rank=rank) for rank in (0, 1)]
    assert [files for step in zip(*ranks, strict=True) for files in step] == whole


def test_the_loader_leaves_torch_s_random_numbers_alone(root, model, cache):
    dataset = build(root, model, cache)
    before = torch.get_rng_state()
    files_of(dataset, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_shown_only_when_asked(root, model, cache, capfd):
    build(root, model, cache)
    assert "Encoding" not in capfd.readouterr().err
    write_image(root / "win/a.png", seed=97)
    build_cache(audit_in(root, TRIPLE), model, os.fspath(cache), progress=True)
    assert "Encoding images: 100%" in capfd.readouterr().err


def test_the_loader_takes_a_part_of_the_samples(root, model, cache):
    dataset = build(root, model, cache)
    seen = {file for files in files_of(dataset, 4, kept=[1, 3]) for file in files}
    assert seen == {dataset[1]["file"], dataset[3]["file"]}


def test_a_batch_of_samples_without_masks_trains_everywhere(root, model, cache):
    dataset = build(root, model, cache)
    dataset.records = [replace(record, masks=()) for record in dataset.records]
    batch = collate([dataset[0], dataset[1]])
    assert batch.mask.shape == (2, 1, 8, 8) and bool((batch.mask == 1).all())

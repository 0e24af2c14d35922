"""Clips: what the audit finds in them, which frames are kept, and training on them."""

from __future__ import annotations

import struct
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowhooks
from flowhooks.data import build_cache, clips, collate
from flowhooks.data.assets import FileAsset
from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import inspect_image
from flowhooks.data.transform import load_clip, load_pixels
from flowhooks.errors import DataError
from tests import families
from tests.data.folders import TRIPLE, audit_in, image_set, partner_set, problems_in, write_image, write_mask
from tests.data.moving import write_clip
from tests.families import PIPELINES

KINDS = [".webp", ".gif", ".png", ".apng", ".mp4", ".mov", ".webm", ".mkv"]
FLOW_DPO = [
    {"type": "flow_dpo", "norm_type": "masked_mean"},
    {"type": "mask_reducer"},
    {"type": "anchor_regularizer", "role": "reference"},
]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_clip_is_measured_and_its_frames_are_those_asked_for(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    pixels = write_clip(file, frames=8, size=(48, 32))
    seen = inspect_image(FileAsset(file), clips=True)
    assert (seen.width, seen.height, seen.frames) == (48, 32, 8)
    assert seen.rate == pytest.approx(8, rel=0.05)
    shown = (1, 4, 7)
    found = load_clip(file.read_bytes(), Geometry(width=48, height=32, shown=shown))
    expected = pixels[list(shown)].transpose(3, 0, 1, 2) / np.float32(127.5) - 1
    exact = suffix in (".webp", ".png", ".apng")
    assert found.dtype == np.float32 and found.shape == (3, 3, 32, 48)
    np.testing.assert_allclose(found, expected, atol=1e-6 if exact else 0.05)
    first = load_pixels(file.read_bytes(), Geometry(width=48, height=32, shown=shown))
    np.testing.assert_array_equal(first, found[:, 0])
    np.testing.assert_allclose(
        load_pixels(file.read_bytes(), Geometry(width=48, height=32))[:, 0, 0],
        pixels[0, 0, 0] / np.float32(127.5) - 1,
        atol=0.05,
    )
    with pytest.raises(BadImage):
        inspect_image(FileAsset(file))


@given(total=st.integers(1, 400), count=st.integers(1, 90), chance=st.integers(0, 2**64))
def test_frames_are_selected_once_each_and_lie_in_the_clip(total, count, chance):
    count = min(total, count)
    for how in ("first", "center", "random", "uniform"):
        found = clips.select(total, count, how, chance)
        assert len(found) == count and list(found) == sorted(set(found))
        assert found[0] >= 0 and found[-1] < total
        assert how == "uniform" or found[-1] - found[0] == count - 1
    if count > 1:
        uniform = clips.select(total, count, "uniform", 0)
        assert uniform[0] == 0 and uniform[-1] == total - 1 and np.ptp(np.diff(uniform)) <= 1
    assert clips.select(total, count, "first", 0)[0] == 0
    assert clips.select(total, count, "center", 0)[0] == (total - count) // 2


def damaged(data: bytes, suffix: str) -> bytes:
    return data[: len(data) * 2 // 3] if suffix != ".webm" else data[:200]


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".apng", ".mp4", ".webm"])
def test_a_clip_cut_off_is_named(tmp_path, suffix):
    write_clip(tmp_path / "win" / f"a{suffix}")
    file = tmp_path / "win" / f"a{suffix}"
    file.write_bytes(damaged(file.read_bytes(), suffix))
    blocks = [image_set("win", num_frames=5, caption_strategy="filename")]
    try:
        problems = problems_in(tmp_path, blocks)
    except Exception as error:
        pytest.fail(f"not a clear error: {error!r}")
    assert problems and f"a{suffix}" in problems[0]


def test_playlists_that_name_other_files_are_not_opened(tmp_path):
    (tmp_path / "win").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "win" / "a.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.txt\n")
    (tmp_path / "win" / "b.webm").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.txt\n")
    (problem,) = problems_in(tmp_path, [image_set("win", num_frames=5, caption_strategy="filename")])
    assert "files that cannot be used (2)" in problem and problem.count("is not a PNG") == 2


def test_a_bomb_is_refused_by_what_its_header_says(tmp_path, monkeypatch):
    for suffix in (".mp4", ".webp"):
        write_clip(tmp_path / "win" / f"a{suffix[1:]}{suffix}")
    for place in ("flowhooks.data.inspection", "flowhooks.data.clips"):
        monkeypatch.setattr(f"{place}.MAX_PIXELS", 1000)
    (problem,) = problems_in(tmp_path, [image_set("win", num_frames=5, caption_strategy="filename")])
    assert "amp4.mp4 has frames of 1,024 pixels" in problem and "awebp.webp has 1,024 pixels" in problem


def test_a_video_stored_on_its_side_is_refused(tmp_path):
    """Phones write what they saw and a matrix that turns it, here by a quarter."""
    write_clip(tmp_path / "win" / "a.mp4")
    file = tmp_path / "win" / "a.mp4"
    data = bytearray(file.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    (problem,) = problems_in(tmp_path, [image_set("win", num_frames=5, caption_strategy="filename")])
    assert "a.mp4 is stored turned by -90 degrees; write it upright" in problem


def test_a_video_whose_last_frames_are_missing_is_named_before_training(tmp_path):
    """Its index counts them, so that only the decoder notices."""
    write_clip(tmp_path / "win" / "a.mp4", frames=20)
    file = tmp_path / "win" / "a.mp4"
    data = bytearray(file.read_bytes())
    media = data.index(b"mdat")
    end = media - 4 + int.from_bytes(data[media - 4 : media])
    data[media + 60 : end] = bytes(end - media - 60)
    file.write_bytes(data)
    block = image_set("win", num_frames=9, frame_selection="uniform", caption_strategy="filename")
    with pytest.raises(DataError, match=r"a\.mp4: (has \d+ frames that can be decoded|is damaged|cannot be decoded)"):
        build_cache(audit_in(tmp_path, [block]), learnt(9), tmp_path / "cache", progress=False)


def test_without_pyav_a_video_file_says_what_to_install(tmp_path, monkeypatch):
    write_clip(tmp_path / "win" / "a.mp4")
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    (problem,) = problems_in(tmp_path, [image_set("win", num_frames=5, caption_strategy="filename")])
    assert "a.mp4 is a video file, which needs PyAV; run `pip install 'flowhooks[video]'`" in problem


def test_clips_that_are_too_short_or_unlike_their_partner_are_named(tmp_path):
    for name, frames in {"a": 8, "b": 4, "c": 6}.items():
        write_clip(tmp_path / "win" / f"{name}.webp", frames, seed=ord(name))
        write_clip(tmp_path / "lose" / f"{name}.webp", 8 if name == "c" else frames, seed=ord(name) + 9)
    write_image(tmp_path / "win" / "still.png")
    write_image(tmp_path / "lose" / "still.png", seed=1)
    win = image_set("win", num_frames=5, caption_strategy="filename")
    short, apart = problems_in(tmp_path, [win, partner_set("lose", "reference_strict", source_dataset_id="win")])
    assert short.startswith(
        "$[0].num_frames: videos with fewer than 5 frames (2): b (4), still (1); lower `num_frames`"
    )
    assert apart.startswith("$[0].num_frames: rejected sides with another number of frames (1): c of 'lose' (8, not 6)")


def test_a_set_of_pictures_takes_no_clip_and_a_mask_is_none(tmp_path):
    write_clip(tmp_path / "win" / "a.webp")
    write_clip(tmp_path / "mask" / "a.webp")
    (problem,) = problems_in(tmp_path, [image_set("win", caption_strategy="filename")])
    assert "a.webp is animated" in problem and "num_frames" in problem
    mask = partner_set("mask", "mask", source_dataset_id="win")
    (problem,) = problems_in(tmp_path, [image_set("win", num_frames=5, caption_strategy="filename"), mask])
    assert problem.startswith("$[1].instance_data_dir: files that cannot be used (1): a.webp is animated")


def write_clips(root, size=(32, 32)):
    left = np.zeros((size[1], size[0]))
    left[:, : size[0] // 2] = 255
    for seed, name in enumerate("ab"):
        write_clip(root / "win" / f"{name}.webp", 8, size, 2 * seed)
        write_clip(root / "lose" / f"{name}.webp", 8, size, 2 * seed + 1)
        (root / "win" / f"{name}.txt").write_text(f"a photo of {name}")
        write_mask(root / "mask" / f"{name}.png", left)


def test_clips_stand_in_archives_and_tables_too(tmp_path):
    write_clips(tmp_path)
    write_clip(tmp_path / "video" / "a.mp4")
    with tarfile.open(tmp_path / "data.tar", "w") as shard:
        for name, file in {"a.mp4": "video/a.mp4", "a.rejected.gif": "video/a.gif", "a.mask.png": "mask/a.png"}.items():
            if file.endswith(".gif"):
                write_clip(tmp_path / file)
            shard.add(tmp_path / file, name)
    table = "image,rejected,mask,caption\nwin/a.webp,lose/a.webp,mask/a.png,a\n"
    (tmp_path / "data.csv").write_text(table)
    keys = {"num_frames": 5, "caption_strategy": "filename"}
    for kind in ("webdataset", "csv"):
        place = "data.tar" if kind == "webdataset" else "data.csv"
        block = {"id": "win", "type": kind, "instance_data_dir": place, **keys}
        (record,) = audit_in(tmp_path, [block]).records
        assert record.geometry.shown == (0, 1, 2, 3, 4) and record.rejected.frames == 8
        assert [mask.frames for mask in record.masks] == [1]


def learnt(frames, height=32, width=32, name="wan"):
    arguments = {k: v for k, v in PIPELINES[name].arguments.items() if k not in ("num_frames", "height", "width")}
    return families.learnt(name, frames=frames, height=height, width=width, arguments=arguments)


@pytest.mark.parametrize("hooks", [[], FLOW_DPO], ids=["sft", "flow_dpo"])
def test_wan_trains_on_clips_with_a_mask_over_all_their_frames(tmp_path, hooks):
    write_clips(tmp_path)
    win, *partners = TRIPLE
    audited = audit_in(tmp_path, [{**win, "num_frames": 5, "frame_selection": "center"}, *partners])
    assert audited.buckets == {(32, 32, 5): 2}
    assert "win: videos of 8 frames at 8 a second; 5 are trained on, 'center'" in audited.report
    model = learnt(5)
    dataset = build_cache(audited, model, tmp_path / "cache", progress=False)
    batch = collate([dataset[0], dataset[1]])
    assert batch.clean.shape == (2, 4, 2, 4, 4) and batch.size == (32, 32, 5)
    clip = load_clip((tmp_path / "win/a.webp").read_bytes(), Geometry(width=32, height=32, shown=(1, 2, 3, 4, 5)))
    torch.testing.assert_close(batch.clean[:1], model.encode_images(torch.from_numpy(clip)[None]), atol=1e-6, rtol=0)
    packed = model.at(*batch.size).pack_mask(batch.mask, batch.clean).expand_as(batch.clean)
    assert torch.equal(packed[:, :, 0], packed[:, :, 1]) and packed[..., :2].all() and not packed[..., 2:].any()
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": hooks}) as session:
        result = session.step(batch)
        result.loss.backward()
        assert result.loss.isfinite()
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan-video"])
def test_pictures_and_clips_of_several_sizes_share_a_run(tmp_path, name):
    """Of each size and length, the prediction is that of a pipeline probed at it."""
    write_clips(tmp_path)
    write_clip(tmp_path / "wide" / "a.mp4", 9, (64, 32))
    write_image(tmp_path / "still" / "a.png", (32, 32))
    sets = [
        image_set("win", num_frames=5),
        image_set("wide", num_frames=9, frame_selection="uniform", caption_strategy="filename"),
        image_set("still", caption_strategy="filename"),
    ]
    model = learnt(5, name=name)
    dataset = build_cache(audit_in(tmp_path, sets), model, tmp_path / "cache", progress=False)
    batches = [collate([dataset[i]]) for i in range(len(dataset))]
    assert {batch.size for batch in batches} == {(32, 32, 5), (32, 64, 9), (32, 32, 1)}
    for batch in batches[1:]:
        height, width, frames = batch.size
        with torch.no_grad():
            found, alone = (
                each.predict(batch.clean, torch.tensor([0.5]), batch.condition)
                for each in (model.at(*batch.size), learnt(frames, height, width, name))
            )
        assert torch.equal(found, alone)


def test_lengths_that_the_pipeline_does_not_make_are_refused(tmp_path):
    write_clips(tmp_path)
    audited = audit_in(tmp_path, [image_set("win", num_frames=6)])
    with pytest.raises(DataError, match="videos of 6 frames of 32x32: WanPipeline makes 5 frames of 32x32 pixels when"):
        build_cache(audited, learnt(5), tmp_path / "cache", progress=False)
    pictures = families.learnt("sd3")
    with pytest.raises(DataError, match="StableDiffusion3Pipeline generates images, not videos of 6 frames"):
        build_cache(audited, pictures, tmp_path / "cache", progress=False)

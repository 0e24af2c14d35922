"""Data sets of sound: what is read of their files, how they are cut, and what is refused before weights load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from flowhooks.data import build_cache, collate, waveforms
from flowhooks.data.images import BadImage
from flowhooks.data.waveforms import load_waveform, waveform_facts
from tests.data.folders import audit_in, partner_set, problems_in, write_mask
from tests.families import learnt

RATE = 800


def clip(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Numbers ``[samples, channels]`` that 16 bits hold exactly."""
    return np.random.default_rng(seed).integers(-8000, 8000, (samples, channels)) / 2**15


def write(file: Path, numbers: np.ndarray, rate: int = RATE, text: str | None = "a sound", **options: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, numbers, rate, **options)
    if text is not None:
        file.with_suffix(".txt").write_text(text, encoding="utf-8")
    return file


def sound_set(**keys):
    return {"id": "win", "dataset_type": "audio", "instance_data_dir": "win", **keys}


def loaded(record, side: str = "image") -> np.ndarray:
    picture = getattr(record, side)
    return load_waveform(picture.asset.read(), picture.sound, record.geometry)


def test_wav_and_flac_are_cut_to_one_length_to_the_last_bit(tmp_path):
    long, short = clip(200, 2), clip(128, 2, seed=1)
    write(tmp_path / "win" / "a.wav", long), write(tmp_path / "win" / "b.flac", short)
    for crop, start in (("corner", 0), ("center", 36)):
        found = audit_in(tmp_path, [sound_set(duration=0.16, crop=crop)])
        first, second = found.records
        assert found.buckets == {(128, 1, 1): 2} and first.geometry.size == (1, 128, 1)
        assert np.array_equal(loaded(first), long[start : start + 128].T.astype(np.float32))
        assert np.array_equal(loaded(second), short.T.astype(np.float32))
    assert found.report[0] == "win: 2 sound files; captions by textfile"
    whole = audit_in(tmp_path, [sound_set()])
    assert sorted(whole.buckets) == [(128, 1, 1), (200, 1, 1)]


def test_a_rate_and_channels_that_are_asked_for_are_made(tmp_path):
    """A tone is the same tone at another rate."""
    tone = np.sin(2 * np.pi * 50 * np.arange(1600) / 1600)
    write(tmp_path / "win" / "a.wav", np.stack([tone, 0 * tone], 1) / 2, rate=1600)
    write(tmp_path / "win" / "b.wav", np.sin(2 * np.pi * 50 * np.arange(800) / 800) / 4)
    first, second = audit_in(tmp_path, [sound_set(sample_rate=800, channels="mono")]).records
    assert first.width == second.width == 800
    made, own = loaded(first), loaded(second)
    assert made.shape == own.shape == (1, 800)
    assert np.abs(made - own)[:, 50:-50].max() < 1e-3
    stereo = audit_in(tmp_path, [sound_set(sample_rate=800, channels="stereo")])
    assert np.array_equal(*loaded(stereo.records[1])) and "1 file turned into" not in stereo.report[0]


def test_files_of_several_rates_are_a_problem_that_names_the_keys(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(200)), write(tmp_path / "win" / "b.wav", clip(200, 2), rate=1600)
    (problem,) = problems_in(tmp_path, [sound_set()])
    assert "files that are not at 800 Hz with 1 channel" in problem
    assert "b (1,600 Hz, 2 channels)" in problem and "`sample_rate` and `channels`" in problem


def test_short_files_are_too_small_or_left_out(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(100)), write(tmp_path / "win" / "b.wav", clip(200))
    (problem,) = problems_in(tmp_path, [sound_set(duration=0.16)])
    assert "files shorter than what is trained (1): a of 'win' (0.125 s, 100 samples" in problem
    assert problem.startswith("$[0].duration") and "allow_upscale" not in problem
    found = audit_in(tmp_path, [sound_set(duration=0.16, small_images="leave_out")])
    assert [record.key for record in found.records] == ["b"]


def test_pairs_are_equally_long_and_cut_alike_and_masks_run_along_time(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(200))
    write(tmp_path / "lose" / "a.flac", clip(200, seed=1), text=None)
    write_mask(tmp_path / "mask" / "a.png", 255 * (np.arange(200)[None] >= 100).repeat(3, 0))
    blocks = [
        sound_set(duration=0.16, crop="center", conditioning_data=["lose", "mask"]),
        partner_set("lose", "reference_strict"),
        partner_set("mask", "mask"),
    ]
    (record,) = audit_in(tmp_path, blocks).records
    assert np.array_equal(loaded(record, "rejected")[0], clip(200, seed=1)[36:164, 0].astype(np.float32))
    model = learnt("longcat-audio")
    dataset = build_cache(audit_in(tmp_path, blocks), model, tmp_path / "cache", progress=False)
    batch = collate([dataset[0]])
    assert batch.size == (1, 128, 1) and batch.mask is not None and batch.rejected is not None
    assert torch.equal(batch.mask, (torch.arange(16) >= 8).float().expand(1, 1, -1))
    assert torch.allclose(batch.clean, model.encode_images(torch.from_numpy(loaded(record))[None]), atol=1e-5)
    write(tmp_path / "lose" / "a.flac", clip(204, seed=1), text=None)
    (problem,) = problems_in(tmp_path, blocks)
    assert "partners of another length than their image" in problem and "cut them like" in problem


def test_a_table_may_list_sound(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(128), text=None), write(tmp_path / "win" / "c.wav", clip(128), text=None)
    (tmp_path / "win" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.wav", "text": "one"}) + "\n")
    found = audit_in(tmp_path, [sound_set(type="imagefolder")])
    assert [record.caption for record in found.records] == ["one"]
    assert "win: 1 sound file that no row lists: c.wav" in found.warnings


def test_keys_of_images_do_not_go_with_sound_nor_its_own_with_images(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(128))
    (problem,) = problems_in(tmp_path, [sound_set(resolution=64)])
    assert problem.startswith("$[0].resolution: is for images and videos") and "`duration`" in problem
    (problem,) = problems_in(tmp_path, [{**sound_set(duration=1), "dataset_type": "image"}])
    assert problem.startswith("$[0].duration: is for sets with `dataset_type` 'audio'")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"not a sound at all", r"is no WAV or FLAC file, or damaged \(Format not recognised\)"),
        (lambda data: data[:-100], "is cut off: 99 of its bytes are not there"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, spoil, words):
    data = write(tmp_path / "a.wav", clip(128)).read_bytes()
    waveform_facts(data)
    with pytest.raises(BadImage, match=words):
        waveform_facts(spoil(data))


def test_other_faults_of_files(tmp_path, monkeypatch):
    with pytest.raises(BadImage, match="has 3 channels"):
        waveform_facts(write(tmp_path / "a.wav", clip(8, 3)).read_bytes())
    with pytest.raises(BadImage, match="is a AIFF file; expected WAV or FLAC"):
        waveform_facts(write(tmp_path / "a.aiff", clip(8)).read_bytes())
    write(tmp_path / "win" / "a.wav", np.array([[0.0], [np.nan]]), subtype="FLOAT")
    (problem,) = problems_in(tmp_path, [sound_set()])
    assert "a.wav" in problem and "holds NaN or infinity" in problem
    monkeypatch.setattr(waveforms, "find_spec", lambda name: None)
    (problem,) = problems_in(tmp_path, [sound_set()])
    assert "needs soundfile; run `pip install 'flowhooks[sound]'`" in problem


def test_a_number_beside_the_prompt_is_one(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "win" / f"{name}.wav", clip(128), text=None)
    table = tmp_path / "win" / "metadata.csv"
    columns = {"lyrics": "words", "bpm": "beats"}
    block = sound_set(type="imagefolder", duration=0.16, text_columns=columns)
    table.write_text("file_name,text,words,beats\na.wav,x,007,90\nb.wav,y,la,91.0\n")
    found = audit_in(tmp_path, [block]).records
    assert [[each.text for each in record.references] for record in found] == [["007", 90], ["la", 91]]
    table.write_text("file_name,text,words,beats\na.wav,x,la,fast\nb.wav,y,la,90.5\n")
    (problem,) = problems_in(tmp_path, [block])
    assert problem.startswith("$[0].text_columns.bpm: ")
    assert "a ('fast' is no whole number)" in problem and "b ('90.5' is no whole number)" in problem


def test_files_of_other_kinds_are_counted_by_suffix(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(128))
    for name in ("b.ogg", "c.OGG", "d.mp3"):
        (tmp_path / "win" / name).write_bytes(b"x")
    assert "win: 3 files of other kinds left alone: .mp3 (1), .ogg (2)" in audit_in(tmp_path, [sound_set()]).report


def test_a_column_of_texts_that_there_is_not_is_named_by_its_own_key(tmp_path):
    write(tmp_path / "win" / "a.wav", clip(128), text=None)
    (tmp_path / "win" / "metadata.csv").write_text("file_name,caption\na.wav,b\n", encoding="utf-8")
    block = sound_set(type="imagefolder", text_columns={"lyrics": "words"})
    (problem,) = problems_in(tmp_path, [block])
    assert problem.startswith("$[0].text_columns.lyrics: there is no column 'words'")

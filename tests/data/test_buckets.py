from __future__ import annotations

from dataclasses import replace

from flowhooks.data import bucket_report
from tests.data.folders import audit_in, image_set, write_image


def test_the_report_tells_what_a_step_draws_and_how_small_buckets_repeat(tmp_path):
    for i in range(7):
        write_image(tmp_path / "win" / f"{i}.png", (32, 16) if i < 2 else (16, 16), i)
        (tmp_path / "win" / f"{i}.txt").write_text("a")
    found = audit_in(tmp_path, [image_set("win")])
    assert bucket_report(found.records, 2, 1) == [
        "a step draws 2 samples of one bucket once",
        "16x16: 5 samples (5 of 'win'), 2.5 draws an epoch",
        "32x16: 2 samples (2 of 'win'), 1.0 draws an epoch",
    ]
    assert bucket_report(found.records, 1, 4, processes=5) == [
        "a step draws 5 samples of one bucket 4 times on 5 processes",
        "16x16: 5 samples (5 of 'win'), 1.0 draws an epoch",
        "32x16: 2 samples (2 of 'win'), fewer than a draw: each is in it 2 or 3 times; `repeats` 2 in 'win' makes it "
        "6, or lower `training.train_batch_size`",
    ]
    # The repeats that were suggested do fill a batch.
    again = audit_in(tmp_path, [image_set("win", repeats=2)])
    assert again.buckets == {(16, 16, 1): 15, (32, 16, 1): 6}
    assert "fewer" not in " ".join(bucket_report(again.records, 5, 1))


def test_many_buckets_are_summed_up_and_none_is_lost(tmp_path):
    write_image(tmp_path / "win" / "a.png")
    (tmp_path / "win" / "a.txt").write_text("a")
    (record,) = audit_in(tmp_path, [image_set("win")]).records
    records = [replace(record, geometry=replace(record.geometry, width=16 * i)) for i in range(1, 31)]
    lines = bucket_report(records, 2, 1)
    assert len(lines) == 22 and lines[-1] == "10 more buckets with 10 samples; 10 below 2"

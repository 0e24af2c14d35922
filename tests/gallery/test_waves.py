"""Data sets of sound on the page of `inspect`: clips are drawn over time, with the part that is cut and where masks
train."""

from __future__ import annotations

import json

import numpy as np
import soundfile
from PIL import Image

from flowhooks.data import survey
from flowhooks.data.load import load_datasets
from flowhooks.gallery import write
from flowhooks.gallery.cards import all_cards
from flowhooks.gallery.originals import originals
from flowhooks.gallery.thumbs import draw
from flowhooks.gallery.waves import INK


def clips(root):
    """Two clips of a second at 800 Hz, silent but for their second half; the third quarter trains."""
    loud = np.concatenate([np.zeros(400), np.tile([0.5, -0.5], 200)])
    for folder, gain in (("good", 1.0), ("bad", 0.5)):
        (root / folder).mkdir()
        soundfile.write(root / folder / "a.wav", np.stack([gain * loud, 0 * loud], 1), 800)
    (root / "good/a.txt").write_text("one")
    (root / "mask").mkdir()
    mask = np.zeros((1, 800), np.uint8)
    mask[:, 400:600] = 255
    Image.fromarray(mask).save(root / "mask/a.png")
    blocks = [
        {"id": "good", "dataset_type": "audio", "instance_data_dir": "good", "conditioning_data": ["bad", "mask"]},
        {"id": "bad", "dataset_type": "conditioning", "conditioning_type": "reference_strict"},
        {"id": "mask", "dataset_type": "conditioning", "conditioning_type": "mask"},
    ]
    for block in blocks[1:]:
        block["instance_data_dir"] = block["id"]
    (root / "data.json").write_text(json.dumps(blocks))


def inked(picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture) == INK).all(-1)


def test_a_clip_is_drawn_over_time(tmp_path):
    clips(tmp_path)
    (card,) = all_cards(survey(load_datasets("data.json", tmp_path)))
    assert card.bucket == "1 s" and not card.problems
    thumbs = draw(card)
    assert thumbs.problems == ()
    for picture in (thumbs.image, thumbs.rejected):
        assert thumbs.mask.size == picture.size
    tall = [inked(picture).sum(0).max() for picture in (thumbs.image, thumbs.rejected)]
    assert tall[0] > 1.8 * tall[1] > 0
    ink, half = inked(thumbs.image), thumbs.image.width // 2
    upper = ink[: len(ink) // 2]
    assert upper[:, half + 2 :].sum(0).min() > 3 * upper[:, : half - 2].sum(0).max(), "the left channel is above"
    assert ink[len(ink) // 2 :].sum(0).max() <= 2, "the right channel is silent"
    white = np.asarray(thumbs.mask).max(0) > 127
    np.testing.assert_array_equal(white.nonzero()[0][[0, -1]] // (len(white) // 4), [2, 2])
    assert [each.side for each in originals(card, 640)] == ["image", "rejected"]
    assert all("trained at 1 s" in each.about for each in originals(card, 640))


def test_the_page_has_no_problem(tmp_path):
    clips(tmp_path)
    written = write.write_gallery(str(tmp_path / "data.json"), tmp_path / "look", sample=4, seed=0, progress=False)
    assert written.problems == () and written.shown == written.of == 1

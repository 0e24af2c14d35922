"""What the values of a mask mean, and what is said where they look like labels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from flowhooks.data import survey
from flowhooks.data.encode import Masks
from flowhooks.data.geometry import Geometry
from flowhooks.data.load import load_datasets
from flowhooks.data.masks import tell_values
from flowhooks.data.transform import load_mask
from flowhooks.errors import DataError
from tests.data.folders import TRIPLE, audit_in, load, problems_in, write_image, write_mask, write_pairs
from tests.data.profiles import PICTURES

WHOLE = Geometry(width=16, height=16)
LABELS = [*TRIPLE[:2], {**TRIPLE[2], "mask_values": "labels"}]


def png(image: Image.Image, **options) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def classes() -> np.ndarray:
    """0 outside, then a stripe each of 1, 7 and 255."""
    return np.repeat(np.array([0, 1, 7, 255], np.uint8), 4)[None].repeat(16, 0)


def palette(**options) -> bytes:
    image = Image.frombytes("P", (16, 16), classes().tobytes())
    colours = [0] * 768
    colours[3:6], colours[21:24], colours[765:768] = (128, 0, 0), (0, 0, 0), (224, 224, 192)
    image.putpalette(colours)
    return png(image, **options)


@pytest.mark.parametrize(
    "data",
    [png(Image.fromarray(classes())), png(Image.fromarray(classes().astype(np.uint16))), palette()],
    ids=["8 bits", "16 bits", "palette"],
)
def test_every_label_but_0_is_inside(data):
    """Whatever it is: a palette's index counts, not its colour (that of 7 is black here), and 255 is inside too."""
    mask = load_mask(data, WHOLE, 4, 4, labels=True)
    assert (mask == [[[0, 1, 1, 1]] * 4]).all()
    assert load_mask(data, WHOLE, 1, 1, labels=True) == pytest.approx(0.75)


def test_labels_in_other_kinds_of_file():
    colours = np.zeros((16, 16, 4), np.uint8)
    colours[:, 4:] = (0, 0, 1, 255)
    colours[:, 8:, 3] = 0
    assert (load_mask(png(Image.fromarray(colours)), WHOLE, 4, 4, labels=True) == [[[0, 1, 0, 0]] * 4]).all()
    assert (load_mask(palette(transparency=1), WHOLE, 4, 4, labels=True) == [[[0, 0, 1, 1]] * 4]).all()
    bits = Image.fromarray(classes()).point(lambda level: 255 * (level > 0)).convert("1")
    assert (load_mask(png(bits), WHOLE, 4, 4, labels=True) == [[[0, 1, 1, 1]] * 4]).all()


@pytest.mark.parametrize(("file", "brightest", "weight"), [("values01", 1, "0.00392"), ("voc", 38, "0.149")])
def test_masks_of_labels_are_told_by_their_brightest_value(tmp_path, file, brightest, weight):
    write_pairs(tmp_path, ("a", "b"), (256, 256))
    for name in ("a", "b"):
        (tmp_path / f"mask/{name}.png").write_bytes((PICTURES / f"{file}_mask.png").read_bytes())
    (warning,) = audit_in(tmp_path, TRIPLE).warnings
    assert f"mask: a: the brightest value of the mask is {brightest} of 255" in warning
    assert (
        f"a weight of {weight}" in warning and "2 of 2 masks" in warning and "set `mask_values` to 'labels'" in warning
    )
    assert audit_in(tmp_path, LABELS).warnings == ()


@pytest.mark.parametrize(("level", "told"), [(1, True), (127, True), (128, False), (200, False), (255, False)])
def test_a_mask_is_dim_below_half_of_white(tmp_path, level, told):
    write_pairs(tmp_path, ("a",))
    write_mask(tmp_path / "mask/a.png", np.pad(np.full((8, 8), level), 4))
    assert bool(audit_in(tmp_path, TRIPLE).warnings) == told


def test_a_bright_palette_of_classes_is_told_and_a_grey_one_is_not(tmp_path):
    write_pairs(tmp_path, ("a",))
    (tmp_path / "mask/a.png").write_bytes(palette())
    assert "the brightest value of the mask is 220 of 255" in audit_in(tmp_path, TRIPLE).warnings[0]
    image = Image.frombytes("P", (16, 16), classes().tobytes())
    image.putpalette([level * 200 // 255 for level in range(256) for _ in range(3)])
    (tmp_path / "mask/a.png").write_bytes(png(image))
    assert audit_in(tmp_path, TRIPLE).warnings == ()


def test_columns_of_masks_are_read_as_their_set_says(tmp_path):
    write_image(tmp_path / "a.png")
    write_mask(tmp_path / "m.png", np.ones((16, 16)))
    (tmp_path / "t.csv").write_text("image,caption,mask\na.png,a,m.png\n")
    block = {"id": "t", "type": "csv", "instance_data_dir": "t.csv"}
    (warning,) = audit_in(tmp_path, [block]).warnings
    assert warning.startswith("t.mask: a: the brightest value of the mask is 1")
    audited = audit_in(tmp_path, [{**block, "mask_values": "labels"}])
    assert audited.warnings == () and audited.records[0].masks[0].labels


def test_the_cache_keeps_labels_apart(tmp_path):
    write_pairs(tmp_path, ("a",))
    masks = Masks({(16, 16, 1): (8, 8)})
    grey, labels = (
        masks.about((record.masks[0], record.geometry))
        for blocks in (TRIPLE, LABELS)
        for record in audit_in(tmp_path, blocks).records
    )
    assert labels == {**grey, "values": "labels"} and "values" not in grey


@pytest.mark.parametrize(
    ("blocks", "place", "said"),
    [
        (
            [{**TRIPLE[0], "mask_values": "labels"}, *TRIPLE[1:]],
            0,
            "write it into the conditioning set that holds them",
        ),
        ([TRIPLE[0], {**TRIPLE[1], "mask_values": "labels"}, TRIPLE[2]], 1, "this set holds no masks; remove it"),
    ],
)
def test_values_of_a_set_without_masks_are_refused(tmp_path, blocks, place, said):
    write_pairs(tmp_path, ("a",))
    with pytest.raises(DataError, match=rf"\$\[{place}\].mask_values: is 'labels'.*{said}"):
        load_datasets(list(blocks), tmp_path)


def test_a_mask_that_cannot_be_decoded_is_left_to_the_reader(tmp_path):
    """The audit, which decodes some masks only to warn, is not where it is told."""
    write_pairs(tmp_path, ("a",))
    data = (tmp_path / "mask/a.png").read_bytes()
    found = survey(load(tmp_path, TRIPLE))
    (tmp_path / "mask/a.png").write_bytes(data[:60])
    tell_values(found.sets, found.found)
    assert found.found.warnings == []


BLACK = {
    "8 bits": (png(Image.new("L", (16, 16))), "white is what trains"),
    "transparent": (png(Image.new("RGBA", (16, 16), (255, 255, 255, 0))), "save masks without transparency"),
    "labels of 16 bits": (png(Image.fromarray((classes() > 0).astype(np.uint16))), "set `mask_values` to 'labels'"),
}


def test_a_few_black_masks_are_a_note(tmp_path):
    write_pairs(tmp_path, ("a", "b", "c"))
    write_mask(tmp_path / "mask/b.png", np.zeros((16, 16)))
    result = audit_in(tmp_path, TRIPLE)
    assert result.warnings == () and "(1 of 3 masks that were decoded): b; " in result.report[-1]


@pytest.mark.parametrize("kind", BLACK)
def test_a_set_of_black_masks_is_refused_and_some_are_told(tmp_path, kind):
    data, remedy = BLACK[kind]
    write_pairs(tmp_path, ("a", "b", "c"))
    for name in "ab":
        (tmp_path / f"mask/{name}.png").write_bytes(data)
    (warning,) = audit_in(tmp_path, TRIPLE).warnings
    assert "mask: the mask is black: it trains nowhere (2 of 3 masks that were decoded): a, b; " in warning
    assert remedy in warning
    (tmp_path / "mask/c.png").write_bytes(data)
    (problem,) = problems_in(tmp_path, TRIPLE)
    assert problem.startswith("$[2].instance_data_dir: none of the 3 masks of 'mask' has a bright pixel, so none ")
    assert remedy in problem
    if "labels" in kind:
        assert audit_in(tmp_path, LABELS).warnings == ()
    else:
        assert "white is what trains" in problem or remedy in problems_in(tmp_path, LABELS)[0]


def test_black_masks_of_a_column_are_refused_at_that_column(tmp_path):
    write_image(tmp_path / "a.png")
    write_mask(tmp_path / "m.png", np.zeros((16, 16)))
    (tmp_path / "t.csv").write_text("image,caption,mask\na.png,a,m.png\n")
    (problem,) = problems_in(tmp_path, [{"id": "t", "type": "csv", "instance_data_dir": "t.csv"}])
    assert problem.startswith("$[0].mask_column: none of the 1 mask of 't.mask' has a bright pixel")


def test_all_masks_are_looked_at_before_a_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("flowhooks.data.masks.LOOKED_AT", 2)
    write_pairs(tmp_path, ("a", "b", "c"))
    for name in "ac":
        write_mask(tmp_path / f"mask/{name}.png", np.zeros((16, 16)))
    (warning,) = audit_in(tmp_path, TRIPLE).warnings
    assert "(2 of 2 masks that were decoded): a, c" in warning

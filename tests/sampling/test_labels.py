"""A grid says what is in it, to people and to programs, and every pixel of its images is there."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flowhooks.report.pictures import read_pictures, spread
from flowhooks.sampling.labels import KEY, TEXT, Cell, cell_image, drawable, font, labelled_grid, read_cells, wrapped


def noise(side: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("side", [16, 200])
def test_the_images_of_a_grid_can_be_taken_out_again(tmp_path, side):
    pictures = [noise(side, i) for i in range(3)]
    cells = [Cell(prompt=prompt, seed=seed, steps=20) for prompt, seed in (("one", 0), ("one", 1), ("写真", 0))]
    grid = labelled_grid(pictures, cells, columns=2, step=1200)
    file = tmp_path / "validation/step_001200.png"
    file.parent.mkdir()
    grid.save(file)
    with Image.open(file) as saved:
        found = read_cells(saved)
        assert saved.size == grid.image.size
        for picture, cell in zip(pictures, found, strict=True):
            assert cell.box[2] >= 144 and cell_image(saved, cell).tobytes() == picture.tobytes()
        # The step stands above, the label below each image.
        assert saved.convert("L").crop((0, 0, 200, found[0].box[1])).getextrema()[0] < 80
        below = found[2].box[1] + found[2].box[3]
        assert saved.convert("L").crop((16, below, 180, below + 60)).getextrema()[0] < 80
    assert [(cell.prompt, cell.seed, cell.steps) for cell in found] == [(c.prompt, c.seed, c.steps) for c in cells]
    shown = read_pictures(tmp_path, {})
    assert [step for step, _ in shown.grids] == [1200] and shown.grids[0][1].sizes == ((side, side),) * 3


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{",
        '{"cells": 3}',
        '{"cells": [{"prompt": "x"}]}',
        '{"cells": [{"prompt": "x", "seed": 0, "steps": 1, "scale": 1, "box": [0, 0, 900, 4]}]}',
        '{"cells": [{"prompt": "x", "seed": 0, "steps": 1, "scale": 0, "box": [0, 0, 4, 4]}]}',
        '{"cells": [{"prompt": ["x"], "seed": 0, "steps": 1, "scale": 1, "box": [0, 0, 4, 4]}]}',
        '{"cells": [{"prompt": "x", "seed": 0, "steps": 1, "scale": 1, "box": [0, 0, 4, 4], "more": 1}]}',
    ],
)
def test_a_header_that_no_run_wrote_is_none(tmp_path, header):
    told = PngImagePlugin.PngInfo()
    told.add_text(KEY, header)
    (tmp_path / "validation").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "validation/step_000000.png", pnginfo=told)
    ((_, grid),) = read_pictures(tmp_path, {}).grids
    assert grid.cells == () and len(grid.images) == 1, "as a grid of an older version, it is shown whole"


def test_of_many_validations_the_first_the_last_and_those_between_are_shown():
    assert spread(list(range(5)), 24) == list(range(5))
    assert spread(list(range(0, 1000, 10)), 24) == [*range(0, 990, 80), 990]
    for count in range(1, 200):
        some = spread(list(range(count)), 24)
        assert min(count, 12) <= len(some) <= 24 and some[0] == 0 and some[-1] == count - 1
        assert len({after - before for before, after in pairwise(some[:-1])}) <= 1


def test_what_was_read_is_not_read_again(tmp_path):
    (tmp_path / "validation").mkdir()
    file = tmp_path / "validation/step_000000.png"
    noise(8, 0).save(file)
    kept: dict = {}
    first = read_pictures(tmp_path, kept)
    assert read_pictures(tmp_path, kept).grids[0][1] is first.grids[0][1] and len(kept) == 1
    noise(12, 1).save(file)
    assert read_pictures(tmp_path, kept).grids[0][1].sizes == ((12, 12),) and len(kept) == 1


def test_letters_that_the_font_lacks_are_spelled_or_given_up():
    assert drawable("a red fox") == "a red fox"
    assert drawable("Größe: café – naïve") == "Grosse: cafe - naive"
    assert drawable("写真") == "" == drawable("قطة")


def test_a_prompt_is_broken_into_its_lines():
    prompt = "a handwritten seven in blue ink on old paper with a stain"
    lines = wrapped(prompt, 160, 2)
    assert len(lines) == 2 and lines[1].endswith("…") and prompt.startswith(lines[0])
    assert all(font(TEXT).getlength(line) <= 160 for line in lines)
    assert wrapped("short", 160, 2) == ["short"] and wrapped("", 160, 2) == []
    assert len(wrapped("supercalifragilistic" * 9, 160, 2)) == 2


def test_a_grid_needs_images_and_a_cell_for_each():
    with pytest.raises(ValueError, match="a cell for each"):
        labelled_grid([noise(4, 0)], [], columns=1, step=0)


def test_a_header_is_json(tmp_path):
    labelled_grid([noise(4, 0)], [Cell(prompt="<b>", seed=7, steps=2)], columns=4, step=3).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        found = json.loads(saved.info[KEY])
    assert found["step"] == 3 and found["cells"][0]["seed"] == 7 and found["cells"][0]["scale"] == 36

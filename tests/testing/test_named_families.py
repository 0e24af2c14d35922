"""Every family that a user may have read about has a row or a sentence in docs/pipelines.md."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest

from flowhooks.errors import ModelError
from flowhooks.probe import probe
from tests.families import EVERY, PIPELINES, tiny
from tests.families.matrix import WITHOUT_A_ROW, known_rows, markdown

PAGE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")
IMAGES = [
    "flux",
    "flux2",
    "sd3",
    "pixart",
    "sana",
    "qwen_image",
    "chroma",
    "hidream",
    "auraflow",
    "lumina2",
    "z_image",
    "z_image_omni",
    "kandinsky5_image",
    "longcat_image",
    "omnigen",
    "ace_step",
]
VIDEOS = [
    "wan",
    "wan_s2v",
    "ltxvideo",
    "ltxvideo2",
    "sanavideo",
    "kandinsky5_video",
    "hunyuanvideo",
    "longcat_video",
    "cosmos",
    "anima",
]
#: Where the table has another name than theirs with its underscores as hyphens.
ROWS = {
    "hidream": "hidream-image",
    "auraflow": "aura-flow",
    "ltxvideo": "ltx",
    "ltxvideo2": "ltx2",
    "sanavideo": "sana-video",
    "hunyuanvideo": "hunyuan-video",
    "anima": "modular-anima",
}


@pytest.mark.parametrize("family", [*IMAGES, *VIDEOS])
def test_the_page_tells_of_it(family):
    if family in WITHOUT_A_ROW:
        assert f"* `{family}`: {WITHOUT_A_ROW[family]}." in PAGE
    else:
        row = ROWS.get(family, family.replace("_", "-"))
        assert row in EVERY and f"| `{row}` |" in PAGE


def test_the_page_is_read_as_it_is_written():
    rows = known_rows(PAGE)
    twins = re.findall(r"^\* `modular-.*`: .*\.$", PAGE, re.MULTILINE)
    assert markdown([rows[name] for name in EVERY if name in rows], twins) == PAGE
    assert not known_rows(PAGE.replace("| bf16 |", "| fp8 |"))


def test_every_tiny_pipeline_has_a_row():
    assert [name for name in EVERY if f"| `{name}` |" not in PAGE] == []


def test_every_class_of_diffusers_that_matches_flows_has_a_row_or_a_reason():
    """What names a scheduler of flow matching for its own, and every modular pipeline."""
    root, names = Path(diffusers.__file__).parent, set(dir(diffusers))
    own = re.compile(r"^ +scheduler: .*(FlowMatch\w+|UniPCMultistepScheduler|SCMScheduler)", re.MULTILINE)
    files = [*root.glob("pipelines/*/pipeline_*.py"), *root.glob("modular_pipelines/*/modular_pipeline.py")]
    found = {
        name
        for file in files
        if file.stem == "modular_pipeline" or own.search(file.read_text(encoding="utf-8"))
        for name in re.findall(r"^class (\w+Pipeline)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(found & names) > 100
    assert sorted(name for name in found & names if not re.search(rf"\b{name}\b", PAGE)) == []


def test_what_is_said_of_diffusers_holds():
    """A class that appears makes its sentence untrue."""
    names = dir(diffusers)
    assert not [name for name in names if "S2V" in name or "SpeechToVideo" in name or "LongCatVideo" in name]
    assert "AnimaModularPipeline" in names and "AnimaPipeline" not in names


def test_z_image_omni_is_refused():
    pipe = diffusers.ZImageOmniPipeline(**tiny("z-image").components, siglip=None, siglip_processor=None)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ModelError, match="ZImageOmniPipeline"):
        probe(pipe, arguments=PIPELINES["z-image"].arguments)

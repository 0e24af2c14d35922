"""Every command that a finished run prints can be pasted into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flowhooks.cli import parser
from flowhooks.commands.next_steps import what_next
from flowhooks.config import resolve_run
from flowhooks.data import Record
from flowhooks.data.assets import FileAsset, RemoteAsset
from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import Picture
from flowhooks.data.records import Reference
from flowhooks.data.waveforms import Waveform

PROMPTED = {"type": "on_policy_rollout", "prompts": ["drawn 'so'"]}
SHOWING = {"type": "on_policy_rollout", "prompts": [{"prompt": "change it", "images": {"image": "/a b.png"}}]}
NOTHING: dict = {"image": None, "text": None, "duration": None}


def picture(asset, width=8, sound=None):
    return Picture(asset=asset, width=width, height=8, digest="", sound=sound)


def sample(caption, *references, samples=None):
    sound = samples and Waveform(stored_rate=8, stored_channels=1, stored_samples=99, rate=8, channels=1)
    cut = Geometry(width=samples or 8, height=8)
    image = picture(FileAsset(Path("x")), 99, sound)
    return Record(key="x", dataset="d", image=image, caption=caption, references=references, geometry=cut)


SOURCE = Reference(argument=None, image=picture(FileAsset(Path("my source.png"))))
FETCHED = Reference(argument="last_image", image=picture(RemoteAsset("s3://b/a.png")))
SUNG = sample("sing", Reference(argument="lyrics", text="la $la\nla"), Reference(argument="bpm", text=90), samples=20)
SPOKEN = {"prompts": ["it's $HOME"], "texts": [{"lyrics": "no"}], "duration": 1.5}
SHOWN = {"prompts": ["edit"], "images": [["/a.png", "/b.png"]]}


@pytest.mark.parametrize(
    ("sections", "records", "prompt", "others"),
    [
        ({"validation": {"prompts": ["it's $HOME"]}}, [sample("a")], "it's $HOME", {}),
        ({"validation": SPOKEN}, [], "it's $HOME", {"text": ["lyrics=no"], "duration": 1.5}),
        ({"validation": SHOWN}, [], "edit", {"image": ["/a.png", "/b.png"]}),
        ({"hooks": [PROMPTED]}, [], "drawn 'so'", {}),
        ({"hooks": [SHOWING]}, [], "change it", {"image": ["image=/a b.png"]}),
        ({}, [sample(""), sample("-- a dash first")], "-- a dash first", {}),
        ({}, [sample("a", SOURCE, FETCHED)], "a", {"image": ["my source.png", "last_image=FILE"]}),
        ({}, [SUNG], "sing", {"text": ["lyrics=la $la\nla", "bpm=90"], "duration": 2.5}),
        ({}, [], "an image", {}),
    ],
)
@pytest.mark.parametrize("imports", [False, True])
def test_the_command_for_pictures_parses(sections, records, prompt, others, imports, tmp_path):
    folder = tmp_path / "with spaces"
    run = resolve_run({"hooks": [], **sections, "output_dir": str(folder)}, tmp_path / "run.json")
    [line] = [line for line in what_next(run, records, imports=imports) if "flowhooks " in line]
    program, *argv = shlex.split(line)[1:]
    args = parser().parse_args(argv)
    assert (program, args.model, args.prompt, args.allow_imports) == ("flowhooks", str(folder), [prompt], imports)
    assert {name: getattr(args, name) for name in NOTHING} == {**NOTHING, **others}

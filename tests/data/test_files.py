from __future__ import annotations

import os
import socket
import tarfile
from contextlib import chdir
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from flowhooks.data.files import group_images, walk
from flowhooks.data.images import BadImage, cause
from flowhooks.data.transform import load_picture
from flowhooks.errors import DataError
from tests.data.folders import TRIPLE, audit_in, write_image, write_pairs


def test_images_are_known_by_relative_path_without_suffix(tmp_path):
    write_image(tmp_path / "b.PNG")
    write_image(tmp_path / "sub/deeper/a.b.webp")
    write_image(tmp_path / ".thumbnails/c.png")
    (tmp_path / "b.txt").write_text("caption")
    (tmp_path / "notes.md").write_text("notes")
    (tmp_path / "._b.png").write_bytes(b"left by another system")
    tree = walk(tmp_path)
    assert list(tree.files) == ["b.PNG", "b.txt", "notes.md", "sub/deeper/a.b.webp"]
    assert tree.files["sub/deeper/a.b.webp"].path == tmp_path / "sub/deeper/a.b.webp"
    found = group_images(tree.files)
    assert found.images == {"b": "b.PNG", "sub/deeper/a.b": "sub/deeper/a.b.webp"}
    assert found.ignored == {".md": 1}
    assert not found.duplicates and not tree.refused


def test_two_files_of_one_stem_are_duplicates_and_case_matters(tmp_path):
    for name in ("a.png", "a.jpg", "A.png"):
        write_image(tmp_path / name)
    found = group_images(walk(tmp_path).files)
    assert list(found.images) == ["A", "a"]
    assert found.duplicates == {"a": ("a.jpg", "a.png")}


def test_links_are_followed_only_inside_the_folder(tmp_path):
    outside = write_image(tmp_path / "elsewhere/secret.png")
    root = tmp_path / "set"
    write_image(root / "real/a.png")
    (root / "inside.png").symlink_to(root / "real/a.png")
    (root / "again").symlink_to(root / "real", target_is_directory=True)
    (root / "escape.png").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent, target_is_directory=True)
    (root / "real/loop").symlink_to(root, target_is_directory=True)
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "self.png").symlink_to(root / "self.png")
    tree = walk(root)
    assert list(tree.files) == ["again/a.png", "inside.png", "real/a.png"]
    reasons = dict(tree.refused)
    assert set(reasons) == {"escape.png", "folder", "again/loop", "real/loop", "gone.png", "self.png"}
    assert "outside the data set folder" in reasons["escape.png"]
    assert "outside the data set folder" in reasons["folder"]
    assert "contains it" in reasons["real/loop"]
    assert "does not exist" in reasons["gone.png"] and "does not exist" in reasons["self.png"]


def test_a_name_that_is_not_utf8_is_refused_and_printable(tmp_path):
    write_image(tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    tree = walk(tmp_path)
    assert not tree.files and tree.refused == (("\\xff.png", "has a name that is not UTF-8"),)


def test_a_folder_that_is_itself_a_link_is_read(tmp_path):
    write_image(tmp_path / "real/a.png")
    (tmp_path / "set").symlink_to(tmp_path / "real", target_is_directory=True)
    assert list(walk(tmp_path / "set").files) == ["a.png"]


@pytest.mark.parametrize("kind", ["pipe", "socket", "link"])
@pytest.mark.parametrize("place", ["win/q.png", "mask/a.png", "win/a.txt"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, kind, place):
    write_pairs(tmp_path, ("a",))
    path = tmp_path / place
    path.unlink(missing_ok=True)
    made = path.with_name("made") if kind == "link" else path
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened, chdir(path.parent):
            opened.bind(path.name)
    else:
        os.mkfifo(made)
    if kind == "link":
        path.symlink_to(made)
    named = f"{Path(place).name} is a pipe, a socket or a device, not a regular file"
    with pytest.raises(DataError) as refused:
        audit_in(tmp_path, TRIPLE)
    assert any(named in problem.message for problem in refused.value.problems)


def test_files_of_other_kinds_beside_a_table_or_in_a_shard_are_counted_by_suffix(tmp_path):
    image = write_image(tmp_path / "one" / "a.png")
    for name in ("b.psd", "c.raw", "d.raw"):
        (tmp_path / "one" / name).write_bytes(b"x")
    (tmp_path / "one" / "metadata.csv").write_text("file_name,caption\na.png,b\n", encoding="utf-8")
    with tarfile.open(tmp_path / "two.tar", "w") as shard:
        for name in ("a.png", "a.psd"):
            shard.add(image, name)
    sets = [
        {"id": "one", "type": "imagefolder", "instance_data_dir": "one"},
        {"id": "two", "type": "webdataset", "instance_data_dir": "two.tar", "caption_strategy": "filename"},
    ]
    report = audit_in(tmp_path, sets).report
    assert "one: 3 files of other kinds left alone: .psd (1), .raw (2)" in report
    assert "two: 1 member of other kinds left alone: .psd (1)" in report


def test_no_message_names_an_object_in_memory(tmp_path):
    unknown = pytest.raises(UnidentifiedImageError, Image.open, BytesIO(b"GIF89a"))
    assert "_io.BytesIO" in str(unknown.value) and cause(unknown.value) == "cannot identify image file"
    with pytest.raises(BadImage, match=r"^cannot be decoded \(cannot identify image file\)$"):
        load_picture(b"nothing", None)

from __future__ import annotations

from flowhooks.data.files import list_images
from tests.data.folders import write_image


def test_images_are_known_by_relative_path_without_suffix(tmp_path):
    write_image(tmp_path / "b.PNG")
    write_image(tmp_path / "sub/deeper/a.b.webp")
    write_image(tmp_path / ".thumbnails/c.png")
    (tmp_path / "b.txt").write_text("caption")
    (tmp_path / "notes.md").write_text("notes")
    (tmp_path / "._b.png").write_bytes(b"left by another system")
    folder = list_images(tmp_path)
    assert list(folder.images) == ["b", "sub/deeper/a.b"]
    assert folder.images["sub/deeper/a.b"] == tmp_path / "sub/deeper/a.b.webp"
    assert folder.ignored == {".md": 1}
    assert not folder.duplicates and not folder.refused


def test_two_files_of_one_stem_are_duplicates_and_case_matters(tmp_path):
    for name in ("a.png", "a.jpg", "A.png"):
        write_image(tmp_path / name)
    folder = list_images(tmp_path)
    assert list(folder.images) == ["A", "a"]
    assert folder.duplicates == {"a": (tmp_path / "a.jpg", tmp_path / "a.png")}


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
    folder = list_images(root)
    assert list(folder.images) == ["again/a", "inside", "real/a"]
    reasons = dict(folder.refused)
    assert set(reasons) == {
        str(root / name) for name in ("escape.png", "folder", "again/loop", "real/loop", "gone.png")
    }
    assert "outside the data set folder" in reasons[str(root / "escape.png")]
    assert "outside the data set folder" in reasons[str(root / "folder")]
    assert "contains it" in reasons[str(root / "real/loop")]
    assert "does not exist" in reasons[str(root / "gone.png")]


def test_a_folder_that_is_itself_a_link_is_read(tmp_path):
    write_image(tmp_path / "real/a.png")
    (tmp_path / "set").symlink_to(tmp_path / "real", target_is_directory=True)
    assert list(list_images(tmp_path / "set").images) == ["a"]

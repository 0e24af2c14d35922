"""The site holds every page once, and what is wrong with it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import site
from tests.docs.pages import ROOT


def flat(navigation: list[object]) -> list[str]:
    return [page for part in navigation for own in part.values() for page in ([own] if isinstance(own, str) else own)]


def test_every_page_is_in_the_navigation_once() -> None:
    """Also those that only another page links to, such as the pages of evidence."""
    found = flat(site.navigation())
    assert sorted(found) == sorted(site.pages())
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")} <= set(found)
    assert found.index("docs/evidence/anyflow.md") > found.index("docs/anyflow.md")


def test_what_is_wrong_with_a_site_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="b.html">b</a><a href="c.html#there">c</a><a href="#here">up</a>'
        '<script src="https://elsewhere.example/x.js"></script><a href="https://elsewhere.example">out</a>'
    )
    (tmp_path / "c.html").write_text("<h1>C</h1>")
    assert sorted(site.dead_links(tmp_path)) == [
        "a.html links to b.html, which is not there",
        "a.html links to c.html#there, where no such heading is",
        "a.html loads https://elsewhere.example/x.js",
    ]


@pytest.mark.parametrize(
    ("text", "built", "wrong"),
    [
        ("Text\n* one\n* two\n", "<article><p>Text * one * two</p></article>", ["li", "ul"]),
        ("* one\n", "<nav><ul><li>x</li></ul></nav><article><ul><li>one</li></ul></article>", []),
    ],
)
def test_a_list_that_the_site_runs_into_a_paragraph_is_found(
    tmp_path: Path, text: str, built: str, wrong: list[str]
) -> None:
    source, made = tmp_path / "source", tmp_path / "site"
    for folder, name, content in ((source, "a.md", text), (made, "a.html", built)):
        folder.mkdir()
        (folder / name).write_text(content)
    assert [line.split("<")[1].split(">")[0] for line in site.shown_differently(source, made)] == wrong


def test_every_public_name_is_in_the_reference() -> None:
    import flowhooks

    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [name for name in flowhooks.__all__ if name != "__version__" and f"### `flowhooks.{name}`" not in text] == []

"""The site of the docs: the same Markdown, laid out as it is in the repository, and built by Zensical.

``python -m tests.docs.site`` writes it to ``build/site``. Pages keep their places, so every link that leads somewhere
in the repository leads there on the site too; whatever else a page links to is copied beside it. The navigation is the
list of pages in the README, in its order; a page that only another page links to comes after that one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from markdown_it import MarkdownIt

from tests.docs.pages import ROOT

BUILD = ROOT / "build"
#: What Zensical reads and what it writes.
SOURCE, SITE = BUILD / "pages", BUILD / "site"
#: Pages beside those of ``docs`` and of the folders that pages link to.
AT_THE_TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
#: A place for the reference of one name, invisible where the page is read as plain Markdown.
_REFERENCE = re.compile(r"^<!-- reference: (flowhooks[\w.]*) -->$", re.MULTILINE)


def links(page: str) -> list[str]:
    """What a page links to in the repository, as paths from its root, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [((ROOT / page).parent / unquote(link)).resolve() for link in _LINK.findall(text)]
    return list(dict.fromkeys(path.relative_to(ROOT).as_posix() for path in found if path.exists()))


def pages() -> list[str]:
    """All pages of the site: those at the top, those of ``docs``, and every other that one of them links to."""
    found = [page for page in AT_THE_TOP if (ROOT / page).is_file()]
    found += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    for page in found:
        found += [link for link in links(page) if link.endswith(".md") and link not in found]
    return found


def navigation() -> list[object]:
    """The navigation as Zensical reads it: the README, then a list of pages for each heading of its documentation."""
    documentation = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Documentation\n")[1].split("\n## ")[0]
    sections: list[tuple[str, list[str]]] = []
    for line in documentation.splitlines():
        if line.startswith("### "):
            sections.append((line.removeprefix("### "), []))
        sections and sections[-1][1].extend(
            page for page in _LINK.findall(line) if page.endswith(".md") and page not in sections[-1][1]
        )
    listed = [page for _, own in sections for page in own]
    for page in pages():
        if page in listed or page == "README.md":
            continue
        # The page whose name it continues, as evidence does; else the last one that links to it: tutorials come first.
        parents = [other for other in listed if page in links(other)]
        named = [other for other in parents if Path(page).stem.startswith(Path(other).stem)]
        parent = (named or parents[-1:] or listed[-1:])[0]
        own = next(own for _, own in sections if parent in own)
        own.insert(own.index(parent) + 1, page)
    return [{"flowhooks": "README.md"}, *({title: own} for title, own in sections)]


def settings() -> dict[str, object]:
    """The configuration of Zensical, which reads that of MkDocs. Nothing of the site comes from another host."""
    python = {
        "paths": [str(ROOT)],
        "options": {
            "docstring_style": "google",
            "show_root_heading": False,
            "show_root_toc_entry": False,
            "show_source": False,
            "show_bases": False,
            "members_order": "source",
            "filters": ["!^_"],
            "extensions": ["tests.docs.roles:Roles"],
            "heading_level": 4,
            "separate_signature": True,
            "show_signature_annotations": True,
            "line_length": 100,
        },
    }
    return {
        "site_name": "flowhooks",
        "site_description": "Training hooks for stock Diffusers flow-matching pipelines",
        "docs_dir": SOURCE.name,
        "site_dir": SITE.name,
        "use_directory_urls": False,
        "nav": navigation(),
        "theme": {
            "font": False,
            "features": [
                "navigation.indexes",
                "navigation.top",
                "navigation.footer",
                "content.code.copy",
                "search.highlight",
            ],
            "palette": [
                {"scheme": "default", "toggle": {"icon": "lucide/sun", "name": "Switch to dark mode"}},
                {"scheme": "slate", "toggle": {"icon": "lucide/moon", "name": "Switch to light mode"}},
            ],
        },
        "plugins": [{"search": {}}, {"mkdocstrings": {"handlers": {"python": python}}}],
        "markdown_extensions": [
            "attr_list",
            "md_in_html",
            "tables",
            {"toc": {"permalink": True, "slugify": {"object": "pymdownx.slugs.slugify", "kwds": {"case": "lower"}}}},
            {"pymdownx.highlight": {}},
            "pymdownx.superfences",
            "admonition",
        ],
        "validation": {"invalid_links": True, "invalid_link_anchors": True},
    }


def lay_out() -> None:
    """Copies the pages, and the files that they link to, into the folder that Zensical reads."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for page in pages():
        for name in [page, *links(page)]:
            to = SOURCE / name
            if (ROOT / name).is_file() and not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, to)
    for path in SOURCE.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(_REFERENCE.sub(r"::: \1", text), encoding="utf-8")
    (BUILD / "mkdocs.yml").write_text(json.dumps(settings(), indent=1), encoding="utf-8")


class Page(HTMLParser):
    """Collects what a page links to and loads, its anchors, and how many elements of each kind its text has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.elements: Counter[str] = Counter()
        self._in_text = "<article" not in text
        self.feed(text)

    def handle_endtag(self, tag: str) -> None:
        self._in_text &= tag != "article"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attributes if value is not None}
        self._in_text |= tag == "article"
        self.elements[tag] += self._in_text
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loads += [given[key] for key in ("src", "href") if key in given and tag in {"img", "script", "link"}]


def dead_links(site: Path) -> Iterator[str]:
    """Links and anchors of a built site that lead nowhere, and what its pages load from other hosts."""
    found = {
        path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html")) if path.name != "404.html"
    }
    for path, page in found.items():
        name = path.relative_to(site)
        yield from (f"{name} loads {link}" for link in page.loads if urlparse(link).netloc)
        for link in {*page.links, *page.loads}:
            if urlparse(link).scheme or urlparse(link).netloc:
                continue
            file, anchor = urldefrag(link)
            to = (path.parent / unquote(file)).resolve() if file else path
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file():
                yield f"{name} links to {link}, which is not there"
            elif anchor and to in found and unquote(anchor) not in found[to].anchors:
                yield f"{name} links to {link}, where no such heading is"


def shown_differently(source: Path, site: Path) -> Iterator[str]:
    """Pages whose lists, tables and blocks of code the site shows otherwise than GitHub does.

    Python-Markdown, which the site is made with, wants a blank line before a list and four spaces before its parts.
    """
    github = MarkdownIt("commonmark").enable("table")
    for path in sorted(source.rglob("*.md")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(source)
        built = site / (name.with_name("index.html") if name.name == "README.md" else name.with_suffix(".html"))
        if not re.search(r"^::: ", text, re.MULTILINE):
            there, here = Page(github.render(text)).elements, Page(built.read_text(encoding="utf-8")).elements
            yield from (
                f"{name} has {there[tag]} <{tag}> on GitHub and {here[tag]} on the site"
                for tag in ("li", "ul", "ol", "table", "tr", "pre", "blockquote", "h1", "h2", "h3")
                if there[tag] != here[tag]
            )


def build() -> None:
    """Builds the site, strictly: a warning of Zensical and a link that leads nowhere end the process."""
    shutil.rmtree(SITE, ignore_errors=True)
    lay_out()
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--clean",
        "--strict",
        "--config-file",
        str(BUILD / "mkdocs.yml"),
    ]
    said = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)
    print(said.stdout + said.stderr, end="")
    if said.returncode or "griffe: " in said.stdout + said.stderr:
        sys.exit("a warning of the site's generator is an error")
    wrong = sorted({*dead_links(SITE), *shown_differently(SOURCE, SITE)})
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}")


if __name__ == "__main__":
    build()

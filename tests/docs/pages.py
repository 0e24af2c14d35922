"""The pages, and what stands in them."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])]
_FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(
    r"^#+ `(?P<name>[\w/]+)`\n+\| key \| default \| \|\n\|---\|---\|---\|\n(?P<rows>(?:\|.*\n)+)", re.MULTILINE
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of one language."""
    return [textwrap.dedent(m["text"]) for m in _FENCE.finditer(read(page)) if m["kind"] == kind]


def commands(page: str) -> list[str]:
    """Whole command lines: indented ones, without remark and prompt."""
    prose = _FENCE.sub("", read(page))
    lines = re.findall(r"^    (?:accelerate launch -m )?flowhooks (.+?)(?:\s{2,}#.*)?$", prose, re.MULTILINE)
    return [line.strip() for line in lines]


def named_commands(page: str) -> set[str]:
    """The word after ``flowhooks`` wherever a command is mentioned in code."""
    return set(re.findall(r"`flowhooks ([\w-]+)", read(page))) | {line.split()[0] for line in commands(page)}


def option_tables(page: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(section or schema in the heading, key -> default as it is printed) of every table of options."""
    for match in _TABLE.finditer(read(page)):
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in match["rows"].splitlines()]
        yield match["name"], {row[0].strip(" `"): row[1].strip(" `") for row in rows}


def as_printed(schema: dict[str, Any]) -> str:
    """A property's default as tables print it; empty where there is none."""
    return json.dumps(schema["default"]) if "default" in schema else ""


def anchors(page: Path) -> set[str]:
    """What a link can point at, as GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

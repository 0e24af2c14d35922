"""The pages, and what stands in them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path.relative_to(ROOT).as_posix() for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])]
_FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION_HEAD = "| key | default | what it does |\n|---|---|---|\n"
#: A table of options under a heading in code, with the text that may stand between the two.
TABLE = re.compile(
    rf"(?P<above>^#+ `(?P<name>[\w/]+)`\n+(?:[^#|\n].*\n+)*){re.escape(OPTION_HEAD)}(?P<rows>(?:\|.*\n)+)", re.MULTILINE
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


def anchors(page: Path) -> set[str]:
    """What a link can point at, as GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

"""What the README promises is there: its run file is valid, its commands exist, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flowhooks.cli import parser
from flowhooks.config import resolve_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]


def test_the_run_file_is_valid() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    document = json.loads(text)
    del document["data"]
    hooks = [hook.type for hook in resolve_run(document, ROOT / "run.json").hooks]
    assert "flow_dpo" in hooks and "anchor_regularizer" in hooks


def test_every_command_line_can_be_read() -> None:
    lines = re.findall(r"^    (?:accelerate launch -m )?flowhooks (.+?)(?:\s{2,}#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        parser().parse_args(line.split())


def test_the_two_commands_come_first() -> None:
    first, second = re.findall(r"^    make (\w+)", README, re.MULTILINE)[:2]
    assert (first, second) == ("demo", "test")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {first, second} <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    dead = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not dead, f"{page} links to files that are not there: {dead}"

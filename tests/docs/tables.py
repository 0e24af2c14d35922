"""The tables of hooks in the docs, made from the specs; ``python -m tests.docs.tables`` writes them anew."""

from __future__ import annotations

import re

from flowhooks.documents.spec import properties_of, text_of
from flowhooks.hooks.registry import HOOKS
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import SLOTS
from tests.docs.pages import ROOT

PAGE = ROOT / "docs/hooks.md"
HEAD = "| type | slots | needs | gives | what it does |\n|---|---|---|---|---|\n"


def declared(spec: type[HookSpec], kind: str) -> list[str]:
    """``needs`` or ``gives`` of a hook with its defaults; without the part that depends on options it must be given."""
    defaults = {name: each["default"] for name, each in properties_of(spec).items() if "default" in each}
    complete = len(defaults) == len(properties_of(spec))
    return sorted(spec.declaration(defaults)[kind] if complete else getattr(spec, kind))


def row(type: str, spec: type[HookSpec]) -> str:
    order = [slot for slot in SLOTS for own in spec.slots if own.split(":")[0] == slot]
    slots = sorted(spec.slots, key=lambda own: order.index(own.split(":")[0]))
    cells = [
        spec.words.get(kind, ", ".join(f"`{each}`" for each in declared(spec, kind))) for kind in ("needs", "gives")
    ]
    page, _, anchor = spec.page.partition("#")
    heading = re.findall(r"^# (.+)$", (PAGE.parent / page).read_text(encoding="utf-8"), re.MULTILINE)[0]
    link = f"#{anchor}" if page == PAGE.name else spec.page
    more = f" See [{anchor if page == PAGE.name else heading}]({link})." if spec.page != PAGE.name else ""
    if spec.implied_by and "Added" not in text_of(spec):
        more = f" Added by itself where a hook needs {' or '.join(f'`{need}`' for need in spec.implied_by)}.{more}"
    return f"| `{type}` | {', '.join(slots)} | {' | '.join(cells)} | {text_of(spec)}{more} |\n"


def table_of_hooks() -> str:
    return HEAD + "".join(row(type, spec) for type, spec in sorted(HOOKS.items()))


def with_table(text: str) -> str:
    """The page with its table of hooks made anew."""
    start = text.index("| type | slots |")
    end = text.index("\n\n", start) + 1
    return text[:start] + table_of_hooks() + text[end:]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""The tables of hooks and of options in the docs, made from specs and schemas.

``python -m tests.docs.tables`` writes them anew, and with them the page of options that have no table elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from flowhooks.data import other_trainers
from flowhooks.documents.schemas import schemas
from flowhooks.documents.spec import properties_of, text_of
from flowhooks.hooks.registry import HOOKS
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import SLOTS
from tests.docs.pages import OPTION_HEAD, PAGES, ROOT, TABLE, read

PAGE = ROOT / "docs/hooks.md"
HEAD = "| type | slots | needs | gives | what it does |\n|---|---|---|---|---|\n"
KEYS_PAGE = "docs/from_other_trainers.md"
#: The page of what has no table elsewhere; it is made as a whole.
REST = "docs/options.md"
REST_TEXT = """# Options of hooks and methods

Every option of the hooks and methods that have no table on another page. Texts, defaults and ranges are those of the
schemas, which an editor shows too. `python -m tests.docs.tables` writes this page.

Tables elsewhere: {elsewhere}.
"""
#: The most values of an option that a row lists, and the largest bound that is more than a guard against typing errors.
MANY, GUARD = 8, 100


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


def with_table_of_hooks(text: str) -> str:
    """The page of hooks with its table of hooks made anew."""
    start = text.index("| type | slots |")
    end = text.index("\n\n", start) + 1
    return text[:start] + table_of_hooks() + text[end:]


def with_table_of_keys(text: str) -> str:
    """The page of other trainers with its table of keys made anew."""
    start = text.index("| key there |")
    end = text.index("\n\n", start) + 1
    return text[:start] + other_trainers.table() + text[end:]


def schema_of(name: str) -> dict[str, Any]:
    """The schema, or the section of a run, that a table of options is about."""
    if name == "dataset":
        return schemas()["dataloader"]["$defs"]["dataset"]
    return schemas()[name] if name in schemas() else schemas()["run"]["properties"][name]


def options(name: str) -> dict[str, dict[str, Any]]:
    """Option -> its schema. The ``type`` that selects a hook or a reward is none."""
    return {key: each for key, each in schema_of(name)["properties"].items() if key != "type" or "const" not in each}


def choices(schema: dict[str, Any]) -> str:
    """The values that an option may have, where its text does not name them; empty where they are too many."""
    values = [f"`{value}`" for value in schema.get("enum", ()) if value is not None]
    told = all(value in schema["description"] for value in values)
    return "" if told or len(values) > MANY else f" One of {', '.join(values)}."


def bounds(schema: dict[str, Any]) -> str:
    """The range of a number, where its text does not name it. Bounds that only guard against typing errors, and least
    values of 0 or 1 that go without saying, are left out."""
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not {"integer", "number"} & set(kinds) or "array" in kinds:
        return ""
    low, high = (schema.get(key, schema.get(f"exclusive{key.title()}", math.inf)) for key in ("minimum", "maximum"))
    ends = [f"{end:g}" for end in (low, high) if abs(end) <= GUARD]
    if set(ends) <= set(re.findall(r"\d+(?:\.\d+)?", schema["description"])):
        return ""
    if len(ends) == 2:
        opened, closed = "(" if "exclusiveMinimum" in schema else "[", ")" if "exclusiveMaximum" in schema else "]"
        return f" In {opened}{ends[0]}, {ends[1]}{closed}."
    if abs(low) > GUARD:
        return ""
    return f" Above {low:g}." if "exclusiveMinimum" in schema else f" At least {low:g}." if low > 1 else ""


def option_table(name: str) -> str:
    """The table under the heading ``name``: key, default, and what the option does."""
    rows = []
    for key, schema in options(name).items():
        default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "required"
        text = (schema["description"] + choices(schema) + bounds(schema)).replace("|", "\\|")
        rows.append(f"| `{key}` | {default} | {text} |\n")
    return OPTION_HEAD + "".join(rows)


def named(page: str) -> Iterator[str]:
    """The schemas and sections of a run that have a table on a page."""
    yield from (match["name"] for match in TABLE.finditer(read(page)))


def without_a_page() -> list[str]:
    """Hooks and methods with options that no other page has a table of."""
    elsewhere = {name for page in PAGES if page != REST for name in named(page)}
    kinds = ("methods/", "hooks/")
    return [n for kind in kinds for n in sorted(schemas()) if n.startswith(kind) and n not in elsewhere and options(n)]


def page_of_the_rest() -> str:
    elsewhere = [
        f"[`{name}`]({page.removeprefix('docs/')}#{name.replace('/', '')})"
        for page in PAGES
        if page != REST
        for name in named(page)
    ]
    parts = [f"## `{name}`\n\n{schema_of(name)['description']}\n\n{option_table(name)}" for name in without_a_page()]
    return "\n".join([REST_TEXT.format(elsewhere=", ".join(elsewhere)), *parts])


def made(page: str) -> str:
    """The page with all that is made of it, made anew."""
    if page == REST:
        return page_of_the_rest()
    text = TABLE.sub(lambda match: match["above"] + option_table(match["name"]), read(page))
    if page == KEYS_PAGE:
        return with_table_of_keys(text)
    return with_table_of_hooks(text) if ROOT / page == PAGE else text


if __name__ == "__main__":
    for page in sorted({*PAGES, REST}, key=lambda page: page == REST):
        (ROOT / page).write_text(made(page), encoding="utf-8")

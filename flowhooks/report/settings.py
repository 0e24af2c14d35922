"""Compare the settings of runs with the defaults and with each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flowhooks.documents.privacy import without_local_paths
from flowhooks.documents.schemas import schemas
from flowhooks.documents.validation import with_defaults
from flowhooks.report.record import RunRecord

#: A key without a default.
NONE = object()
_SECTIONS = ("model", "adapter", "training", "validation", "logging", "push")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Holds one key of a run.

    Args:
        path: such as ``training.learning_rate``.
        value: as JSON on one line, absolute paths cut to their last part.
        default: the same of its default; None where it has none.
    """

    path: str
    value: str
    default: str | None

    @property
    def differs(self) -> bool:
        return self.value != self.default


def settings(record: RunRecord) -> list[Setting]:
    """Return every key of a run, in the order of its sections."""
    document = record.document
    found: list[Setting] = []
    for name in _SECTIONS:
        section, defaults = document.get(name), _defaults_of(name)
        if name == "adapter" and isinstance(section, dict):
            # A run writes the rank where no alpha was given.
            defaults = {**defaults, "alpha": section.get("rank")}
        found += _compared(name, section, defaults)
    hooks = document.get("hooks")
    seen: dict[str, int] = {}
    for block in hooks if isinstance(hooks, list) else ():
        if not isinstance(block, dict):
            continue
        kind = str(block.get("type"))
        seen[kind] = seen.get(kind, 0) + 1
        place = f"hooks.{kind}" + (f" ({seen[kind]})" if seen[kind] > 1 else "")
        held = {key: value for key, value in block.items() if key != "type"}
        found += _compared(place, held, _hook_defaults(kind))
        if not held:
            found.append(Setting(path=place, value="{}", default=None))
    found += list(_data(document.get("data")))
    for name in ("output_dir", "cache_dir"):
        if name in document:
            found.append(Setting(path=name, value=_text(document[name]), default="null"))
    return found


def differing(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return (path, the value in each run) of the keys that are not alike in all runs; the runs' folders aside."""
    found = [{each.path: each.value for each in settings(record)} for record in records]
    paths = dict.fromkeys(path for each in found for path in each)
    rows = [(path, [each.get(path, "not set") for each in found]) for path in paths if path != "output_dir"]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def _compared(place: str, value: Any, defaults: Any) -> Iterator[Setting]:
    standing = dict(_leaves(defaults, place)) if defaults is not NONE else {}
    for path, leaf in _leaves(value, place):
        default = standing.get(path, NONE)
        yield Setting(path=path, value=_text(leaf), default=None if default is NONE else _text(default))


def _data(data: Any) -> Iterator[Setting]:
    blocks = data.get("datasets") if isinstance(data, dict) else None
    for number, block in enumerate(blocks if isinstance(blocks, list) else ()):
        if isinstance(block, dict):
            place = f"data.{block.get('id', number)}"
            known = {name: part["default"] for name, part in _block_schema().items() if "default" in part}
            yield from _compared(place, {key: value for key, value in block.items() if key != "id"}, known)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}")
    else:
        yield place, value


@cache
def _run_defaults() -> Mapping[str, Any]:
    document = {"model": {"pretrained_model_name_or_path": ""}, "adapter": {}, "hooks": []}
    found: dict[str, Any] = with_defaults(document, "run")
    del found["model"]["pretrained_model_name_or_path"]
    return found


def _defaults_of(section: str) -> Any:
    return _run_defaults().get(section, NONE)


@cache
def _hook_defaults(kind: str) -> Any:
    name = f"hooks/{kind}"
    return with_defaults({}, name) if name in schemas() else NONE


@cache
def _block_schema() -> Mapping[str, Any]:
    found = schemas()["dataloader"]
    for part in (found, *found.get("$defs", {}).values(), found.get("items", {})):
        if isinstance(part, dict) and "instance_data_dir" in part.get("properties", {}):
            return dict(part["properties"])
    return {}


def _text(value: Any) -> str:
    return json.dumps(without_local_paths(value), ensure_ascii=False)

"""The pages say what the code does: hooks, options and their defaults, JSON, commands, links, Python."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import flowhooks
from flowhooks import cli
from flowhooks.checks.planning import forwards, plan_run
from flowhooks.config import load_datasets, resolve_reward, resolve_run
from flowhooks.documents.schemas import schemas
from flowhooks.pairs.degradations import KINDS
from flowhooks.rewards.registry import REWARDS
from tests.docs import pages, tables
from tests.docs.pages import PAGES, ROOT
from tests.docs.walk import real_calls
from tests.families import tiny
from tests.flow_map.saved import flow_map

WITH_JSON = [page for page in PAGES if pages.blocks(page, "json")]
#: Pages that tests/docs/test_walk.py follows from their first line to their last.
WALKED = [f"docs/{name}.md" for name in ("first_lora", "first_preference", "few_steps")]
WITH_PYTHON = [page for page in PAGES if pages.blocks(page, "python") and page not in ("README.md", *WALKED)]
TABLES = [(page, name) for page in PAGES for name in tables.named(page)]


def test_what_anyflow_costs_is_what_explain_counts() -> None:
    rows = re.findall(r"^\| `(\{.*\})` \| (\d+) \|", pages.read("docs/anyflow.md"), re.MULTILINE)
    modes = schemas()["methods/anyflow"]["properties"]["target_mode"]["enum"]
    assert {json.loads(block)["target_mode"] for block, _ in rows} == set(modes)
    for block, count in rows:
        document = {"method": {"anyflow": json.loads(block)}, "training": {"use_ema": True}}
        run = resolve_run(document, Path("run.json"))
        assert forwards(run, plan_run(run, {"data:image"})) == int(count), block


@pytest.mark.parametrize("page", sorted({tables.REST, "docs/hooks.md", *(page for page, _ in TABLES)}))
def test_tables_of_hooks_and_options_are_those_of_specs_and_schemas(page: str) -> None:
    """``make generated`` writes them anew."""
    assert tables.made(page) == pages.read(page)


def test_everything_with_options_has_one_table() -> None:
    sections = {"model", "adapter", "training", "validation", "dataset"}
    specs = {name for name in schemas() if name.startswith(("hooks/", "methods/", "rewards/")) and tables.options(name)}
    assert sorted(name for _, name in TABLES) == sorted(sections | specs)


@pytest.mark.parametrize(
    ("schema", "more"),
    [
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 0.5}, " In [0, 0.5)."),
        ({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1_000_000}, " Above 0."),
        ({"type": "integer", "minimum": 2, "maximum": 10_000}, " At least 2."),
        ({"type": "integer", "minimum": 0, "maximum": 10_000}, ""),
        ({"type": "number", "minimum": -1_000_000, "maximum": 1_000_000}, ""),
        ({"type": "integer", "minimum": 1, "maximum": 3, "description": "From 1 to 3."}, ""),
        ({"type": "string", "enum": ["a", "b", None]}, " One of `a`, `b`."),
        ({"type": "string", "enum": ["a", "b"], "description": "`a` adds, `b` takes away."}, ""),
        ({"type": "string", "enum": list("abcdefghi")}, ""),
    ],
)
def test_a_row_says_the_range_and_the_choices_that_its_text_leaves_out(schema: dict, more: str) -> None:
    schema = {"description": "A text.", **schema}
    assert tables.choices(schema) + tables.bounds(schema) == more


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_has_a_row_and_a_table(name: str) -> None:
    rows = [line for line in pages.read("docs/rewards.md").splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    assert ("docs/rewards.md", f"rewards/{name}") in TABLES


def test_every_degradation_has_a_row_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| `([\d.]+)` \|", pages.read("docs/data.md"), re.MULTILINE)
    assert rows == [(name, f"{kind.default:g}") for name, kind in KINDS.items()]


@pytest.mark.parametrize("page", WITH_JSON)
def test_json_is_valid(page: str) -> None:
    for text in pages.blocks(page, "json"):
        document = json.loads(text)
        if page == "docs/rewards.md":
            assert [resolve_reward(block, "$") for block in document]
            continue
        if isinstance(document, list) or "datasets" in document:
            assert "data:image" in load_datasets(document, ROOT / "docs").provides
            continue
        if not (ROOT / str(document.get("data"))).is_file():
            document.pop("data", None)
        run = resolve_run(document, ROOT / "run.json")
        assert run.hooks or run.model["pretrained_model_name_or_path"]


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    dead = []
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", pages.read(page)):
        target = (ROOT / page).parent / link if link else ROOT / page
        if not target.exists() or (anchor and anchor not in pages.anchors(target)):
            dead.append(f"{link}#{anchor}" if anchor else link)
    assert not dead


def test_every_page_can_be_reached_from_the_readme() -> None:
    """By a link of its own, or, for a page that a command makes, by one from the page it belongs to."""
    linked = set(re.findall(r"\]\((docs/[\w/]+\.md)", pages.read("README.md")))
    assert len(linked) > 5
    linked |= {f"docs/{link}" for page in linked for link in re.findall(r"\]\(([\w/]+\.md)", pages.read(page))}
    assert {page for page in PAGES if page.startswith("docs/")} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    known = {command.NAME for command in cli.COMMANDS}
    assert pages.named_commands(page) <= known
    for line in pages.commands(page):
        cli.parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_as_it_stands(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines that they load are tiny ones of the same class."""
    monkeypatch.chdir(tmp_path)
    real_calls(monkeypatch)
    text = "\n".join(pages.blocks(page, "python"))
    if "runs/my-flow-map" in text:
        shutil.copytree(flow_map("sd3")[0], tmp_path / "runs" / "my-flow-map")
    for folder in re.findall(r'load_lora_weights\("([^"]+)"', text):
        with flowhooks.attach(tiny("sd3"), {"adapter": {"type": "lora", "rank": 4}}) as session:
            session.adapter.save(Path(folder), {})
    exec(compile(text, str(ROOT / page), "exec"), {"__name__": "docs"})  # our own page
    assert any(tmp_path.iterdir()), "each of these examples writes something"


def test_the_readmes_loop_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the README's own run file, at the size of a tiny pipeline."""
    monkeypatch.chdir(tmp_path)
    document = json.loads(pages.blocks("README.md", "json")[0])
    blocks = json.loads(pages.blocks("docs/data.md", "json")[0])
    Path(document["data"]).write_text(json.dumps(blocks), encoding="utf-8")
    document["model"]["pipeline_arguments"] = {"max_sequence_length": 8}
    Path("my_run.json").write_text(json.dumps(document), encoding="utf-8")
    pipe = tiny("sd3")
    latents = torch.randn(2, 4, 8, 8)
    with flowhooks.attach(pipe, "my_run.json") as session:
        condition = session.model.encode_prompts(["one", "two"])
    batch = flowhooks.Batch(
        clean=latents, rejected=latents + 1, mask=torch.ones(2, 1, 8, 8), condition=condition, files=("a", "b")
    )
    (text,) = pages.blocks("README.md", "python")
    exec(
        compile(text, "README.md", "exec"),
        {"flowhooks": flowhooks, "torch": torch, "pipe": pipe, "my_batches": [batch]},
    )
    pipe.load_lora_weights("my_lora")

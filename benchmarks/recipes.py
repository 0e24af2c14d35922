"""What the recipes of released models need on a card: ``python -m benchmarks.recipes``.

Without arguments it writes the tables of ``docs/recipes.md`` and ``docs/cards.md`` from what was counted before, in
``docs/evidence/cards.json``. With ``--count`` it counts first, by the plan of memory, from the released configurations:
every recipe as it is written, and under the changes of :data:`CHANGES` until one fits the smallest card. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.released_models import DEPTHS, MODELS, Released, depth_of, write_released
from flowhooks.checks import examine
from flowhooks.config import load_run
from flowhooks.memory.plan import NotCounted, changed, full_network, plan_memory
from flowhooks.memory.report import GIB, Changes, on_card, weights_before

ROOT = Path(__file__).resolve().parents[1]
COUNTED = ROOT / "docs/evidence/cards.json"
RECIPES, CARDS = ROOT / "docs/recipes.md", ROOT / "docs/cards.md"
#: What is tried on a recipe, from what costs least of a step's time, and how the tables call it.
CHANGES: Mapping[str, Changes] = {
    "as it is": (),
    "`int8`": (("model.quantization", "int8"),),
    "`nf4`": (("model.quantization", "nf4"),),
    "blocks on the host": (("model.offload", "blocks"),),
}
#: GiB of the cards that the tables are about.
SIZES = (12, 16, 24, 32, 48, 80)
#: Methods whose recipes are counted under changes; the others are counted as they are.
TRIED = ("sft", "flow_dpo")
#: How many equal blocks of a list are counted. With every block on the host, two are on the card at a time.
FEW = 3
_LONGEST = 121
#: Recipe -> date and card of a run, where there was one.
MEASURED: Mapping[str, str] = {}


def recipes() -> list[Path]:
    """The recipes of released models; those of the digits are the tests' and the evidence's."""
    return [path for path in sorted((ROOT / "examples").glob("*/*.json")) if not path.stem.startswith("digits")]


def model_of(recipe: Path) -> str:
    """The key of the model in :data:`MODELS` that a recipe is for."""
    found = [name for name in MODELS if recipe.stem == name or recipe.stem.startswith(f"{name}_")]
    if not found:
        raise KeyError(f"{recipe}: there is no released model of this name in benchmarks/released_models.py")
    return max(found, key=len)


def write_data(folder: Path) -> None:
    """The folders that recipes name, each with one sample as large as the recipes want it."""
    for shade, name in enumerate(("images", "win", "lose", "edited", "worse", "source")):
        _write(folder / "data" / name, Image.new("RGB", (1024, 1024), (40 * shade, 80, 90)), "png")
    height, width = (max(model.size[n] for model in MODELS.values() if model.size[2] > 1) for n in (0, 1))
    frames = [Image.new("P", (width, height)) for _ in range(_LONGEST)]
    for number, frame in enumerate(frames):
        frame.putpixel((number, 0), 9)
    _write(folder / "data/videos", frames[0], "gif", save_all=True, append_images=frames[1:])
    for name in ("win_videos", "lose_videos"):
        shutil.copytree(folder / "data/videos", folder / "data" / name)


def _write(folder: Path, image: Image.Image, suffix: str, **options: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"0001.{suffix}", **options)
    (folder / "0001.txt").write_text("a photo", encoding="utf-8")


def overrides(folder: Path) -> list[str]:
    """What makes a recipe a run of this folder of a released model."""
    return [f"model.pretrained_model_name_or_path={folder}", f"cache_dir={folder.parent / 'cache'}"]


def counted(recipe: Path, place: Path) -> Iterator[tuple[str, float | str]]:
    """(change, GiB on a card) of a recipe, or why it is not counted. Its data is in ``place``.

    Equal blocks add the same, so :data:`FEW` of each list of them are counted, and their number is made up for.
    """
    name = model_of(recipe)
    model = MODELS[name]
    depths = {key: depth for key in DEPTHS[model.tiny] if (depth := depth_of(model, key)) > FEW}
    few = dict.fromkeys(depths, FEW)
    folder = _written(model, place / "models" / name, few)
    run = load_run(shutil.copy(recipe, place / "run.json"), overrides(folder), complete=True)
    plan = plan_memory(run, examine(run).audit)
    deeper = {}
    for key in few:
        part = _written(model, place / "models" / f"{name}-{key}", {**few, key: FEW + 1}) / plan.model.component
        kind = json.loads((part / "config.json").read_text(encoding="utf-8"))["_class_name"]
        deeper[key] = replace(plan, network=full_network(part, kind))
    for name, changes in CHANGES.items():
        tried = changed(run, changes)
        try:
            least = plan.needs(tried).peak
            blocks = sum((depths[key] - FEW) * (other.needs(tried).peak - least) for key, other in deeper.items())
            found = round(on_card(max(least + blocks, *weights_before(plan, tried).values())) / GIB, 1)
        except NotCounted as error:
            yield name, str(error).replace(str(place), "")
            return
        yield name, found
        if found <= min(SIZES) or recipe.parent.name not in TRIED:
            return


def _written(model: Released, folder: Path, depths: Mapping[str, int]) -> Path:
    return folder if folder.is_dir() else write_released(model, folder, depths)


def count(only: str | None) -> None:
    """Count every recipe, or those whose path has these words, and keep what was found."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        write_data(place)
        for recipe in recipes():
            name = f"{recipe.parent.name}/{recipe.stem}"
            if only is not None and only not in name:
                continue
            try:
                found = dict(counted(recipe, place))
            except NotCounted as error:
                found = {"as it is": str(error).replace(str(place), "")}
            print(name, found, flush=True)
            known = json.loads(COUNTED.read_text(encoding="utf-8")) if COUNTED.is_file() else {}
            known = {each: known.get(each) for each in _names() if each in known} | {name: found}
            COUNTED.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")


def _names() -> list[str]:
    return [f"{recipe.parent.name}/{recipe.stem}" for recipe in recipes()]


def _shown(found: float | str | None) -> str:
    return f"{found:.1f}" if isinstance(found, float) else "" if found is None else "not counted"


def _released(name: str) -> Released:
    return MODELS[model_of(Path(f"{name}.json"))]


def table_of_recipes(known: Mapping[str, Mapping[str, float | str]]) -> str:
    """Recipe, model, size, GiB on a card, and whether it was run."""
    lines = ["| recipe | model | trained at | GiB on a card | measured |", "|---|---|---|---|---|"]
    for name in _names():
        run = json.loads((ROOT / f"examples/{name}.json").read_text(encoding="utf-8"))
        hub = run["model"]["pretrained_model_name_or_path"]
        height, width, frames = _released(name).size
        size = f"{width}x{height}" + (f", {frames} frames" if frames > 1 else "")
        found = known.get(name, {}).get("as it is")
        lines.append(
            f"| [`{name}`](../examples/{name}.json) | [{hub}](https://huggingface.co/{hub}) | {size} | "
            f"{_shown(found) or 'not counted'} | {MEASURED.get(name, 'not run')} |"
        )
    return "\n".join(lines) + "\n"


def tables_of_cards(known: Mapping[str, Mapping[str, float | str]]) -> Mapping[str, str]:
    """Name -> table: what each change leaves on the card, and the first change under which a recipe fits a card."""
    tried = {name: found for name, found in known.items() if name.split("/")[0] in TRIED}
    needs = ["| recipe | " + " | ".join(CHANGES) + " |", "|---|" + "---|" * len(CHANGES)]
    fits = ["| recipe | " + " | ".join(f"{size} GiB" for size in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    for name, found in tried.items():
        needs.append(f"| `{name}` | " + " | ".join(_shown(found.get(change)) for change in CHANGES) + " |")
        fits.append(f"| `{name}` | " + " | ".join(_first(found, size) for size in SIZES) + " |")
    return {"fits": "\n".join(fits) + "\n", "needs": "\n".join(needs) + "\n"}


def _first(found: Mapping[str, float | str], card: int) -> str:
    for change in CHANGES:
        if isinstance(number := found.get(change), float) and number <= card:
            return change
    return "no" if any(isinstance(number, float) for number in found.values()) else "not counted"


def table_of_sources() -> str:
    """Model, and where its configuration was read."""
    lines = ["| model | billions of weights | its configuration was read in |", "|---|---|---|"]
    lines += [f"| {model.hub} | {model.billions:g} | {model.source} |" for model in MODELS.values()]
    return "\n".join(lines) + "\n"


def made(page: Path) -> str:
    """The page with its tables made anew; each stands between two remarks that name it."""
    known = json.loads(COUNTED.read_text(encoding="utf-8"))
    tables = {**tables_of_cards(known), "recipes": table_of_recipes(known), "sources": table_of_sources()}
    return re.sub(
        r"(<!-- table: (\w+) -->\n\n)(?:(?:\|.*\n)+\n)?",
        lambda match: f"{match[1]}{tables[match[2]]}\n",
        page.read_text(encoding="utf-8"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", action="store_true", help="count anew, which takes minutes")
    parser.add_argument("--only", metavar="WORDS", help="count the recipes whose names have these words")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.count:
        count(args.only)
    for page in (RECIPES, CARDS):
        page.write_text(made(page), encoding="utf-8")


if __name__ == "__main__":
    main()

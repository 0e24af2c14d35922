"""Which program reads which file of which family: ``python -m tests.naming.page`` writes ``docs/files.md``.

What runs here is done anew: Diffusers and LyCORIS load the files, and flowhooks reads them back. What was seen in other
programs is carried over from ``flowhooks/naming/names.json``, with its day.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lycoris import create_lycoris_from_weights
from safetensors.torch import load_file

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.errors import AdapterError
from flowhooks.export.dialects import Exported, export_adapter, pieces_of
from flowhooks.naming import Family, families, tool_version, verified_on
from tests.naming.rows import ROWS, denoiser, linears, network
from tests.naming.sources import Source, error, in_diffusers, write, write_kind

PAGE = Path("docs/files.md")
#: What ComfyUI made of files, where somebody had a checkout of it.
RESULT = Path(__file__).parents[1] / "comfyui" / "result.json"
#: What the page says of DoRA; numbers are from tests/export/test_dora.py and a run of ComfyUI's own code.
DORA = Path(__file__).with_name("dora.md")
EXACT = 2e-7
COMFYUI, MUSUBI, SCRIPTS = "ComfyUI", "musubi-tuner", "sd-scripts"
START = """# Files for other programs

`python -m tests.naming.page` writes this page; never by hand. How to export says
[what a run writes](outputs.md#load-a-lora-elsewhere).

A number is the layers in which the program makes the trained change, of all Linear layers of a tiny network of the
class, by weights: real checkpoints and images were not compared. **here** was run by that command, with Diffusers
{diffusers} and LyCORIS {lycoris}. The other columns were seen on {day}, in the programs' own code: ComfyUI {comfyui};
musubi-tuner, {musubi}; sd-scripts, {scripts}. They are carried over. Those of **ComfyUI {run}** were made on {run_day}
by `python -m tests.comfyui.files --comfyui DIR --write`, which runs the code of the checkout in DIR: where a count is
full, it dropped no key. `-` means that the program has no such network, or that nobody has tried.

## LoRA

"""
COLUMNS = (
    "family",
    "class",
    "`portable`: its keys",
    "right in",
    "`diffusers` in Diffusers, here",
    "`portable` in Diffusers, here",
    "`comfyui` in ComfyUI",
    "`comfyui`, `portable`, `kohya` in ComfyUI {run}",
    "`musubi` in musubi-tuner",
    "`kohya` in sd-scripts",
    "read back by flowhooks, here",
)
KINDS = """
The portable file of a LoRA on fewer layers can be right in more programs: `export` says in which.

## LoHa, LoKr and LoCon

"""
KIND_COLUMNS = (
    "family",
    "LoHa and LoCon: `comfyui`, `kohya` in ComfyUI",
    "LoKr: `comfyui`, `kohya` in ComfyUI",
    "LoHa, LoCon, LoKr: `comfyui` in ComfyUI {run}",
    "any kind: `lycoris` in LyCORIS, here",
    "`lycoris` in ComfyUI",
    "LoHa, LoCon, LoKr: `lycoris` in ComfyUI {run}",
)
END = """
* **Diffusers** reads LoRA only: `--as-lora RANK` makes the nearest one.
* **LoKr** of layers that the original network has in one, such as query, key and value, has no counterpart there:
  `--as-lora RANK`.
* **LoHa** of such layers is stacked factor by factor, exactly, into one LoHa of the original layer; flowhooks reads it
  back, and ComfyUI {run} makes the trained change of it.
* LoHa, LoKr and LoCon were not tried in ComfyUI with ernie-image, cosmos25, longcat-image and ideogram4: their names
  are those of the LoRA.
* **ComfyUI {run}** was tried with fewer blocks of Z-Image, and with LTX-2 without the gates of later releases, which it
  does not have. Of the files of `--format diffusers` it takes fewer layers of FLUX.2 than later versions.
* **Two experts** (Wan 2.2) are two files.
* **Names from source**: those of {source} were read in ComfyUI's code, and it was not run with them.
* A family with no row is written for Diffusers and LyCORIS alone.
"""


def count(found: int, layers: int) -> str:
    return f"{found}/{layers}"


def right(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], most: float = EXACT) -> int:
    return sum(layer in found and error(found[layer], change) <= most for layer, change in wanted.items())


def taken(written: Exported, tool: str, layers: int) -> str:
    lost = [each.lost for each in written.readings if each.tool == tool]
    return count(layers - len(lost[0]), layers) if lost else "-"


def exported(source: Source, dialect: str, folder: Path, **options: Any) -> Exported | None:
    try:
        return export_adapter(source.file, dialect, folder / f"{dialect}-{len(options)}.safetensors", **options)
    except AdapterError:
        return None


def lora_row(family: Family, name: str, folder: Path) -> str:
    layers = linears(name)
    source, total = write(folder, name, list(layers)), len(layers)
    files = {
        dialect: exported(source, dialect, folder, leave_out=True)
        for dialect in ("diffusers", "comfyui", "kohya", "musubi")
    }
    files["portable"] = exported(source, "portable", folder) or exported(source, "portable", folder, leave_out=True)
    portable = files["portable"]
    assert portable is not None
    keys = min(load_file(portable.file)).split(".lora_")[0]
    back = []
    for dialect, written in files.items():
        if written is not None:
            read = pieces_of(read_adapter(written.file, network=network(name)), network(name))
            found = right({piece.name: piece.change() for piece in read}, source.changes)
            back.append(f"{dialect} {count(found, total)}")
    in_them = [
        count(right(in_diffusers(name, files["diffusers"].file)[0], source.changes), total),
        count(right(loaded(name, portable), source.changes), total),
    ]
    outside = [
        "-" if files[dialect] is None else f"{count(total - len(files[dialect].left_out), total)}"
        for dialect in ("comfyui", "musubi")
    ]
    scripts = files["kohya"] if SCRIPTS in family.reads["lora_unet.native"] else None
    if not family.verified:
        outside[0] += ", not tried"
    outside.append("-" if scripts is None else count(total - len(scripts.left_out), total))
    cells = [
        name,
        f"`{network(name).kind}`",
        f"`{keys}`...",
        ", ".join(portable.right_in),
        *in_them,
        outside[0],
        in_comfyui(name, "comfyui", "portable", "kohya"),
        *outside[1:],
        ", ".join(back),
    ]
    return "| " + " | ".join(cells) + " |"


def loaded(name: str, written: Exported) -> dict[str, torch.Tensor]:
    """The changes of a file in Diffusers; none where it refuses it."""
    try:
        return in_diffusers(name, written.file)[0]
    except Exception:
        return {}


def kinds_row(family: Family, name: str, folder: Path) -> str:
    bare, total = denoiser(name), len(linears(name))
    cells = [name]
    for kind in ("loha", "lokr"):
        written = exported(write_kind(folder, bare, kind), "comfyui", folder, leave_out=True, as_lora=None)
        cells.append("only with `--as-lora`" if written is None else count(total - len(written.left_out), total))
        if written is not None:
            written.file.unlink()
    lycoris = export_adapter(write_kind(folder, bare, "loha").file, "lycoris", folder / "lycoris.safetensors")
    built, _ = create_lycoris_from_weights(1.0, str(lycoris.file), deepcopy(bare))
    wanted = {p.name.replace(".", "_"): p.change() for p in pieces_of(read_adapter(lycoris.file), network(name))}
    made: dict[str, torch.Tensor] = {
        lora.lora_name.removeprefix("lycoris_"): lora.get_weight(lora.org_module[0].weight.shape).detach().double()
        for lora in built.loras
    }
    cells.append(in_comfyui(name, *(f"{kind} as comfyui" for kind in ("loha", "locon", "lokr"))))
    # Its products of two matrices are in single precision.
    cells += [count(right(made, wanted, 1e-6), total), taken(lycoris, COMFYUI, total)]
    cells.append(in_comfyui(name, *(f"{kind} as lycoris" for kind in ("loha", "locon", "lokr"))))
    return "| " + " | ".join(cells) + " |"


@cache
def ran() -> dict[str, Any]:
    """What ``python -m tests.comfyui.files --write`` found."""
    return json.loads(RESULT.read_text(encoding="utf-8"))


def in_comfyui(name: str, *files: str) -> str:
    """What ComfyUI made of files, by the command that runs its code."""
    found = ran()["layers"].get(name)
    return "-" if found is None else ", ".join(found.get(file, "-") for file in files)


def rows(make: Any) -> Iterator[str]:
    for name, family in families().items():
        for each in ROWS[name]:
            with tempfile.TemporaryDirectory() as folder:
                yield make(family, each, Path(folder))


def table(columns: tuple[str, ...], make: Any) -> str:
    columns = tuple(column.replace("{run}", ran()["version"]) for column in columns)
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "".join(f"{line}\n" for line in [*head, *rows(make)])


def main() -> None:
    tools = {"diffusers": "Diffusers", "lycoris": "LyCORIS", "comfyui": COMFYUI, "musubi": MUSUBI, "scripts": SCRIPTS}
    versions = {key: tool_version(tool) for key, tool in tools.items()}
    source = ", ".join(family.name for family in families().values() if not family.verified)
    known = {**versions, "day": verified_on(), "run": ran()["version"], "run_day": ran()["day"]}
    start, end = START.format(**known), END.format(source=source, run=ran()["version"])
    end += DORA.read_text(encoding="utf-8").format(**versions)
    PAGE.write_text(start + table(COLUMNS, lora_row) + KINDS + table(KIND_COLUMNS, kinds_row) + end, encoding="utf-8")


if __name__ == "__main__":
    main()

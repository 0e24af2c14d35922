"""What reads input that may be damaged, each with a sound input to start from."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open

from benchmarks.fuzz_inputs import VALUES, bent, broken, safetensors_bent, written
from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.adapter_file import write_tensors
from flowhooks.adapters.fit import adapter_below, check_file
from flowhooks.adapters.names import LORA_FILE, PEFT_CONFIG_FILE, PEFT_FILE, PEFT_PREFIX
from flowhooks.cli import main
from flowhooks.config import load_datasets
from flowhooks.data import audit
from flowhooks.data.assets import FileAsset
from flowhooks.data.inspection import inspect_image
from flowhooks.data.shards import entry_key, shard_name
from flowhooks.data.store import Entries, Store
from flowhooks.errors import FlowhooksError
from flowhooks.manifest import MANIFEST as CHECKPOINT_MANIFEST
from flowhooks.manifest import MODULES
from flowhooks.manifest import RUN as RUN_FILE
from flowhooks.modules_file import MANIFEST, read_manifest
from flowhooks.pairs.scores import read_scores
from flowhooks.printing import printable
from flowhooks.restore import read_run
from flowhooks.sampling.outputs import prompts_of
from flowhooks.testing import tiny
from flowhooks.train.checkpoint import Checkpoints, read, verify
from flowhooks.train.metrics import HISTORY, History

TARGETS = (
    "run", "set", "data", "index", "network", "vae", "scheduler", "prompts", "jsonl table", "csv table", "scores",
    "picture", "lora", "lycoris", "adapter_config", "modules", "finished run", "manifest", "state", "shard", "metrics",
)  # fmt: skip

RUN: dict[str, Any] = json.loads("""{
    "model": {"pretrained_model_name_or_path": "model", "pipeline_arguments": {"max_sequence_length": 77}},
    "adapter": {"type": "lora", "rank": 4, "alpha": 4, "dropout": 0.0, "target_modules": ["to_q"], "init_from": null},
    "data": [
        {"id": "win", "instance_data_dir": "win", "conditioning_data": ["lose"], "caption_template": "a {caption}"},
        {"id": "lose", "instance_data_dir": "lose", "dataset_type": "conditioning",
         "conditioning_type": "reference_strict"}
    ],
    "method": {"flow_dpo": {"beta": 1.0, "auto_beta": true, "norm_type": "mean", "anchor_alpha": 0.1}},
    "hooks": [{"type": "timestep_schedule", "flow_custom_timesteps": [801, 338]}],
    "training": {"max_train_steps": 4, "learning_rate": 1e-4, "optimizer_args": {"weight_decay": 0}},
    "validation": {"prompts": ["a"], "num_inference_steps": [2, 4]},
    "logging": {"trackers": []},
    "output_dir": "out",
    "cache_dir": "cache"
}""")
METHODS: list[dict[str, Any]] = json.loads("""[
    {"anyflow": {}}, {"self_flow": {}}, {"sft": {}},
    {"flow_grpo": {"prompts": ["a"], "rewards": [{"type": "classifier", "model": "x"}]}},
    {"online_dpo": {"prompts": ["a"], "rewards": [{"type": "classifier", "model": "x"}], "min_gap": 0.1}},
    {"flow_opd": {"teachers": {"a": "lora"}, "prompts": ["a"]}},
    {"adjoint_matching": {"prompts": ["a"], "rewards": [{"type": "aesthetic", "head": "x"}]}}
]""")
OTHER_TRAINER: list[dict[str, Any]] = json.loads("""[
    {"id": "win", "type": "local", "instance_data_dir": "win", "crop": true, "crop_aspect": "square",
     "crop_style": "center", "resolution": 16, "resolution_type": "pixel_area", "resolution_multiple": 16,
     "minimum_image_size": 8, "maximum_image_size": 32, "target_downsample_size": 16, "cache_dir_vae": "cache"},
    {"id": "text", "dataset_type": "text_embeds", "default": true, "cache_dir": "cache"}
]""")
PEFT: dict[str, Any] = json.loads("""{
    "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"], "rank_pattern": {}, "alpha_pattern": {},
    "use_rslora": false, "lora_dropout": 0.0, "bias": "none", "layers_to_transform": null
}""")
MODULE_MANIFEST: dict[str, Any] = json.loads("""{
    "format": 1, "network": "SD3Transformer2DModel", "component": "transformer", "pipeline_arguments": {},
    "size": {"height": 16}, "hooks": [{"type": "time_conditioning"}]
}""")
KEY = "pretrained_model_name_or_path"
PLACES = (
    *("training.seed", "training.learning_rate", "hooks[0].flow_custom_timesteps", "method.flow_dpo.beta", "data"),
    *("data[0].id", "output_dir", "hooks", "model", "a", "hooks[99999999999999999999999]", "hooks[0][0]", "$", ""),
    *("data[0].instance_data_dir", "training", "validation.prompts[0]", "adapter.init_from", "a." * 200 + "a"),
)


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        sound: inputs that are taken.
        damage: a damaged input.
        read: has it read; raises whatever comes of it.
    """

    sound: tuple[bytes, ...]
    damage: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]


def build(folder: Path) -> dict[str, Target]:
    """All targets, with what they need written below ``folder``, which becomes the working directory of commands."""
    pipe = tiny("sd3")
    for name in ("model", "other"):
        pipe.save_pretrained(folder / name)
    _write_data(folder)
    targets = {**_configurations(folder), **_pipelines(folder), **_texts(folder), **_pictures(folder)}
    targets |= {**_adapters(folder, pipe.transformer), **_states(folder)}
    assert tuple(targets) == TARGETS
    return targets


def _write_data(folder: Path) -> None:
    for name in ("win", "lose", "listed"):
        (folder / name).mkdir()
        for number in range(2):
            Image.new("RGB", (16, 16), (90 * number, 40, len(name))).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text("a square", encoding="utf-8")


def _file(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    def reading(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return reading


def _command(folder: Path, *argv: str) -> None:
    """A command ends with a documented code; the traceback of what it did not expect is raised."""
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["--debug", *argv])
    told = err.getvalue()
    if code not in (0, 2):
        raise RuntimeError(told[-4000:])
    if printable(told) != told:
        raise RuntimeError(f"moves the cursor: {told!r}")
    if code == 2:
        raise FlowhooksError(told)


def _configurations(folder: Path) -> dict[str, Target]:
    file, data = folder / "run.json", folder / "data.json"
    (folder / "plain.json").write_text(json.dumps(RUN), encoding="utf-8")
    named = {**RUN, "data": "data.json", "method": {"sft": {}}}
    (folder / "named.json").write_text(json.dumps(named), encoding="utf-8")
    sets = (RUN["data"], {"datasets": RUN["data"]}, OTHER_TRAINER)

    def run(draw: random.Random) -> bytes:
        given = deepcopy(RUN)
        if draw.random() < 0.5:
            given["method"] = draw.choice(METHODS)
        return written(bent(given, draw), draw)

    def override(draw: random.Random) -> bytes:
        value = draw.choice((written(draw.choice(VALUES), draw), b"[" * 5000, b"x"))
        text = draw.choice(PLACES).encode() + b"=" + value
        return text if draw.random() < 0.8 else broken(text, draw)

    def told(text: bytes) -> None:
        # As Python decodes arguments.
        _command(folder, "check", "plain.json", f"--set={text.decode('utf-8', 'surrogateescape')}")

    return {
        "run": Target((_json(RUN),), run, _file(file, partial(_command, folder, "check", "run.json"))),
        "set": Target((b"training.seed=3", b"method.flow_dpo.norm_type=mean"), override, told),
        "data": Target(
            tuple(_json(each) for each in sets),
            lambda draw: written(bent(draw.choice(sets), draw), draw),
            _file(data, partial(_command, folder, "check", "named.json")),
        ),
    }


def _pipelines(folder: Path) -> dict[str, Target]:
    (folder / "elsewhere.json").write_text(json.dumps({**RUN, "model": {KEY: "other"}}), encoding="utf-8")
    found = {}
    files = {
        "index": "model_index.json",
        "network": "transformer/config.json",
        "vae": "vae/config.json",
        "scheduler": "scheduler/scheduler_config.json",
    }
    for name, file in files.items():
        path = folder / "other" / file
        sound = json.loads(path.read_text(encoding="utf-8"))

        def read(data: bytes, path: Path = path, sound: Any = sound) -> None:
            try:
                path.write_bytes(data)
                _command(folder, "check", "elsewhere.json")
            finally:
                # It is one pipeline that both damage.
                path.write_bytes(_json(sound))

        def damage(draw: random.Random, sound: Any = sound) -> bytes:
            return written(bent(sound, draw), draw)

        found[name] = Target((_json(sound),), damage, read)
    return found


def _texts(folder: Path) -> dict[str, Target]:
    prompts, table, lines = folder / "prompts.jsonl", folder / "table.csv", folder / "listed" / "metadata.jsonl"
    scores = folder / "scores.csv"
    rows = [{"file_name": f"{i}.png", "text": "a square"} for i in range(2)]
    words = [{"prompt": "a", "label": 3}, {"prompt": "b"}]
    cells = b"file_name,text,rejected\nwin/0.png,a square,lose/0.png\nwin/1.png,a square,lose/1.png\n"
    scored = b"image,prompt,score\nwin/0.png,a,0.5\nwin/1.png,a,0.25\n"

    def json_lines(found: list[dict[str, Any]], draw: random.Random) -> bytes:
        return b"\n".join(written(bent(row, draw), draw) for row in found)

    def look(kind: str, name: str) -> object:
        return audit(load_datasets([{"id": "a", "type": kind, "instance_data_dir": name}], folder))

    return {
        "prompts": Target(
            (b"\n".join(map(_json, words)),),
            partial(json_lines, words),
            _file(prompts, lambda: prompts_of(str(prompts))),
        ),
        "jsonl table": Target(
            (b"\n".join(map(_json, rows)),),
            partial(json_lines, rows),
            _file(lines, partial(look, "imagefolder", "listed")),
        ),
        "csv table": Target((cells,), partial(broken, cells), _file(table, partial(look, "csv", table.name))),
        "scores": Target((scored,), partial(broken, scored), _file(scores, lambda: read_scores(scores))),
    }


def _pictures(folder: Path) -> dict[str, Target]:
    sound = []
    for kind in ("PNG RGB", "PNG P", "JPEG RGB", "WEBP RGB", "BMP RGB", "PNG I;16"):
        format, mode = kind.split()
        held = io.BytesIO()
        Image.new(mode, (16, 12), 3).save(held, format)
        sound.append(held.getvalue())
    file = folder / "picture.png"
    read = _file(file, lambda: inspect_image(FileAsset(file)))
    return {"picture": Target(tuple(sound), lambda draw: broken(draw.choice(sound), draw), read)}


def _adapters(folder: Path, network: Any) -> dict[str, Target]:
    found = {}
    for name, section in (("lora", {"type": "lora", "algo": None}), ("lycoris", {"type": "lycoris", "algo": "locon"})):
        whole = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "target_modules": ["to_q"], "init_from": None, **section}
        adapter = build_adapter(network, whole)
        file = adapter.save(folder / name, {})
        adapter.detach()
        found[name] = _tensors(file, partial(_attach, network, file))
    with safe_open(folder / "lora" / LORA_FILE, framework="pt") as handle:
        tensors = {PEFT_PREFIX + key.partition(".")[2]: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    file = write_tensors(folder / "peft" / PEFT_FILE, tensors, {})
    read = _file(file.with_name(PEFT_CONFIG_FILE), partial(_attach, network, file))
    found["adapter_config"] = Target((_json(PEFT),), lambda draw: written(bent(PEFT, draw), draw), read)
    return found


def _attach(network: Any, file: Path) -> None:
    check_file(file, None)
    adapter_below(file)
    load_adapter(network, file).detach()


def _states(folder: Path) -> dict[str, Target]:
    finished, history = folder / "finished" / RUN_FILE, folder / HISTORY
    modules = write_tensors(folder / MODULES, {"a.weight": torch.ones(2)}, {MANIFEST: json.dumps(MODULE_MANIFEST)})
    write_tensors(finished.with_name(LORA_FILE), {"transformer.a": torch.ones(1)}, {})
    kept = Checkpoints(folder / "kept", limit=None)
    state = {"step": 1, "list": [1, (2.0, None)], "weights": torch.ones(3), 3: "three"}
    first, second = (kept.save(step, {"adapter": state}, {"python": 1}, {"hooks": {}}) for step in (1, 2))
    paper = first / CHECKPOINT_MANIFEST
    listed = json.loads(paper.read_text(encoding="utf-8"))
    store, key = Store(folder / "shards"), entry_key({"file": "a"})
    claim = store.claim("latents", shard_name([key]), wait=True)
    assert claim is not None
    with claim:
        store.write(claim, "latents", {key: {"latents": torch.ones(2, 3)}}, {key: {}})

    def entries() -> None:
        places = store.find("latents", {key})
        if places:
            Entries({"latents": places}).read("latents", key)

    section = {"model": RUN["model"]}
    lines = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    return {
        "modules": _tensors(modules, partial(read_manifest, modules)),
        "finished run": Target(
            (_json(section),),
            lambda draw: written(bent(section, draw), draw),
            _file(finished, partial(read_run, finished.parent)),
        ),
        "manifest": Target(
            (_json(listed),), lambda draw: written(bent(listed, draw), draw), _file(paper, partial(verify, first))
        ),
        "state": _tensors(second / "adapter.safetensors", partial(read, second, "adapter")),
        "shard": _tensors(store.path("latents", shard_name([key])), entries),
        "metrics": Target((lines,), partial(broken, lines), _file(history, lambda: History(folder, 5))),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _tensors(file: Path, read: Callable[[], object]) -> Target:
    """A safetensors file that is there."""
    sound = file.read_bytes()
    return Target((sound,), partial(safetensors_bent, sound), _file(file, read))

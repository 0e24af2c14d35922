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

from benchmarks.fuzz_inputs import VALUES, bent, broken, safetensors_bent, written
from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.files import write_tensors
from flowhooks.adapters.fit import adapter_below, check_file
from flowhooks.adapters.names import PEFT_CONFIG_FILE
from flowhooks.cli import main
from flowhooks.config import load_datasets
from flowhooks.data.assets import FileAsset
from flowhooks.data.inspection import inspect_image
from flowhooks.data.pairing import survey
from flowhooks.data.shards import entry_key, shard_name
from flowhooks.data.store import Entries, Store
from flowhooks.modules_file import MANIFEST, MODULES, read_manifest
from flowhooks.pairs.scores import read_scores
from flowhooks.sampling.dataset import prompts_of
from flowhooks.sampling.restore import read_run
from flowhooks.testing import tiny
from flowhooks.train.checkpoint import Checkpoints, read, verify
from flowhooks.train.metrics import HISTORY, History

TARGETS = (
    "run", "set", "data", "prompts", "jsonl table", "csv table", "scores", "picture", "lora", "lycoris",
    "adapter_config", "modules", "finished run", "manifest", "state", "shard", "metrics",
)  # fmt: skip

RUN: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": "model", "dtype": "fp32", "pipeline_arguments": {"max_sequence_length": 77}},
    "adapter": {"type": "lora", "rank": 4, "alpha": 4, "dropout": 0.0, "target_modules": ["to_q"], "init_from": None},
    "data": [
        {"id": "win", "instance_data_dir": "win", "conditioning_data": ["lose"], "resolution": 16, "caption_template": "a {caption}"},
        {"id": "lose", "dataset_type": "conditioning", "conditioning_type": "reference_strict", "instance_data_dir": "lose"},
    ],
    "method": {"flow_dpo": {"beta": 1.0, "auto_beta": True, "norm_type": "mean", "anchor_alpha": 0.1}},
    "hooks": [{"type": "timestep_schedule", "flow_custom_timesteps": [801, 338]}],
    "training": {"max_train_steps": 4, "learning_rate": 1e-4, "train_batch_size": 1, "optimizer_args": {"weight_decay": 0}},
    "validation": {"prompts": ["a"], "num_inference_steps": [2, 4]},
    "logging": {"trackers": []},
    "output_dir": "out", "cache_dir": "cache",
}  # fmt: skip
METHODS: tuple[dict[str, Any], ...] = (
    {"anyflow": {}}, {"self_flow": {}}, {"sft": {}}, {"flow_grpo": {"prompts": ["a"], "rewards": [{"type": "classifier", "model": "x"}]}},
    {"flow_opd": {"teachers": {"a": "lora"}, "prompts": ["a"]}},
)  # fmt: skip
OTHER_TRAINER = [
    {"id": "win", "type": "local", "instance_data_dir": "win", "crop": True, "crop_aspect": "square", "crop_style": "center",
     "resolution": 16, "resolution_type": "pixel_area", "minimum_image_size": 8, "maximum_image_size": 32,
     "target_downsample_size": 16, "cache_dir_vae": "cache", "repeats": 1},
    {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache"},
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        damage: a damaged input.
        read: has it read; raises whatever comes of it.
    """

    damage: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]


def build(folder: Path) -> dict[str, Target]:
    """All targets, with what they need written below ``folder``, which becomes the working directory of commands."""
    _write_data(folder)
    targets = {**_configurations(folder), **_texts(folder), **_pictures(folder), **_adapters(folder), **_states(folder)}
    assert tuple(targets) == TARGETS
    return targets


def _write_data(folder: Path) -> None:
    for name in ("win", "lose"):
        (folder / name).mkdir()
        for number in range(2):
            Image.new("RGB", (16, 16), (90 * number, 40, len(name))).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text("a square", encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text("{}", encoding="utf-8")


def _file(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    def reading(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return reading


def _command(folder: Path, *argv: str) -> None:
    """A command ends with a documented code; the traceback of what it did not expect is raised."""
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["--debug", *argv])
    if code not in (0, 2):
        raise RuntimeError(err.getvalue()[-4000:])
    err.getvalue().encode()


def _configurations(folder: Path) -> dict[str, Target]:
    file, data = folder / "run.json", folder / "data.json"
    plain = folder / "plain.json"
    plain.write_text(json.dumps(RUN), encoding="utf-8")
    (folder / "named.json").write_text(
        json.dumps({**RUN, "data": "data.json", "method": {"sft": {}}}), encoding="utf-8"
    )

    def run(draw: random.Random) -> bytes:
        given = deepcopy(RUN)
        if draw.random() < 0.5:
            given["method"] = draw.choice(METHODS)
        return written(bent(given, draw), draw)

    def override(draw: random.Random) -> bytes:
        paths = ("training.seed", "training.learning_rate", "hooks[0].flow_custom_timesteps", "method.flow_dpo.beta", "data",
                 "data[0].id", "output_dir", "hooks", "model", "a", "a." * 200 + "a", "hooks[99999999999999999999999]",
                 "hooks[0][0]", "data[0].instance_data_dir", "validation.prompts[0]", "", "$", "training", "adapter.init_from")  # fmt: skip
        value = draw.choice((written(draw.choice(VALUES), draw), b"[" * 5000, b"x"))
        text = draw.choice(paths).encode() + b"=" + value
        return text if draw.random() < 0.8 else broken(text, draw)

    def told(data: bytes) -> None:
        # As Python decodes arguments; the system lets no zero byte through.
        _command(folder, "check", "plain.json", f"--set={data.decode('utf-8', 'surrogateescape')}")

    def datasets(draw: random.Random) -> bytes:
        return written(bent(draw.choice((RUN["data"], {"datasets": RUN["data"]}, OTHER_TRAINER)), draw), draw)

    return {
        "run": Target(run, _file(file, partial(_command, folder, "check", "run.json"))),
        "set": Target(override, told),
        "data": Target(datasets, _file(data, partial(_command, folder, "check", "named.json"))),
    }


def _texts(folder: Path) -> dict[str, Target]:
    prompts, table, lines = folder / "prompts.jsonl", folder / "table.csv", folder / "lines.jsonl"
    scores = folder / "scores.csv"
    rows = [{"file_name": f"win/{i}.png", "text": "a square", "rejected": f"lose/{i}.png"} for i in range(2)]
    cells = b"file_name,text,rejected\nwin/0.png,a square,lose/0.png\nwin/1.png,a square,lose/1.png\n"
    scored = b"image,score,prompt\nwin/0.png,0.5,a\nwin/1.png,0.25,a\n"

    def json_lines(found: list[dict[str, Any]], draw: random.Random) -> bytes:
        return b"\n".join(written(bent(row, draw), draw) for row in found)

    def look(name: str) -> object:
        block = {"id": "a", "type": "csv", "instance_data_dir": name, "rejected_column": "rejected"}
        return survey(load_datasets([block], folder))

    return {
        "prompts": Target(
            lambda draw: json_lines([{"prompt": "a", "label": 3}, {"prompt": "b"}], draw),
            _file(prompts, lambda: prompts_of(str(prompts))),
        ),
        "jsonl table": Target(partial(json_lines, rows), _file(lines, partial(look, lines.name))),
        "csv table": Target(partial(broken, cells), _file(table, partial(look, table.name))),
        "scores": Target(partial(broken, scored), _file(scores, lambda: read_scores(scores))),
    }


def _pictures(folder: Path) -> dict[str, Target]:
    sound = []
    for format, mode in (
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("PNG", "I;16"),
    ):
        held = io.BytesIO()
        Image.new(mode, (16, 12), 3).save(held, format)
        sound.append(held.getvalue())
    file = folder / "picture.png"
    return {
        "picture": Target(
            lambda draw: broken(draw.choice(sound), draw), _file(file, lambda: inspect_image(FileAsset(file)))
        )
    }


def _adapters(folder: Path) -> dict[str, Target]:
    network = tiny("sd3").transformer
    found = {}
    for name, section in (("lora", {"type": "lora", "algo": None}), ("lycoris", {"type": "lycoris", "algo": "locon"})):
        whole = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "target_modules": ["to_q"], "init_from": None, **section}
        adapter = build_adapter(network, whole)
        file = adapter.save(folder / name, {})
        adapter.detach()
        found[name] = Target(partial(safetensors_bent, file.read_bytes()), _file(file, partial(_attach, network, file)))
    peft = folder / "peft"
    tensors = {f"base_model.model.transformer_blocks.0.attn.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    write_tensors(peft / "adapter_model.safetensors", tensors, {})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"], "rank_pattern": {}, "use_rslora": False,
              "lora_dropout": 0.0, "bias": "none", "modules_to_save": None, "layers_to_transform": None}  # fmt: skip
    found["adapter_config"] = Target(
        lambda draw: written(bent(config, draw), draw),
        _file(peft / PEFT_CONFIG_FILE, partial(_attach, network, peft / "adapter_model.safetensors")),
    )
    return found


def _attach(network: Any, file: Path) -> None:
    check_file(file, None)
    adapter_below(file)
    load_adapter(network, file).detach()


def _states(folder: Path) -> dict[str, Target]:
    modules, finished, history = folder / "modules" / MODULES, folder / "finished" / "run.json", folder / HISTORY
    finished.parent.mkdir()
    hooks = [{"type": "time_conditioning"}]
    manifest = {"format": 1, "network": "SD3Transformer2DModel", "component": "transformer", "pipeline_arguments": {}, "size": {}, "hooks": hooks}  # fmt: skip
    write_tensors(modules, {"a.weight": torch.ones(2)}, {MANIFEST: json.dumps(manifest)})
    kept = Checkpoints(folder / "kept", limit=None)
    state = {"step": 1, "list": [1, (2.0, None)], "weights": torch.ones(3), 3: "three"}
    checkpoint = kept.save(1, {"adapter": state}, {"python": 1}, {"hooks": {}})
    paper, tensors = checkpoint / "manifest.json", checkpoint / "adapter.safetensors"
    sound, store = tensors.read_bytes(), Store(folder / "shards")
    key = entry_key({"file": "a"})
    with store.claim("latents", shard_name([key]), wait=True) as claim:  # type: ignore[union-attr]
        store.write(claim, "latents", {key: {"latents": torch.ones(2, 3)}}, {key: {}})  # type: ignore[arg-type]
    shard = store.path("latents", shard_name([key]))

    def entries() -> None:
        places = store.find("latents", {key})
        if places:
            Entries({"latents": places}).read("latents", key)

    lines = b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'
    return {
        "modules": Target(
            partial(safetensors_bent, modules.read_bytes()), _file(modules, partial(read_manifest, modules))
        ),
        "finished run": Target(
            lambda draw: written(bent({"model": RUN["model"]}, draw), draw),
            _file(finished, partial(read_run, finished.parent)),
        ),
        "manifest": Target(
            lambda draw, paper=json.loads(paper.read_text(encoding="utf-8")): written(bent(paper, draw), draw),  # type: ignore[misc]
            _file(paper, partial(verify, checkpoint)),
        ),
        "state": Target(partial(safetensors_bent, sound), _file(tensors, partial(read, checkpoint, "adapter"))),
        "shard": Target(partial(safetensors_bent, shard.read_bytes()), _file(shard, entries)),
        "metrics": Target(partial(broken, lines), _file(history, lambda: History(folder, 5))),
    }

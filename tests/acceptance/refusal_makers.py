"""How a good folder is brought into a state that `check` and `train` refuse: the pieces of the cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.user import User

PROMPTED = {"type": "on_policy_rollout", "prompts": ["a"]}
INDEX = "model_index.json"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One reason.

    Args:
        make: brings a good folder into that state.
        words: what must be said.
        more: arguments of the command.
        environment: variables it is met under.
    """

    make: Callable[[User], object]
    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def written(**sections: Any) -> Callable[[User], object]:
    return lambda user: user.write(**sections)


def referring(**keys: Any) -> Callable[[User], object]:
    """A run of plain flow matching whose second set holds references."""

    def make(user: User) -> None:
        user.edit_blocks(lambda blocks: blocks[1].update(conditioning_type="reference_image", **keys))
        user.write(hooks=[])

    return make


def twice_referring(user: User) -> None:
    """A run on a pipeline that takes one image, whose second and third set hold references."""
    referring()(user)
    user.edit_blocks(lambda blocks: blocks[2].update(conditioning_type="reference_image"))
    changed_index(_class_name="LongCatImageEditPipeline")(user)


def changed_index(**changes: Any) -> Callable[[User], object]:
    """Change the pipeline's index; None takes a part out."""

    def make(user: User) -> None:
        file = user.mine / "model" / INDEX
        index = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in index.items() if value is not None}))

    return make


def changed_settings(name: str, **changes: Any) -> Callable[[Path], object]:
    """Change a configuration in a pipeline's folder."""

    def change(model: Path) -> None:
        found = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps({**found, **changes}), encoding="utf-8")

    return change


def changed_model(change: Callable[[Path], object], **section: Any) -> Callable[[User], object]:
    """Change the pipeline's folder, and write the ``model`` section."""

    def make(user: User) -> None:
        change(user.mine / "model")
        user.write(model=section)

    return make


def prior(user: User) -> None:
    """Calls the network by a name that no flow-matching pipeline has."""
    model = user.mine / "model"
    (model / "transformer").rename(model / "prior")
    changed_index(_class_name="StableCascadePriorPipeline", transformer=None, prior=["diffusers", "StableCascadeUNet"])(
        user
    )


def unet(**sections: Any) -> Callable[[User], object]:
    """Make the network a U-Net, by name and class, in a run with these sections."""

    def make(user: User) -> None:
        model = user.mine / "model"
        (model / "transformer").rename(model / "unet")
        changed_index(
            _class_name="StableDiffusionXLPipeline", transformer=None, unet=["diffusers", "UNet2DConditionModel"]
        )(user)
        user.write(**sections)

    return make


def sharded(index: str) -> Callable[[Path], object]:
    """The transformer's weights in parts, of which none is there."""
    return lambda model: (
        (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index),
        (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
    )


def cut(model: Path) -> None:
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(model: Path) -> None:
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def experts(user: User) -> None:
    model = user.mine / "model"
    shutil.copytree(model / "transformer", model / "transformer_2")
    changed_index(transformer_2=["diffusers", "SD3Transformer2DModel"])(user)
    user.write(hooks=[{"type": "twin_flow"}])


def votes(*labels: str) -> Callable[[User], object]:
    """A table of images with a label each, and a run on it."""

    def make(user: User) -> None:
        images = sorted((user.data / "win").glob("*.png"))
        rows = [f"win/{image.name},a,{label}" for image, label in zip(images, labels, strict=False)]
        (user.data / "votes.csv").write_text("\n".join(["file,words,thumbs", *rows]) + "\n", encoding="utf-8")
        columns = {"image": "file", "caption": "words", "label": "thumbs"}
        block = {"id": "votes", "type": "csv", "instance_data_dir": "votes.csv", "columns": columns}
        user.edit_blocks(lambda blocks: blocks.__setitem__(slice(None), [block]))
        user.write(hooks=[{"type": "kto"}])

    return make


def ties(user: User, objective: str = "flow_dpo", pairs: bool = True) -> None:
    """A table of two images a row, one row of them a tie that is kept; the other one prefers a side or is left out."""
    rows = [*(["win/one.png,lose/one.png,1,0,a"] if pairs else []), "win/two.png,lose/two.png,1,1,b"]
    (user.data / "votes.csv").write_text("\n".join(["one,other,l,r,text", *rows]) + "\n", encoding="utf-8")
    columns = {"image": ["one", "other"], "preference": ["l", "r"]}
    block = {"id": "votes", "type": "csv", "instance_data_dir": "votes.csv", "columns": columns, "ties": "keep"}
    user.edit_blocks(lambda blocks: blocks.__setitem__(slice(None), [block]))
    user.write(hooks=[{"type": objective, "norm_type": "mean", "beta": 50.0}])


def no_start(user: User) -> None:
    (user.out / "checkpoint-2").mkdir(parents=True)


def left(name: str, text: str = "") -> Callable[[User], object]:
    """Put a file into the output folder."""

    def make(user: User) -> None:
        file = user.out / name
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")

    return make


def resume_other(user: User) -> None:
    folder = user.out / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1, "step": 2, "files": {}, "identity": {"data": "x"}}')


def damaged_resume(user: User) -> None:
    no_start(user)
    (user.out / "checkpoint-2" / "manifest.json").write_text("{")


def reward(user: User, files: Mapping[str, str], **block: Any) -> None:
    folder = user.mine / "judge"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    block = {"type": "clip_score", "model": str(folder), **block}
    user.write(data=None, hooks=[{"type": "flow_grpo", "rewards": [block]}, PROMPTED])


def rollout(**options: Any) -> Callable[[User], object]:
    return written(data=None, hooks=[{"type": "flow_grpo", "rewards": [JUDGE]}, {**PROMPTED, **options}])


def rewarded(options: Mapping[str, Any], drawn: Mapping[str, Any]) -> Callable[[User], object]:
    """Rollouts whose images are compared with their references."""
    block = {"type": "reference_similarity", **options}
    return written(hooks=[{"type": "flow_grpo", "rewards": [block]}, dict(drawn)])


def served(options: Mapping[str, Any], **drawn: Any) -> Callable[[User], object]:
    """Rollouts whose images a server judges."""
    block = {"type": "http", "url": "http://127.0.0.1:9/", **options}
    return written(hooks=[{"type": "flow_grpo", "rewards": [block]}, {**PROMPTED, "group_size": 2, **drawn}])


def prompt_file(name: str, content: bytes, **options: Any) -> Callable[[User], object]:
    def make(user: User) -> None:
        (user.mine / name).write_bytes(content)
        rollout(prompts=str(user.mine / name), **options)(user)

    return make


def teachers(teachers: Any, **options: Any) -> Callable[[User], object]:
    hook = {"type": "teacher_velocity", "teachers": teachers, **options}
    return written(data=None, hooks=[hook, PROMPTED])


def own_teacher(user: User, **options: Any) -> None:
    teachers({"own": str(user.mine / "own.safetensors")}, **options)(user)


def late(user: User) -> None:
    """All of what is drawn at the end is held out."""
    blocks = json.loads((user.data / "data.json").read_text())
    (user.data / "late").mkdir()
    shutil.copy(user.data / "win" / "one.png", user.data / "late")
    first = {**blocks[0], "conditioning_data": [], "end_step": 2}
    late = {"id": "late", "instance_data_dir": "late", "start_step": 2, "caption_strategy": "filename"}
    (user.data / "data.json").write_text(json.dumps([first, late]))
    shutil.rmtree(user.data / "win")
    shutil.copytree(user.data / "late", user.data / "win")
    shutil.copy(user.data / "lose" / "two.png", user.data / "win")
    user.edit_blocks(lambda blocks: blocks[0].update(caption_strategy="filename"))


MUON = {"trainable": "transformer", "optimizer": "torch.optim:Muon"}
DIGITS = {"pretrained_model_name_or_path": "digits"}
#: A reward that is taken for one of the Hub.
JUDGE = {"type": "clip_score", "model": "openai/clip-vit-base-patch32"}
AGAIN = "save_pretrained"

#: Files of the user's under names that a run writes.
FOREIGN = {
    "README.md": "# My project\n",
    "metrics.json": '{"accuracy": 0.9}',
    "metrics.jsonl": '{"epoch": 1}\n',
    "run.json": '{"method": {"sft": {}}}',
    "flow_map_loader.py": "# My loader\n",
    "events.jsonl": '{"event": "mine"}\n',
    "report.html": "<!doctype html><p>mine",
}

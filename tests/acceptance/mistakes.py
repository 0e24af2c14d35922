"""What people get wrong, each with the words they must be told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from tests.acceptance.user import User

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWx1234"


@dataclass(frozen=True)
class Mistake:
    """One wrong thing in an otherwise good folder.

    Args:
        make: does it.
        words: what the one line about it must say: where, what, and what to do.
    """

    make: Callable[[User], object]
    words: tuple[str, ...]


def _flip(user: User) -> None:
    file = user.data / "win" / "two.png"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def _cut(user: User) -> None:
    file = user.data / "lose" / "two.png"
    file.write_bytes(file.read_bytes()[:-40])


def _empty(user: User) -> None:
    for file in (user.data / "lose").iterdir():
        file.unlink()


def _with(name: str, content: bytes) -> Callable[[User], object]:
    return lambda user: (user.data / name).write_bytes(content)


def _wide_mask(user: User) -> None:
    file = user.data / "mask" / "four.png"
    Image.open(file).resize((32, 16)).save(file)


def _black_masks(user: User) -> None:
    for file in (user.data / "mask").iterdir():
        Image.new("L", (16, 16)).save(file)


def _nan(user: User) -> None:
    text = user.run.read_text(encoding="utf-8")
    user.run.write_text(text.replace('"learning_rate": 0.001', '"learning_rate": NaN'), encoding="utf-8")


def _twice(user: User) -> None:
    user.run.write_text(json.dumps(json.loads(user.run.read_text()))[:-1] + ', "hooks": []}')


_UNUSABLE = "files that cannot be used (1)"
_ADD = "add what is missing, or move these images out"
_REPLACE = "replace them or take them out of the data set; nothing was changed"

MISTAKES: dict[str, Mistake] = {
    "no run file": Mistake(lambda user: user.run.rename(user.mine / "runs.json"), ("run.json", "no such file")),
    "not JSON": Mistake(lambda user: user.run.write_text('{"model": '), ("run.json:1:", "not valid JSON")),
    "a key twice": Mistake(_twice, ("run.json", "'hooks' is written twice", "remove one")),
    "unknown key": Mistake(
        lambda user: user.write(training={"learning_rat": 1}),
        ("run.json: $.training.learning_rat: ", "unknown key", "did you mean 'learning_rate'?"),
    ),
    "unknown key of a hook": Mistake(
        lambda user: user.write(hooks=[{"type": "flow_dpo", "norm": "sum"}]),
        ("run.json: $.hooks[0].norm: ", "unknown key 'norm'", "norm_type"),
    ),
    "unknown key of a data set": Mistake(
        lambda user: user.edit_blocks(lambda blocks: blocks[1].update(conditioning_typ="mask")),
        ("data.json: $[1].conditioning_typ: ", "unknown key", "did you mean 'conditioning_type'?"),
    ),
    "wrong type": Mistake(
        lambda user: user.write(training={"train_batch_size": "2"}),
        ("run.json: $.training.train_batch_size: ", "expected an integer, found the string '2'", "remove the quotes"),
    ),
    "NaN in the run file": Mistake(
        _nan, ("run.json:", "$.training.learning_rate: NaN is not a JSON number", "write a finite one")
    ),
    "no data set file": Mistake(
        lambda user: user.write(data=str(user.mine / "dota.json")),
        ("run.json: $.data: ", "dota.json", "no such file"),
    ),
    "no image folder": Mistake(
        lambda user: shutil.rmtree(user.data / "lose"),
        ("data.json: $[1].instance_data_dir: ", "lose does not exist", "relative to the data set file"),
    ),
    "no model": Mistake(
        lambda user: user.write(model={"pretrained_model_name_or_path": str(user.mine / "modle")}),
        ("run.json: $.model.pretrained_model_name_or_path: ", "there is no folder", "modle", "correct it"),
    ),
    "empty folder": Mistake(_empty, ("data.json: $[1].instance_data_dir: ", "lose holds no image", "put images there")),
    "a rejected twin missing": Mistake(
        lambda user: (user.data / "lose" / "three.png").unlink(),
        ("data.json: $[1].instance_data_dir: 1 of 6 images of 'win' have no partner in 'lose': three;", _ADD),
    ),
    "a mask missing": Mistake(
        lambda user: (user.data / "mask" / "three.png").unlink(),
        ("data.json: $[2].instance_data_dir: 1 of 6 images of 'win' have no partner in 'mask': three;", _ADD),
    ),
    "a corrupt PNG": Mistake(_flip, ("data.json: $[0].instance_data_dir: ", _UNUSABLE, "two.png is ", _REPLACE)),
    "a PNG cut short": Mistake(_cut, ("data.json: $[1].instance_data_dir: ", _UNUSABLE, "two.png is ", _REPLACE)),
    "a file of 0 bytes": Mistake(
        _with("win/four.png", b""), ("data.json: $[0].instance_data_dir: ", "four.png is empty (0 bytes)", _REPLACE)
    ),
    "a text named .png": Mistake(
        _with("mask/five.png", b"see attached"),
        ("data.json: $[2].instance_data_dir: ", "five.png is not a PNG", "b'see attached'", _REPLACE),
    ),
    "a mask of another aspect": Mistake(
        _wide_mask, ("data.json: $[2].instance_data_dir: ", "four (16x16 image, 32x16 partner)", "crop")
    ),
    "black masks": Mistake(
        _black_masks,
        ("data.json: $[2].instance_data_dir: ", "none of the 6 masks of 'mask' has a bright pixel", "white is what"),
    ),
    "a pipe named like a picture": Mistake(
        lambda user: os.mkfifo(user.data / "win" / "q.png"),
        ("data.json: $[0].instance_data_dir: ", "q.png is a pipe, a socket or a device", "remove them"),
    ),
    "an only set that is off": Mistake(
        lambda user: user.edit_blocks(lambda blocks: blocks[0].update(disabled=True)),
        ("data.json: $: ", "`disabled` is true for 'win'", "set it to false"),
    ),
    "a token under its key": Mistake(
        lambda user: user.write(push={"repo_id": "me/dpo", "token": "anything"}),
        ("run.json: $.push.token: ", "holds a secret", "hf auth login"),
    ),
    "a token somewhere": Mistake(
        lambda user: user.write(logging={"trackers": [], "project": SECRET}),
        ("run.json: $.logging.project: ", "looks like a token", "hf auth login"),
    ),
    "an output folder that is a file": Mistake(
        lambda user: user.write(output_dir=str(user.run / "out")),
        ("run.json: $.output_dir: ", "run.json is a file, so no folder can be made there", "name another"),
    ),
    "a cache folder that is a file": Mistake(
        lambda user: user.write(cache_dir=str(user.run)),
        ("run.json: $.cache_dir: ", "run.json is a file, so no folder can be made there", "name another"),
    ),
    "xformers": Mistake(
        lambda user: user.write(model={"attention_backend": "xformers"}),
        (
            "run.json: $.model.attention_backend: ",
            "'xformers' cannot be used",
            "needs an NVIDIA GPU",
            "'native' works everywhere",
        ),
    ),
    "flash": Mistake(
        lambda user: user.write(model={"attention_backend": "flash"}),
        (
            "run.json: $.model.attention_backend: ",
            "'flash' cannot be used",
            "needs an NVIDIA GPU",
            "'native' works everywhere",
        ),
    ),
    "no LoRA": Mistake(
        lambda user: user.write(adapter={"init_from": str(user.mine / "lara")}),
        ("run.json: $.adapter.init_from: ", "there is no ", "lara", "relative to the working directory"),
    ),
    "a LoRA cut in half": Mistake(
        lambda user: (
            (user.mine / "half.safetensors").write_bytes((user.mine / "own.safetensors").read_bytes()[:9000]),
            user.write(adapter={"init_from": str(user.mine / "half.safetensors")}),
        ),
        ("run.json: $.adapter.init_from: ", "half.safetensors: cannot be read as safetensors", "copy or download it"),
    ),
    "a LoRA of another architecture": Mistake(
        lambda user: user.write(adapter={"init_from": str(user.mine / "flux.safetensors")}),
        (
            "run.json: $.adapter.init_from: ",
            "flux.safetensors: ",
            "made for another model",
            "single_transformer_blocks",
        ),
    ),
    "a LoRA of another width": Mistake(
        lambda user: user.write(adapter={"init_from": str(user.mine / "wide.safetensors")}),
        ("run.json: $.adapter.init_from: ", "wide.safetensors: ", "the file is for 64", "made for another model"),
    ),
    "a LyCORIS of another architecture": Mistake(
        lambda user: user.write(
            adapter={"type": "lycoris", "algo": "locon", "init_from": str(user.mine / "lycoris-flux.safetensors")}
        ),
        ("run.json: $.adapter.init_from: ", "lycoris-flux.safetensors: ", "made for another model"),
    ),
    "a LoRA of another rank": Mistake(
        lambda user: user.write(adapter={"rank": 8, "alpha": 8, "init_from": str(user.mine / "own.safetensors")}),
        ("run.json: $.adapter.init_from: ", "own.safetensors: holds type lora, rank 2, alpha 2", "Set the section"),
    ),
}

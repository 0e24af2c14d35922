"""Runs that are refused before weights load, beside the mistakes of people: one for every reason that is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.acceptance.mistakes import MISTAKES
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


def _written(**sections: Any) -> Callable[[User], object]:
    return lambda user: user.write(**sections)


def _index(**changes: Any) -> Callable[[User], object]:
    """Change the pipeline's index; None takes a part out."""

    def make(user: User) -> None:
        file = user.mine / "model" / INDEX
        index = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in index.items() if value is not None}))

    return make


def _settings(name: str, **changes: Any) -> Callable[[Path], object]:
    """Change a configuration in a pipeline's folder."""

    def change(model: Path) -> None:
        found = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps({**found, **changes}), encoding="utf-8")

    return change


def _model(change: Callable[[Path], object], **section: Any) -> Callable[[User], object]:
    """Change the pipeline's folder, and write the ``model`` section."""

    def make(user: User) -> None:
        change(user.mine / "model")
        user.write(model=section)

    return make


def _unet(user: User) -> None:
    model = user.mine / "model"
    (model / "transformer").rename(model / "unet")
    _index(_class_name="StableDiffusionXLPipeline", transformer=None, unet=["diffusers", "UNet2DConditionModel"])(user)


def _sharded(index: str) -> Callable[[Path], object]:
    """The transformer's weights in parts, of which none is there."""
    return lambda model: (
        (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index),
        (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
    )


def _cut(model: Path) -> None:
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickled(model: Path) -> None:
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def _experts(user: User) -> None:
    model = user.mine / "model"
    shutil.copytree(model / "transformer", model / "transformer_2")
    _index(transformer_2=["diffusers", "SD3Transformer2DModel"])(user)
    user.write(hooks=[{"type": "twin_flow"}])


def _no_start(user: User) -> None:
    (user.out / "checkpoint-2").mkdir(parents=True)


def _left(name: str, text: str = "") -> Callable[[User], object]:
    """Put a file into the output folder."""

    def make(user: User) -> None:
        file = user.out / name
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")

    return make


def _resume_other(user: User) -> None:
    folder = user.out / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 1, "step": 2, "files": {}, "identity": {"data": "x"}}')


def _damaged_resume(user: User) -> None:
    _no_start(user)
    (user.out / "checkpoint-2" / "manifest.json").write_text("{")


def _reward(user: User, files: Mapping[str, str], **block: Any) -> None:
    folder = user.mine / "judge"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    block = {"type": "clip_score", "model": str(folder), **block}
    user.write(data=None, hooks=[{"type": "flow_grpo", "rewards": [block]}, PROMPTED])


def _rollout(**options: Any) -> Callable[[User], object]:
    return _written(data=None, hooks=[{"type": "flow_grpo", "rewards": [JUDGE]}, {**PROMPTED, **options}])


def _prompt_file(name: str, content: bytes, **options: Any) -> Callable[[User], object]:
    def make(user: User) -> None:
        (user.mine / name).write_bytes(content)
        _rollout(prompts=str(user.mine / name), **options)(user)

    return make


def _teachers(teachers: Any, **options: Any) -> Callable[[User], object]:
    hook = {"type": "teacher_velocity", "teachers": teachers, **options}
    return _written(data=None, hooks=[hook, PROMPTED])


def _own_teacher(user: User, **options: Any) -> None:
    _teachers({"own": str(user.mine / "own.safetensors")}, **options)(user)


def _late(user: User) -> None:
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
_AGAIN = "save_pretrained"

#: Files of the user's under names that a run writes.
FOREIGN = {
    "README.md": "# My project\n",
    "metrics.json": '{"accuracy": 0.9}',
    "metrics.jsonl": '{"epoch": 1}\n',
    "run.json": '{"method": {"sft": {}}}',
}

REFUSALS: dict[str, Refusal] = {
    **{name: Refusal(make=each.make, words=each.words) for name, each in MISTAKES.items()},
    "a U-Net": Refusal(
        make=_unet, words=("$.model.pretrained_model_name_or_path: ", "its network is 'unet'", "`transformer`")
    ),
    "no network at all": Refusal(
        make=_index(**dict.fromkeys(("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))),
        words=("it has no network",),
    ),
    "a part that no pipeline has": Refusal(
        make=_index(**{"../vae": ["diffusers", "AutoencoderKL"]}), words=("names a part '../vae'", "get the file again")
    ),
    "a scheduler of betas": Refusal(
        make=_index(scheduler=["diffusers", "DDIMScheduler"]), words=("a DDIMScheduler", "no flow matching")
    ),
    "a scheduler of betas, by its settings": Refusal(
        make=_model(lambda model: (model / "scheduler/scheduler_config.json").write_text('{"beta_start": 0.01}')),
        words=("whose noise levels come from betas", "FlowMatchEulerDiscreteScheduler"),
    ),
    "settings of a scheduler that are no JSON": Refusal(
        make=_model(lambda model: (model / "scheduler/scheduler_config.json").write_text("{")),
        words=("a scheduler whose settings cannot be read", _AGAIN),
    ),
    "no scheduler": Refusal(make=_index(scheduler=None), words=("has no `scheduler`", _AGAIN)),
    "no settings of a scheduler": Refusal(
        make=_model(lambda model: (model / "scheduler/scheduler_config.json").unlink()),
        words=("has no scheduler/scheduler_config.json", _AGAIN),
    ),
    "no VAE": Refusal(make=_index(vae=None), words=("has no `vae`", "latents")),
    "an index that is no JSON": Refusal(
        make=_model(lambda model: (model / INDEX).write_text("{")), words=("model_index.json: cannot be read", _AGAIN)
    ),
    "an index that is a list": Refusal(
        make=_model(lambda model: (model / INDEX).write_text("[]")), words=("model_index.json: expected an object",)
    ),
    "an index of no pipeline": Refusal(
        make=_model(lambda model: (model / INDEX).write_text("{}")), words=("has no `_class_name`", _AGAIN)
    ),
    "a pipeline of another Diffusers": Refusal(
        make=_index(_class_name="StableDifusion3Pipeline"),
        words=("is a StableDifusion3Pipeline", "did you mean 'StableDiffusion3Pipeline'?"),
    ),
    "a part made by code of a stranger": Refusal(
        make=_index(vae=["stranger", "AutoencoderKL"]), words=("'vae' made by 'stranger'", "no such code is run")
    ),
    "a part that is not there": Refusal(
        make=_model(lambda model: shutil.rmtree(model / "text_encoder")), words=("has no folder 'text_encoder'", _AGAIN)
    ),
    "settings that are not there": Refusal(
        make=_model(lambda model: (model / "transformer" / "config.json").unlink()),
        words=("has no transformer/config.json", _AGAIN),
    ),
    "weights that are not there": Refusal(
        make=_model(lambda model: (model / "text_encoder" / "model.safetensors").unlink()),
        words=("has no text_encoder/model.safetensors", _AGAIN),
    ),
    "pickled weights": Refusal(
        make=_model(_pickled), words=("has no vae/diffusion_pytorch_model.safetensors", "pickled weights are not read")
    ),
    "weights cut short": Refusal(make=_model(_cut), words=("transformer/diffusion_pytorch_model", "cut short")),
    "a shard that is not there": Refusal(
        make=_model(_sharded('{"weight_map": {"a": "one.safetensors"}}')), words=("has no transformer/one.safetensors",)
    ),
    "an index of shards that is none": Refusal(
        make=_model(_sharded("[1]")), words=("index.json that cannot be read", _AGAIN)
    ),
    "a variant that is not there": Refusal(
        make=_model(lambda model: None, variant="fp16"), words=("$.model.variant: ", "no file of the variant 'fp16'")
    ),
    "a component that is not there": Refusal(
        make=_model(lambda model: None, component="transformer_2"),
        words=("$.model.component: ", "has no network 'transformer_2'; it has 'transformer'"),
    ),
    "an argument that the pipeline does not take": Refusal(
        make=_model(lambda model: None, pipeline_arguments={"max_sequence_lenght": 8}),
        words=("$.model.pipeline_arguments.max_sequence_lenght: ", "did you mean 'max_sequence_length'?"),
    ),
    "a network that recomputes nothing": Refusal(
        make=lambda user: (
            _index(transformer=["diffusers", "LuminaNextDiT2DModel"])(user),
            user.write(model={"gradient_checkpointing": True}, adapter={"target_modules": ["to_q"]}),
        ),
        words=("$.model.gradient_checkpointing: ", "LuminaNextDiT2DModel", "set it to false"),
    ),
    "one of two experts from noise to data": Refusal(make=_experts, words=("$.hooks[0]: ", "two networks")),
    "an embedded pipeline that is none": Refusal(
        make=_written(model={"pretrained_model_name_or_path": "digits:small"}),
        words=("'digits:small' is no embedded pipeline", "'digits' or 'digits:untrained'"),
    ),
    "a model that is a file": Refusal(
        make=lambda user: user.write(model={"pretrained_model_name_or_path": str(user.run)}), words=("is a file",)
    ),
    "a model folder without an index": Refusal(
        make=lambda user: user.write(model={"pretrained_model_name_or_path": str(user.data)}),
        words=("has no model_index.json",),
    ),
    "a model by one word": Refusal(
        make=_written(model={"pretrained_model_name_or_path": "modle"}), words=("it is no Hub id like owner/name",)
    ),
    "a model that is not in the cache, offline": Refusal(
        make=_written(model={"pretrained_model_name_or_path": "nobody/nothing"}),
        words=("not in the Hub's cache", "HF_HUB_OFFLINE"),
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    "a target that is not there": Refusal(
        make=_written(adapter={"target_modules": ["to_q", "to_kk"]}),
        words=("$.adapter.target_modules: ", "no layer of SD3Transformer2DModel is named 'to_kk'", "to_k"),
    ),
    "a target that is no layer": Refusal(
        make=_written(adapter={"target_modules": ["transformer_blocks.0"]}),
        words=("$.adapter.target_modules: ", "names `transformer_blocks.0`, a JointTransformerBlock"),
    ),
    "a size that the pipeline refuses": Refusal(
        make=lambda user: user.edit_blocks(lambda blocks: blocks[0].update(resolution=14)),
        words=("data.json: $[0].resolution: ", "pictures of 14x14 do not fit", "multiples of 4"),
    ),
    "validation of a size that the pipeline refuses": Refusal(
        make=_written(validation={"prompts": ["a"], "height": 18, "width": 16}),
        words=("$.validation.height: ", "18 pixels do not fit", "multiples of 4"),
    ),
    "validation larger than the network's positions": Refusal(
        make=_written(validation={"prompts": ["a"], "height": 64, "width": 16}),
        words=("$.validation.height: ", "64 pixels are more than the network has positions for; 32 is the most"),
    ),
    "data larger than the network's positions": Refusal(
        make=_model(_settings("transformer/config.json", pos_embed_max_size=2)),
        words=("data.json: $[0].resolution: ", "pictures of 16x16 are larger than", "8 is the most"),
    ),
    "validation pictures that no run drew": Refusal(
        make=lambda user: (
            (user.out / "validation").mkdir(parents=True),
            (user.out / "validation" / "step_000000.png").write_bytes(b"mine"),
            user.write(),
        ),
        words=("holds validation/step_000000.png and no run.json",),
    ),
    "checkpoints of another run": Refusal(make=_no_start, words=("holds checkpoint-2 of an earlier run", "--resume")),
    "weights of a finished run": Refusal(
        make=_left("pytorch_lora_weights.safetensors"),
        words=("holds pytorch_lora_weights.safetensors, and no checkpoint", "choose another `output_dir`"),
    ),
    "weights of a finished run, gone on from": Refusal(
        make=_left("pipeline/model_index.json"),
        words=("holds pipeline, and no checkpoint", "choose another `output_dir`"),
        more=("--resume", "latest"),
    ),
    "steps that an earlier run logged": Refusal(
        make=_left("metrics.jsonl", '{"step": 1, "loss": 1.0}\n'),
        words=("holds metrics.jsonl of an earlier run", "--resume latest"),
    ),
    **{
        f"a {name} of the user's": Refusal(
            make=_left(name, text),
            words=(f"holds a {name} that no run wrote", "choose another `output_dir`"),
            more=("--resume", "latest"),
        )
        for name, text in FOREIGN.items()
    },
    "the folder of the run file": Refusal(
        make=lambda user: user.write(output_dir=str(user.mine)),
        words=("$.output_dir: ", "is the folder of the run file run.json"),
    ),
    "the folder of the data set file": Refusal(
        make=lambda user: user.write(output_dir=str(user.data)),
        words=("$.output_dir: ", "is the folder of the data set file data.json"),
    ),
    "an output folder among the data": Refusal(
        make=lambda user: user.write(output_dir=str(user.data / "win" / "runs")),
        words=("$.output_dir: ", "inside the folder of the data set 'win'", "outside it"),
    ),
    "a cache among the data": Refusal(
        make=lambda user: user.write(cache_dir=str(user.data / "lose")),
        words=("$.cache_dir: ", "inside the folder of the data set 'lose'", "outside it"),
    ),
    "a project that is a path": Refusal(
        make=_written(logging={"project": "../../x"}), words=("$.logging.project: ", "has the wrong form", "my-project")
    ),
    "no checkpoint to go on from": Refusal(
        make=_written(), words=("there is no such checkpoint",), more=("--resume", "nowhere")
    ),
    "a checkpoint of another run": Refusal(
        make=_resume_other, words=("was written by another run", "start anew"), more=("--resume", "latest")
    ),
    "a damaged checkpoint": Refusal(
        make=_damaged_resume, words=("no checkpoint is whole", "manifest.json"), more=("--resume", "latest")
    ),
    "no prompts file": Refusal(
        make=_rollout(prompts="nowhere.txt"), words=("$.hooks[1]: ", "nowhere.txt cannot be read")
    ),
    "an empty prompts file": Refusal(make=_prompt_file("p.txt", b"\n"), words=("p.txt holds no prompt",)),
    "prompts that are not UTF-8": Refusal(make=_prompt_file("p.txt", b"a\xff"), words=("is not UTF-8",)),
    "a line of prompts that is no JSON": Refusal(make=_prompt_file("p.jsonl", b"{\n"), words=("line 1: is no JSON",)),
    "a line that is no prompt": Refusal(make=_prompt_file("p.jsonl", b"3\n"), words=("line 1: expected a prompt",)),
    "an empty list of prompts": Refusal(make=_rollout(prompts=[]), words=("$.hooks[1]",)),
    "prompts without their task": Refusal(make=_rollout(task_column="task"), words=("has no column 'task'",)),
    "a window beyond the steps": Refusal(make=_rollout(window=[0, 99]), words=("`window` must be two indices",)),
    "last steps of steps with chance": Refusal(make=_rollout(last_steps=2), words=("go with the sampler 'ode'",)),
    "two ends": Refusal(
        make=_rollout(last_steps=2, sigma_max=0.5, sampler="ode"), words=("both say where the end starts",)
    ),
    "early visits of no end": Refusal(make=_rollout(early_visits=2), words=("`early_visits` counts states before",)),
    "shares above 1": Refusal(
        make=_written(hooks=[{"type": "interval_times", "diffusion_ratio": 0.9}, {"type": "target_replacer"}]),
        words=("$.hooks[0]: ", "shares of one batch"),
    ),
    "a correction of nothing": Refusal(
        make=_written(hooks=[{"type": "twin_flow", "adversarial_weight": 0, "rectification_weight": 1}]),
        words=("$.hooks[0]: ", "nothing trains the branch"),
    ),
    "a teacher that is not there": Refusal(
        make=_teachers({"ink": "./nowhere"}), words=("$.hooks[0].teachers.ink: ", "no such file or folder")
    ),
    "a teacher called base": Refusal(make=_teachers({"base": "a/b"}), words=("none of them 'base'",)),
    "a route to nobody": Refusal(
        make=lambda user: _own_teacher(user, routes={"a": "nobody"}), words=("`routes` lead to 'nobody'",)
    ),
    "a teacher of another architecture": Refusal(
        make=lambda user: _teachers({"flux": str(user.mine / "flux.safetensors")})(user),
        words=("$.hooks[0].teachers.flux: ", "made for another model"),
    ),
    "a teacher in a folder that is here": Refusal(
        make=_teachers({"ink": "tests/nowhere"}), words=("$.hooks[0].teachers.ink: ", "'tests' is a folder here")
    ),
    "a judge that is not there": Refusal(
        make=lambda user: _reward(user, {}, model="./nowhere"),
        words=("$.hooks[0].rewards[0].model: ", "'./nowhere' is no folder here"),
    ),
    "a judge that is a file": Refusal(
        make=lambda user: _reward(user, {}, model=str(user.run)), words=("rewards[0].model: ", "is a file")
    ),
    "a judge's empty folder": Refusal(make=lambda user: _reward(user, {}), words=("a folder without config.json",)),
    "a judge without weights": Refusal(
        make=lambda user: _reward(user, {"config.json": "{}"}), words=("has no safetensors weights",)
    ),
    "a judge that is not in the cache, offline": Refusal(
        make=lambda user: _reward(user, {}, model="nobody/nothing"),
        words=("rewards[0].model: ", "not in the Hub's cache", "HF_HUB_OFFLINE"),
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    "a head that is not there": Refusal(
        make=lambda user: _reward(user, {}, type="aesthetic", model="a/b", head="nowhere.safetensors"),
        words=("$.hooks[0].rewards[0].head: ", "cannot be read", "give a safetensors file"),
    ),
    "an encoder that is not there": Refusal(
        make=_written(hooks=[{"type": "feature_alignment", "source": "external", "block_index": 0, "encoder": "./no"}]),
        words=("$.hooks[0].encoder: ", "'./no' is no folder here"),
    ),
    "a tracker that is not installed": Refusal(
        make=_written(logging={"trackers": ["clearml"]}), words=("$.logging.trackers[0]: ", "pip install clearml")
    ),
    "fp16 without a GPU": Refusal(
        make=_written(model={"dtype": "fp16"}, training={"mixed_precision": "fp16"}),
        words=("$.training.mixed_precision: ", "needs a GPU"),
    ),
    "an option that the optimiser does not take": Refusal(
        make=_written(training={"optimizer_args": {"eps": -1}}),
        words=("$.training.optimizer_args: ", "'adamw' cannot be built"),
    ),
    "two options of the optimiser that exclude each other": Refusal(
        make=_written(training={"optimizer_args": {"fused": True, "foreach": True}}),
        words=("$.training.optimizer_args: ", "'adamw' cannot be built"),
    ),
    "an optimiser that is not installed": Refusal(
        make=_written(training={"optimizer": "no_such_package:Lion"}),
        words=("$.training.optimizer: ", "'no_such_package'", "'adamw'"),
        more=("--allow-imports",),
    ),
    "an optimiser that torch does not have": Refusal(
        make=_written(training={"optimizer": "torch.optim:AdamX"}),
        words=("$.training.optimizer: ", "no optimiser 'AdamX'", "did you mean"),
    ),
    "a part of torch.optim that is no optimiser": Refusal(
        make=_written(training={"optimizer": "torch.optim:lr_scheduler"}),
        words=("$.training.optimizer: ", "no optimiser 'lr_scheduler'"),
    ),
    "an optimiser that wants a closure": Refusal(
        make=_written(training={"optimizer": "torch.optim:LBFGS"}),
        words=("$.training.optimizer: ", "asks for the loss again"),
    ),
    "an optimiser of sparse gradients": Refusal(
        make=_written(training={"optimizer": "torch.optim:SparseAdam"}),
        words=("$.training.optimizer: ", "sparse gradients only"),
    ),
    "an optimiser of matrices for a whole network": Refusal(
        make=_written(adapter=None, hooks=[{"type": "flow_matching_loss"}], training=MUON),
        words=("$.training.optimizer_args: ", "only supports 2D parameters"),
    ),
    "an option of an optimiser that fails in its first step": Refusal(
        make=_written(training={"optimizer": "torch.optim:Adam", "optimizer_args": {"capturable": True}}),
        words=("$.training.optimizer_args: ", "cannot take a step"),
    ),
    "a rate that no float holds": Refusal(
        make=_written(training={"learning_rate": 1e300}), words=("$.training.learning_rate: ", "1e+300")
    ),
    "a beta that no float holds": Refusal(
        make=_written(hooks=[], method={"flow_dpo": {"beta": 1e300}}), words=("flow_dpo.beta: ", "1e+300")
    ),
    "a thousand workers": Refusal(
        make=_written(training={"dataloader_num_workers": 1000}),
        words=("$.training.dataloader_num_workers: ", "would exhaust this machine"),
    ),
    "an output where no folder can be made": Refusal(
        make=_written(output_dir="/proc/x"), words=("$.output_dir: ", "no folder can be made in /proc")
    ),
    "an argument of another type": Refusal(
        make=_model(lambda model: None, pipeline_arguments={"max_sequence_length": "x"}),
        words=("$.model.pipeline_arguments.max_sequence_length: ", "takes an integer", "found 'x'"),
    ),
    "an argument that flowhooks passes": Refusal(
        make=_model(lambda model: None, pipeline_arguments={"prompt": "x"}),
        words=("$.model.pipeline_arguments.prompt: ", "by flowhooks itself", "validation.prompts"),
    ),
    "a target that the digits do not have": Refusal(
        make=_written(model=DIGITS, adapter={"target_modules": ["nope"]}),
        words=("$.adapter.target_modules: ", "no layer of SD3Transformer2DModel is named 'nope'"),
    ),
    "an argument that the digits do not take": Refusal(
        make=_written(model={**DIGITS, "pipeline_arguments": {"nope": 1}}),
        words=("$.model.pipeline_arguments.nope: ", "takes no argument 'nope'"),
    ),
    "validation of a size that the digits refuse": Refusal(
        make=_written(model=DIGITS, validation={"prompts": ["a"], "height": 31}),
        words=("$.validation.height: ", "31 pixels do not fit", "multiples of 8"),
    ),
    "a variant of the digits": Refusal(
        make=_written(model={**DIGITS, "variant": "fp16"}), words=("$.model.variant: ", "no file of the variant")
    ),
    "an anchor that is not there": Refusal(
        make=_written(hooks=[{"type": "anchor_regularizer", "weight": 1, "role": "adapter:x", "adapter": "./no"}]),
        words=("$.hooks[0]: ", "no such file or folder"),
    ),
    "a launcher that splits the model": Refusal(
        make=_written(), words=("set up for FSDP",), environment={"ACCELERATE_USE_FSDP": "true"}
    ),
    "all held out": Refusal(
        make=_written(validation={"holdout": 6}), words=("$.validation.holdout: ", "leave at least one to train on")
    ),
    "a precision that the weights cannot hold": Refusal(
        make=_written(model={"dtype": "bf16"}, training={"mixed_precision": "fp16"}),
        words=("$.training.mixed_precision: ", "does not go with `model.dtype` 'bf16'"),
    ),
    "nothing to train": Refusal(make=_written(adapter=None), words=("$.training.trainable: ", "`adapter` is null")),
    "a transformer with an adapter": Refusal(
        make=_written(training={"trainable": "transformer"}), words=("$.adapter: ", '"adapter": null')
    ),
    "trained weights in bf16": Refusal(
        make=_written(adapter=None, model={"dtype": "bf16"}, training={"trainable": "transformer"}),
        words=("$.model.dtype: ", "lose their updates"),
    ),
    "an algorithm of another library": Refusal(make=_written(adapter={"algo": "loha"}), words=("$.adapter.algo: ",)),
    "a warm-up of a constant rate": Refusal(
        make=_written(training={"lr_scheduler": "constant", "lr_warmup_steps": 5}),
        words=("$.training.lr_warmup_steps: ", "has no warm-up"),
    ),
    "a rollout that is held out": Refusal(
        make=_written(
            data=None, validation={"holdout": 1}, hooks=[{"type": "flow_grpo", "rewards": [JUDGE]}, PROMPTED]
        ),
        words=("$.validation.holdout: ", "what a run draws cannot be held out"),
    ),
    "differences of dropped predictions": Refusal(
        make=_written(adapter={"dropout": 0.1}, hooks=[{"type": "target_replacer", "target_mode": "flow_map"}]),
        words=("$.hooks[0]: ", "adapter.dropout"),
    ),
    "a text encoder": Refusal(
        make=_written(training={"train_text_encoder": True}), words=("text encoders are not trained",)
    ),
    "no model named": Refusal(
        make=_written(model={"pretrained_model_name_or_path": None}), words=("name a pipeline folder, a Hub id",)
    ),
    "no data named": Refusal(make=_written(data=None), words=("$.data: ", "is missing")),
    "steps of which all is held out": Refusal(
        make=lambda user: (_late(user), user.write(validation={"holdout": 1}, hooks=[])),
        words=("$.validation.holdout: ", "are held out; hold out fewer"),
    ),
}

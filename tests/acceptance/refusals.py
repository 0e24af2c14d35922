"""Runs that are refused before weights load, beside the mistakes of people: one for every reason that is known."""

from __future__ import annotations

from functools import partial

from tests.acceptance.mistakes import MISTAKES
from tests.acceptance.refusal_makers import (
    DIGITS,
    FOREIGN,
    JUDGE,
    MUON,
    PROMPTED,
    Refusal,
    changed_model,
    damaged_resume,
    late,
    left,
    no_start,
    own_teacher,
    prompt_file,
    resume_other,
    reward,
    rollout,
    teachers,
    ties,
    votes,
    written,
)
from tests.acceptance.refusals_of_models import MODELS
from tests.acceptance.refusals_of_quantization import QUANTIZATION
from tests.acceptance.refusals_of_references import REFERENCES
from tests.acceptance.refusals_of_rollouts import ROLLOUTS
from tests.acceptance.refusals_of_sharding import SHARDING
from tests.acceptance.refusals_of_sound import SOUND

REFUSALS: dict[str, Refusal] = {
    **{name: Refusal(make=each.make, words=each.words) for name, each in MISTAKES.items()},
    **MODELS,
    **QUANTIZATION,
    **REFERENCES,
    **ROLLOUTS,
    **SHARDING,
    **SOUND,
    "checkpoints of another run": Refusal(make=no_start, words=("holds checkpoint-2 of an earlier run", "--resume")),
    "weights of a finished run": Refusal(
        make=left("pytorch_lora_weights.safetensors"),
        words=(
            "holds pytorch_lora_weights.safetensors of a finished earlier run, and no checkpoint",
            "choose another `output_dir`",
        ),
    ),
    "weights of a finished run, gone on from": Refusal(
        make=left("pipeline/model_index.json"),
        words=("holds pipeline of a finished earlier run, and no checkpoint", "choose another `output_dir`"),
        more=("--resume", "latest"),
    ),
    "steps that an earlier run logged": Refusal(
        make=left("metrics.jsonl", '{"step": 1, "loss": 1.0}\n'),
        words=("holds metrics.jsonl of an earlier run", "--resume latest"),
    ),
    **{
        f"a {name} of the user's": Refusal(
            make=left(name, text),
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
        make=written(logging={"project": "../../x"}), words=("$.logging.project: ", "has the wrong form", "my-project")
    ),
    "no checkpoint to go on from": Refusal(
        make=written(), words=("there is no such checkpoint",), more=("--resume", "nowhere")
    ),
    "a checkpoint of another run": Refusal(
        make=resume_other, words=("was written by another run", "start again"), more=("--resume", "latest")
    ),
    "a damaged checkpoint": Refusal(
        make=damaged_resume, words=("no checkpoint is complete", "manifest.json"), more=("--resume", "latest")
    ),
    "no prompts file": Refusal(
        make=rollout(prompts="nowhere.txt"), words=("$.hooks[1]: ", "nowhere.txt cannot be read")
    ),
    "an empty prompts file": Refusal(make=prompt_file("p.txt", b"\n"), words=("p.txt holds no prompt",)),
    "prompts that are not UTF-8": Refusal(make=prompt_file("p.txt", b"a\xff"), words=("is not UTF-8",)),
    "a line of prompts that is no JSON": Refusal(make=prompt_file("p.jsonl", b"{\n"), words=("line 1: is no JSON",)),
    "a line that is no prompt": Refusal(make=prompt_file("p.jsonl", b"3\n"), words=("line 1: expected a prompt",)),
    "an empty list of prompts": Refusal(make=rollout(prompts=[]), words=("$.hooks[1]",)),
    "prompts without their task": Refusal(make=rollout(task_column="task"), words=("has no column 'task'",)),
    "a window beyond the steps": Refusal(make=rollout(window=[0, 99]), words=("`window` must be two indices",)),
    "last steps of steps with chance": Refusal(make=rollout(last_steps=2), words=("go with the sampler 'ode'",)),
    "two ends": Refusal(
        make=rollout(last_steps=2, sigma_max=0.5, sampler="ode"), words=("both say where the end starts",)
    ),
    "early visits of no end": Refusal(make=rollout(early_visits=2), words=("`early_visits` counts states before",)),
    "shares above 1": Refusal(
        make=written(hooks=[{"type": "interval_times", "diffusion_ratio": 0.9}, {"type": "target_replacer"}]),
        words=("$.hooks[0]: ", "shares of one batch"),
    ),
    "a correction of nothing": Refusal(
        make=written(hooks=[{"type": "twin_flow", "adversarial_weight": 0, "rectification_weight": 1}]),
        words=("$.hooks[0]: ", "nothing trains the branch"),
    ),
    "a teacher that is not there": Refusal(
        make=teachers({"ink": "./nowhere"}), words=("$.hooks[0].teachers.ink: ", "no such file or folder")
    ),
    "a teacher called base": Refusal(make=teachers({"base": "a/b"}), words=("none of them 'base'",)),
    "a route to nobody": Refusal(
        make=lambda user: own_teacher(user, routes={"a": "nobody"}), words=("`routes` lead to 'nobody'",)
    ),
    "a teacher of another architecture": Refusal(
        make=lambda user: teachers({"flux": str(user.mine / "flux.safetensors")})(user),
        words=("$.hooks[0].teachers.flux: ", "made for another model"),
    ),
    "a teacher in a folder that is here": Refusal(
        make=teachers({"ink": "tests/nowhere"}), words=("$.hooks[0].teachers.ink: ", "'tests' is a folder here")
    ),
    "a training adapter that is not there": Refusal(
        make=written(adapter={"training_adapter": "./nowhere.safetensors"}),
        words=("$.adapter.training_adapter: ", "no such file or folder"),
    ),
    "a training adapter of another architecture": Refusal(
        make=lambda user: user.write(adapter={"training_adapter": {"path": str(user.mine / "flux.safetensors")}}),
        words=("$.adapter.training_adapter: ", "made for another model", "single_transformer_blocks"),
    ),
    "a network as training adapter": Refusal(
        make=lambda user: user.write(
            adapter={
                "training_adapter": str(user.mine / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
            }
        ),
        words=("$.adapter.training_adapter: ", "has layer names of no known format"),
    ),
    "a training adapter that may not be fetched": Refusal(
        make=written(adapter={"training_adapter": "owner/name/file.safetensors"}),
        words=("$.adapter.training_adapter: ", "'owner/name/file.safetensors' is not on this disk", "HF_HUB_OFFLINE"),
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    "a training adapter without strength": Refusal(
        make=written(adapter={"training_adapter": {"path": "owner/name", "strength": 0}}),
        words=("$.adapter.training_adapter.strength: ", "expected a number above 0"),
    ),
    "a judge that is not there": Refusal(
        make=lambda user: reward(user, {}, model="./nowhere"),
        words=("$.hooks[0].rewards[0].model: ", "'./nowhere' is no folder here"),
    ),
    "a judge that is a file": Refusal(
        make=lambda user: reward(user, {}, model=str(user.run)), words=("rewards[0].model: ", "is a file")
    ),
    "a judge's empty folder": Refusal(make=lambda user: reward(user, {}), words=("a folder without config.json",)),
    "a judge without weights": Refusal(
        make=lambda user: reward(user, {"config.json": "{}"}), words=("has no safetensors weights",)
    ),
    "a judge that is not in the cache, offline": Refusal(
        make=lambda user: reward(user, {}, model="nobody/nothing"),
        words=("rewards[0].model: ", "not in the Hub's cache", "HF_HUB_OFFLINE"),
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    "a head that is not there": Refusal(
        make=lambda user: reward(user, {}, type="aesthetic", model="a/b", head="nowhere.safetensors"),
        words=("$.hooks[0].rewards[0].head: ", "cannot be read", "give a safetensors file"),
    ),
    "an encoder that is not there": Refusal(
        make=written(hooks=[{"type": "feature_alignment", "source": "external", "block_index": 0, "encoder": "./no"}]),
        words=("$.hooks[0].encoder: ", "'./no' is no folder here"),
    ),
    "a tracker that is not installed": Refusal(
        make=written(logging={"trackers": ["clearml"]}), words=("$.logging.trackers[0]: ", "pip install clearml")
    ),
    "fp16 without a GPU": Refusal(
        make=written(model={"dtype": "fp16"}, training={"mixed_precision": "fp16"}),
        words=("$.training.mixed_precision: ", "needs a GPU"),
    ),
    "an option that the optimiser does not take": Refusal(
        make=written(training={"optimizer_args": {"eps": -1}}),
        words=("$.training.optimizer_args: ", "'adamw' cannot be built"),
    ),
    "two options of the optimiser that exclude each other": Refusal(
        make=written(training={"optimizer_args": {"fused": True, "foreach": True}}),
        words=("$.training.optimizer_args: ", "'adamw' cannot be built"),
    ),
    "an optimiser that is not installed": Refusal(
        make=written(training={"optimizer": "no_such_package:Lion"}),
        words=("$.training.optimizer: ", "'no_such_package'", "'adamw'"),
        more=("--allow-imports",),
    ),
    "an optimiser that torch does not have": Refusal(
        make=written(training={"optimizer": "torch.optim:AdamX"}),
        words=("$.training.optimizer: ", "no optimiser 'AdamX'", "did you mean"),
    ),
    "a part of torch.optim that is no optimiser": Refusal(
        make=written(training={"optimizer": "torch.optim:lr_scheduler"}),
        words=("$.training.optimizer: ", "no optimiser 'lr_scheduler'"),
    ),
    "an optimiser that wants a closure": Refusal(
        make=written(training={"optimizer": "torch.optim:LBFGS"}),
        words=("$.training.optimizer: ", "computes the loss several times"),
    ),
    "an optimiser of sparse gradients": Refusal(
        make=written(training={"optimizer": "torch.optim:SparseAdam"}),
        words=("$.training.optimizer: ", "sparse gradients only"),
    ),
    "an optimiser of matrices for a whole network": Refusal(
        make=written(adapter=None, hooks=[{"type": "flow_matching_loss"}], training=MUON),
        words=("$.training.optimizer_args: ", "only supports 2D parameters"),
    ),
    "an option of an optimiser that fails in its first step": Refusal(
        make=written(training={"optimizer": "torch.optim:Adam", "optimizer_args": {"capturable": True}}),
        words=("$.training.optimizer_args: ", "cannot take a step"),
    ),
    "a schedule for an optimiser that needs none": Refusal(
        make=written(training={"optimizer": "schedule_free", "lr_scheduler": "cosine"}),
        words=("$.training.lr_scheduler: ", "goes with no 'cosine' rate", "'constant_with_warmup'"),
    ),
    "a rate that no float holds": Refusal(
        make=written(training={"learning_rate": 1e300}), words=("$.training.learning_rate: ", "1e+300")
    ),
    "a beta that no float holds": Refusal(
        make=written(hooks=[], method={"flow_dpo": {"beta": 1e300}}), words=("flow_dpo.beta: ", "1e+300")
    ),
    "a thousand workers": Refusal(
        make=written(training={"dataloader_num_workers": 1000}),
        words=("$.training.dataloader_num_workers: ", "would exhaust this machine"),
    ),
    "an output where no folder can be made": Refusal(
        make=written(output_dir="/proc/x"), words=("$.output_dir: ", "no folder can be made in /proc")
    ),
    "an argument of another type": Refusal(
        make=changed_model(lambda model: None, pipeline_arguments={"max_sequence_length": "x"}),
        words=("$.model.pipeline_arguments.max_sequence_length: ", "takes an integer", "found 'x'"),
    ),
    "an argument that flowhooks passes": Refusal(
        make=changed_model(lambda model: None, pipeline_arguments={"prompt": "x"}),
        words=("$.model.pipeline_arguments.prompt: ", "from flowhooks itself", "validation.prompts"),
    ),
    "a target that the digits do not have": Refusal(
        make=written(model=DIGITS, adapter={"target_modules": ["nope"]}),
        words=("$.adapter.target_modules: ", "no layer of SD3Transformer2DModel is named 'nope'"),
    ),
    "an argument that the digits do not take": Refusal(
        make=written(model={**DIGITS, "pipeline_arguments": {"nope": 1}}),
        words=("$.model.pipeline_arguments.nope: ", "takes no argument 'nope'"),
    ),
    "validation of a size that the digits refuse": Refusal(
        make=written(model=DIGITS, validation={"prompts": ["a"], "height": 31}),
        words=("$.validation.height: ", "31 pixels do not fit", "multiples of 8"),
    ),
    "a variant of the digits": Refusal(
        make=written(model={**DIGITS, "variant": "fp16"}), words=("$.model.variant: ", "no file of the variant")
    ),
    "ties under an objective without a formula for them": Refusal(
        make=ties, words=("$[0].ties: ", "for which no hook of this run has a formula", "write 'drop', or take 'ipo'")
    ),
    "ties and nothing else": Refusal(
        make=partial(ties, objective="ipo", pairs=False),
        words=("data.json: $: of 1 pair all are ties", "never which is better; add pairs"),
    ),
    "labels that say neither up nor down": Refusal(
        make=votes("up", "maybe", "1.5", "maybe"),
        words=("$.hooks[0].label: ", "3 of 4 samples have no label in 'label': 'maybe' (2, first ", "'1.5' (1", "down"),
    ),
    "labels that are missing, and others that say neither": Refusal(
        make=votes("up", "", "maybe", "0"),
        words=("$.hooks[0].label: ", "1 of 3 samples have no label in 'label': 'maybe'"),
    ),
    "a reference that is not there": Refusal(
        make=written(hooks=[{"type": "flow_dpo", "reference": "./no"}]),
        words=("$.hooks[0].reference: ", "no such file or folder"),
    ),
    "a reference to a start that there is not": Refusal(
        make=written(hooks=[{"type": "flow_dpo", "reference": "init"}]),
        words=("$.hooks[0].reference: ", "'init' is the adapter of `adapter.init_from`, and there is none"),
    ),
    "a start of a whole network as the reference": Refusal(
        make=written(
            adapter=None,
            hooks=[{"type": "flow_dpo", "reference": "init"}],
            training={"trainable": "transformer"},
        ),
        words=("$.hooks[0].reference: ", "is a second network", "'ema'"),
    ),
    "an average as the reference, under dropout": Refusal(
        make=written(adapter={"dropout": 0.1}, hooks=[{"type": "ipo", "reference": "ema"}], training={"use_ema": True}),
        words=("$.hooks[0].reference: ", "differences of two masks"),
    ),
    "an average that is the policy as the reference": Refusal(
        make=written(hooks=[{"type": "linear_dpo", "reference": "ema"}], training={"use_ema": True, "ema_decay": 0}),
        words=("$.hooks[0].reference: ", "is the policy itself, and every margin 0"),
    ),
    "an average as the reference that nothing keeps": Refusal(
        make=written(hooks=[{"type": "flow_dpo", "reference": "ema"}]),
        words=("$.hooks[0]: ", "needs an average of the weights", "training.use_ema"),
    ),
    "an end that a whole network cannot go back from": Refusal(
        make=written(
            adapter=None,
            hooks=[{"type": "flow_dpo", "reference": "ema", "stop_when": {"detector": "drift"}}],
            training={"trainable": "transformer", "use_ema": True},
        ),
        words=("$.hooks[0].stop_when: ", "keeps a copy of the last good step in memory"),
    ),
    "an anchor that is not there": Refusal(
        make=written(hooks=[{"type": "anchor_regularizer", "weight": 1, "role": "adapter:x", "adapter": "./no"}]),
        words=("$.hooks[0]: ", "no such file or folder"),
    ),
    "all held out": Refusal(
        make=written(validation={"holdout": 6}), words=("$.validation.holdout: ", "leave at least one to train on")
    ),
    "a precision that the weights cannot hold": Refusal(
        make=written(model={"dtype": "bf16"}, training={"mixed_precision": "fp16"}),
        words=("$.training.mixed_precision: ", "does not go with `model.dtype` 'bf16'"),
    ),
    "nothing to train": Refusal(make=written(adapter=None), words=("$.training.trainable: ", "`adapter` is null")),
    "a transformer with an adapter": Refusal(
        make=written(training={"trainable": "transformer"}), words=("$.adapter: ", '"adapter": null')
    ),
    "trained weights in bf16": Refusal(
        make=written(adapter=None, model={"dtype": "bf16"}, training={"trainable": "transformer"}),
        words=("$.model.dtype: ", "lose their updates"),
    ),
    "an algorithm of another library": Refusal(make=written(adapter={"algo": "loha"}), words=("$.adapter.algo: ",)),
    "magnitudes of another kind than LoRA": Refusal(
        make=written(adapter={"type": "lokr", "use_dora": True}),
        words=("$.adapter.use_dora: ", "only type 'lora' has magnitudes, not 'lokr'"),
    ),
    "magnitudes of a convolution in half precision": Refusal(
        make=written(
            model={"dtype": "bf16"},
            adapter={"use_dora": True, "target_modules": ["to_q", "pos_embed.proj"]},
            training={"mixed_precision": "bf16"},
        ),
        words=("$.adapter.target_modules: ", "'pos_embed.proj' names a convolution", "'fp32'"),
    ),
    "a warm-up of a constant rate": Refusal(
        make=written(training={"lr_scheduler": "constant", "lr_warmup_steps": 5}),
        words=("$.training.lr_warmup_steps: ", "has no warm-up"),
    ),
    "images for some prompts of validation": Refusal(
        make=written(validation={"prompts": ["a", "b"], "images": [None]}),
        words=("$.validation.images: ", "has length 1, and `prompts` 2"),
    ),
    "an image of validation that is none": Refusal(
        make=written(validation={"prompts": ["a"], "images": ["absent.png"]}),
        words=("$.validation.images[0]: ", "absent.png cannot be read: there is no such file"),
    ),
    "a rollout that is held out": Refusal(
        make=written(data=None, validation={"holdout": 1}, hooks=[{"type": "flow_grpo", "rewards": [JUDGE]}, PROMPTED]),
        words=("$.validation.holdout: ", "samples that a run generates cannot be held out"),
    ),
    "differences of dropped predictions": Refusal(
        make=written(adapter={"dropout": 0.1}, hooks=[{"type": "target_replacer", "target_mode": "flow_map"}]),
        words=("$.hooks[0]: ", "adapter.dropout"),
    ),
    "activations that nothing recomputes, offloaded": Refusal(
        make=written(model={"checkpoint_offload": True}),
        words=("$.model.checkpoint_offload: ", "`model.gradient_checkpointing`"),
    ),
    "blocks that nothing recomputes, offloaded": Refusal(
        make=written(model={"offload": "blocks"}),
        words=("$.model.offload: ", "`model.gradient_checkpointing`", "set that to true, or this to 'none'"),
    ),
    "blocks that are trained, offloaded": Refusal(
        make=written(
            model={"offload": {"blocks": 0.5}, "gradient_checkpointing": True},
            adapter=None,
            training={"trainable": "transformer"},
            hooks=[],
        ),
        words=("$.model.offload: ", "the 'transformer' is trained"),
    ),
    "blocks to compile, and no compiler": Refusal(
        make=written(training={"compile": "blocks"}),
        words=("$.training.compile: ", "needs a C++ compiler, and there is no 'no-such-compiler'", "'none'"),
        environment={"CXX": "no-such-compiler"},
    ),
    "a text encoder": Refusal(
        make=written(training={"train_text_encoder": True}), words=("text encoders are not trained",)
    ),
    "no model named": Refusal(
        make=written(model={"pretrained_model_name_or_path": None}), words=("name a pipeline folder, a Hub id",)
    ),
    "no data named": Refusal(make=written(data=None), words=("$.data: ", "is missing")),
    "steps of which all is held out": Refusal(
        make=lambda user: (late(user), user.write(validation={"holdout": 1}, hooks=[])),
        words=("$.validation.holdout: ", "are held out; hold out fewer"),
    ),
}

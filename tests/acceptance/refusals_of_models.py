"""Models that are refused before weights load: one for every reason that is known."""

from __future__ import annotations

import shutil

from tests.acceptance.refusal_makers import (
    AGAIN,
    INDEX,
    Refusal,
    changed_index,
    changed_model,
    changed_settings,
    cut,
    experts,
    pickled,
    prior,
    sharded,
    unet,
    written,
)

MODELS: dict[str, Refusal] = {
    "a network of another kind": Refusal(
        make=prior,
        words=("$.model.pretrained_model_name_or_path: ", "its network is 'prior'", "`transformer` or `unet`"),
    ),
    "a U-Net of betas": Refusal(
        make=lambda user: (
            unet()(user),
            changed_index(scheduler=["diffusers", "UniPCMultistepScheduler"])(user),
        ),
        words=("a UniPCMultistepScheduler", "not flow matching"),
    ),
    "sigmas of flow matching for another prediction": Refusal(
        make=lambda user: (
            changed_index(scheduler=["diffusers", "UniPCMultistepScheduler"])(user),
            changed_model(
                lambda model: (model / "scheduler/scheduler_config.json").write_text(
                    '{"use_flow_sigmas": true, "prediction_type": "epsilon"}'
                )
            )(user),
        ),
        words=("a UniPCMultistepScheduler", "predicts 'epsilon'", "'flow_prediction'"),
    ),
    "a U-Net, compiled": Refusal(
        make=unet(training={"compile": "blocks"}),
        words=("$.training.compile: ", "UNet2DConditionModel", "convolutions"),
    ),
    "a U-Net, its blocks on the host": Refusal(
        make=unet(model={"offload": "blocks", "gradient_checkpointing": True}),
        words=("$.model.offload: ", "UNet2DConditionModel", "set it to 'none'"),
    ),
    "a U-Net with times of tokens": Refusal(
        make=unet(hooks=[{"type": "dual_times"}]), words=("$.hooks[0]: ", "UNet2DConditionModel", "no token")
    ),
    "a pipeline with sound beside its video": Refusal(
        make=changed_index(_class_name="MiniMaxH3ModularPipeline"),
        words=("$.model.pretrained_model_name_or_path: ", "cannot be trained: its samples have no batch axis"),
    ),
    "a ControlNet": Refusal(
        make=changed_index(
            _class_name="StableDiffusion3ControlNetPipeline", controlnet=["diffusers", "SD3ControlNetModel"]
        ),
        words=("$.model.pretrained_model_name_or_path: ", "in 'controlnet' a SD3ControlNetModel", "at every step"),
    ),
    "no network at all": Refusal(
        make=changed_index(
            **dict.fromkeys(("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        ),
        words=("it has no network",),
    ),
    "a part that no pipeline has": Refusal(
        make=changed_index(**{"../vae": ["diffusers", "AutoencoderKL"]}),
        words=("names a part '../vae'", "get the file again"),
    ),
    "a scheduler of betas": Refusal(
        make=changed_index(scheduler=["diffusers", "DDIMScheduler"]), words=("a DDIMScheduler", "not flow matching")
    ),
    "a scheduler of betas, by its settings": Refusal(
        make=changed_model(
            lambda model: (model / "scheduler/scheduler_config.json").write_text('{"beta_start": 0.01}')
        ),
        words=("whose noise levels come from betas", "FlowMatchEulerDiscreteScheduler"),
    ),
    "settings of a scheduler that are no JSON": Refusal(
        make=changed_model(lambda model: (model / "scheduler/scheduler_config.json").write_text("{")),
        words=("a scheduler whose settings cannot be read", AGAIN),
    ),
    "no scheduler": Refusal(make=changed_index(scheduler=None), words=("has no `scheduler`", AGAIN)),
    "no settings of a scheduler": Refusal(
        make=changed_model(lambda model: (model / "scheduler/scheduler_config.json").unlink()),
        words=("has no scheduler/scheduler_config.json", AGAIN),
    ),
    "no VAE": Refusal(make=changed_index(vae=None), words=("has no `vae`", "latents")),
    "an index that is no JSON": Refusal(
        make=changed_model(lambda model: (model / INDEX).write_text("{")),
        words=("model_index.json: cannot be read", AGAIN),
    ),
    "an index that is a list": Refusal(
        make=changed_model(lambda model: (model / INDEX).write_text("[]")),
        words=("model_index.json: expected an object",),
    ),
    "an index of no pipeline": Refusal(
        make=changed_model(lambda model: (model / INDEX).write_text("{}")), words=("has no `_class_name`", AGAIN)
    ),
    "a pipeline of another Diffusers": Refusal(
        make=changed_index(_class_name="StableDifusion3Pipeline"),
        words=("is a StableDifusion3Pipeline", "did you mean 'StableDiffusion3Pipeline'?"),
    ),
    "a part made by code of a stranger": Refusal(
        make=changed_index(vae=["stranger", "AutoencoderKL"]), words=("'vae' made by 'stranger'", "no such code is run")
    ),
    "a part that is not there": Refusal(
        make=changed_model(lambda model: shutil.rmtree(model / "text_encoder")),
        words=("has no folder 'text_encoder'", AGAIN),
    ),
    "settings that are not there": Refusal(
        make=changed_model(lambda model: (model / "transformer" / "config.json").unlink()),
        words=("has no transformer/config.json", AGAIN),
    ),
    "weights that are not there": Refusal(
        make=changed_model(lambda model: (model / "text_encoder" / "model.safetensors").unlink()),
        words=("has no text_encoder/model.safetensors", AGAIN),
    ),
    "pickled weights": Refusal(
        make=changed_model(pickled),
        words=("has no vae/diffusion_pytorch_model.safetensors", "pickled weights are not read"),
    ),
    "weights cut short": Refusal(make=changed_model(cut), words=("transformer/diffusion_pytorch_model", "cut short")),
    "a shard that is not there": Refusal(
        make=changed_model(sharded('{"weight_map": {"a": "one.safetensors"}}')),
        words=("has no transformer/one.safetensors",),
    ),
    "an index of shards that is none": Refusal(
        make=changed_model(sharded("[1]")), words=("index.json that cannot be read", AGAIN)
    ),
    "a variant that is not there": Refusal(
        make=changed_model(lambda model: None, variant="fp16"),
        words=("$.model.variant: ", "no file of the variant 'fp16'"),
    ),
    "a component that is not there": Refusal(
        make=changed_model(lambda model: None, component="transformer_2"),
        words=("$.model.component: ", "has no network 'transformer_2'; it has 'transformer'"),
    ),
    "an argument that the pipeline does not take": Refusal(
        make=changed_model(lambda model: None, pipeline_arguments={"max_sequence_lenght": 8}),
        words=("$.model.pipeline_arguments.max_sequence_lenght: ", "did you mean 'max_sequence_length'?"),
    ),
    "a network that recomputes nothing": Refusal(
        make=lambda user: (
            changed_index(transformer=["diffusers", "LuminaNextDiT2DModel"])(user),
            user.write(model={"gradient_checkpointing": True}, adapter={"target_modules": ["to_q"]}),
        ),
        words=("$.model.gradient_checkpointing: ", "LuminaNextDiT2DModel", "set it to false"),
    ),
    "one of two experts from noise to data": Refusal(make=experts, words=("$.hooks[0]: ", "two networks")),
    "an embedded pipeline that is none": Refusal(
        make=written(model={"pretrained_model_name_or_path": "digits:small"}),
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
        make=written(model={"pretrained_model_name_or_path": "modle"}), words=("it is no Hub id like owner/name",)
    ),
    "a model that is not in the cache, offline": Refusal(
        make=written(model={"pretrained_model_name_or_path": "nobody/nothing"}),
        words=("not in the Hub's cache", "HF_HUB_OFFLINE"),
        environment={"HF_HUB_OFFLINE": "1"},
    ),
    "a target that is not there": Refusal(
        make=written(adapter={"target_modules": ["to_q", "to_kk"]}),
        words=("$.adapter.target_modules: ", "no layer of SD3Transformer2DModel is named 'to_kk'", "to_k"),
    ),
    "a target that is no layer": Refusal(
        make=written(adapter={"target_modules": ["transformer_blocks.0"]}),
        words=("$.adapter.target_modules: ", "names `transformer_blocks.0`, a JointTransformerBlock"),
    ),
    "a size that the pipeline refuses": Refusal(
        make=lambda user: user.edit_blocks(lambda blocks: blocks[0].update(resolution=14)),
        words=("data.json: $[0].resolution: ", "images of 14x14 do not fit", "multiples of 4"),
    ),
    "validation of a size that the pipeline refuses": Refusal(
        make=written(validation={"prompts": ["a"], "height": 18, "width": 16}),
        words=("$.validation.height: ", "18 pixels do not fit", "multiples of 4"),
    ),
    "validation larger than the network's positions": Refusal(
        make=written(validation={"prompts": ["a"], "height": 64, "width": 16}),
        words=("$.validation.height: ", "64 pixels are more than the network has positions for; 32 is the most"),
    ),
    "data larger than the network's positions": Refusal(
        make=changed_model(changed_settings("transformer/config.json", pos_embed_max_size=2)),
        words=("data.json: $[0].resolution: ", "images of 16x16 are larger than", "8 is the most"),
    ),
    "validation pictures that no run drew": Refusal(
        make=lambda user: (
            (user.out / "validation").mkdir(parents=True),
            (user.out / "validation" / "step_000000.png").write_bytes(b"mine"),
            user.write(),
        ),
        words=("holds validation/step_000000.png and no run.json",),
    ),
}

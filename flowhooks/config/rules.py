"""Rules that no schema can express: keys of a run that only make sense together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flowhooks.errors import Problem
from flowhooks.hooks.preference_spec import AUTO, EMA, INIT
from flowhooks.hooks.registry import HOOKS, SOURCES

if TYPE_CHECKING:
    from flowhooks.hooks.blocks import HookConfig

#: Computing in a precision that the weights cannot hold gains nothing; fp16 without a loss scale loses small gradients.
_PRECISIONS = {"fp32": ("no", "bf16", "fp16"), "bf16": ("no", "bf16"), "fp16": ("fp16",)}
_TEXT_ENCODER = re.compile(r"^(?!keep_).*text_?encoder|^train_te$|^te_", re.I)
#: Hooks that say when and where to learn, not what.
_SETTINGS = ("timestep_schedule", "mask_reducer", "adapter_gate")
_SECTIONS = ("model", "adapter", "training")
#: The hook that draws rollouts of states, and the one that weighs later updates on them.
ROLLOUT, RATIOS = "on_policy_rollout", "flow_grpo"


def refuse_text_encoders(document: dict[str, Any], file: str) -> list[Problem]:
    """Remove every key that asks for text encoder training, with a problem for each: it is refused, not unknown."""
    problems = []
    for path, section in (("$", document), *((f"$.{name}", document.get(name)) for name in _SECTIONS)):
        if isinstance(section, dict):
            for key in [key for key in section if _TEXT_ENCODER.search(key)]:
                del section[key]
                message = "text encoders are not trained by any method here, only the transformer is; remove this key"
                problems.append(Problem(message, file, f"{path}.{key}"))
    return problems


def contradictions(document: dict[str, Any], file: str) -> Iterator[Problem]:
    """Problems between keys of a complete, schema-valid run."""
    training, adapter = document["training"], document["adapter"]
    dtype, mixed = document["model"]["dtype"], training["mixed_precision"]
    if mixed not in _PRECISIONS[dtype]:
        allowed = " or ".join(repr(each) for each in _PRECISIONS[dtype])
        yield Problem(
            f"{mixed!r} does not go with `model.dtype` {dtype!r}, which takes {allowed}",
            file,
            "$.training.mixed_precision",
        )
    if document["model"]["checkpoint_offload"] and not document["model"]["gradient_checkpointing"]:
        message = (
            "there is nothing to offload without `model.gradient_checkpointing`; set that to true, or this to false"
        )
        yield Problem(message, file, "$.model.checkpoint_offload")
    if document["model"]["offload"] != "none":
        if not document["model"]["gradient_checkpointing"]:
            message = (
                "without `model.gradient_checkpointing` the weights of all blocks stay on the device until the "
                "backward pass, so nothing is gained; set that to true, or this to 'none'"
            )
            yield Problem(message, file, "$.model.offload")
        if training["trainable"] == "transformer":
            message = "only frozen weights leave the device, and the 'transformer' is trained; set it to 'none'"
            yield Problem(message, file, "$.model.offload")
    if training["trainable"] == "adapter" and adapter is None:
        message = "'adapter' is trained, but `adapter` is null; give it a section, or train the 'transformer'"
        yield Problem(message, file, "$.training.trainable")
    if training["trainable"] == "transformer" and adapter is not None:
        yield Problem(
            'the transformer is trained, so there is no place for an adapter; write "adapter": null', file, "$.adapter"
        )
    if training["trainable"] == "transformer" and dtype != "fp32":
        message = f"trained weights in {dtype} lose their updates; use 'fp32' and mixed_precision {dtype!r}"
        yield Problem(message, file, "$.model.dtype")
    if training["trainable"] == "transformer" and document["model"]["quantization"] is not None:
        message = "quantised weights take no updates; write null, or train an 'adapter'"
        yield Problem(message, file, "$.model.quantization")
    if adapter is not None and adapter["type"] != "lycoris" and adapter["algo"] is not None:
        message = f"only type 'lycoris' takes an algorithm, not {adapter['type']!r}; remove `algo` or change `type`"
        yield Problem(message, file, "$.adapter.algo")
    if adapter is not None and adapter["use_dora"] and adapter["type"] != "lora":
        message = f"only type 'lora' has magnitudes, not {adapter['type']!r}; set this to false or change `type`"
        yield Problem(message, file, "$.adapter.use_dora")
    if training["lr_scheduler"] == "constant" and training["lr_warmup_steps"]:
        message = "the scheduler 'constant' has no warm-up; use 'constant_with_warmup', or 0 steps"
        yield Problem(message, file, "$.training.lr_warmup_steps")
    if training["optimizer"] == "schedule_free" and not training["lr_scheduler"].startswith("constant"):
        message = (
            f"'schedule_free' averages the weights in place of a schedule, and goes with no "
            f"{training['lr_scheduler']!r} rate; use 'constant', or 'constant_with_warmup'"
        )
        yield Problem(message, file, "$.training.lr_scheduler")


def disagreements(document: dict[str, Any], hooks: Sequence[HookConfig], file: str) -> Iterator[Problem]:
    """Problems between a hook and the rest of a run."""
    prompts = len(document["validation"]["prompts"])
    for key in ("images", "texts"):
        entries = len(document["validation"][key])
        if entries and entries != prompts:
            message = f"has length {entries}, and `prompts` {prompts}; give each prompt one entry, `null` for none"
            yield Problem(message, file, f"$.validation.{key}")
    dropout = document["adapter"] is not None and document["adapter"]["dropout"]
    yield from _update_faults(hooks, dropout, file)
    for hook in hooks:
        if hook.type in SOURCES and document["validation"]["holdout"]:
            message = "samples that a run generates cannot be held out; set it to 0, and judge its validation images"
            yield Problem(message, file, "$.validation.holdout")
        differing = "flow_map" if hook.options.get("target_mode") == "flow_map" else hook.type
        if differing in ("flow_map", "twin_flow_target") and dropout:
            message = (
                f"{differing!r} takes differences of two predictions, which `adapter.dropout` {dropout} would make "
                "differences of two masks; set it to 0"
            )
            yield Problem(message, file, hook.where)
        yield from _reference_faults(document, hook, file)
        if hook.options.get("stop_when") not in (None, AUTO) and document["training"]["trainable"] == "transformer":
            message = (
                "keeps a copy of the last good step in memory, of the whole transformer several times its size; train "
                "an 'adapter', or leave it out"
            )
            yield Problem(message, file, f"{hook.where}.stop_when")


def _update_faults(hooks: Sequence[HookConfig], dropout: float, file: str) -> Iterator[Problem]:
    """Problems between a rollout, how many updates train on it, and what weighs them."""
    found = {hook.type: hook for hook in hooks}
    rollout, objective = found.get(ROLLOUT), found.get(RATIOS)
    updates = 1 if rollout is None else rollout.options["updates_per_rollout"]
    if rollout is not None and updates > 1:
        where = f"{rollout.where}.updates_per_rollout"
        if objective is None:
            message = (
                f"{updates} updates on one rollout are weighed by {RATIOS!r}, which is not in this run: other hooks "
                "learn from what the model has just sampled; set it to 1"
            )
            yield Problem(message, file, where)
        elif dropout:
            message = (
                f"the ratios of {updates} updates on one rollout would compare two masks of `adapter.dropout` "
                f"{dropout}; set that to 0, or this to 1"
            )
            yield Problem(message, file, where)
    if objective is not None and updates == 1:
        for name in HOOKS[RATIOS].unchecked(objective.options).of_later_updates:
            message = (
                "counts from the second update on a rollout, and `updates_per_rollout` is 1, where every ratio is 1; "
                "set that to 2 or more, or leave this out"
            )
            yield Problem(message, file, f"{objective.where}.{name}")


def _reference_faults(document: dict[str, Any], hook: HookConfig, file: str) -> Iterator[Problem]:
    """Problems between the reference model of a preference objective and the rest of a run."""
    adapter, training, where = document["adapter"], document["training"], f"{hook.where}.reference"
    named = hook.options.get("reference") if hook.type in HOOKS else None
    if named == INIT and training["trainable"] == "transformer":
        message = (
            "'init' is a copy of what is trained, and of the whole transformer that is a second network; train an "
            "'adapter', or compare with the average of the weights, 'ema'"
        )
        yield Problem(message, file, where)
    elif named == INIT and adapter is not None and adapter["init_from"] is None:
        message = (
            "'init' is the adapter of `adapter.init_from`, and there is none: a new adapter starts as the base; leave "
            "this out, or name an adapter there"
        )
        yield Problem(message, file, where)
    if named in (INIT, EMA) and adapter is not None and adapter["dropout"]:
        message = (
            f"{named!r} is compared with the policy under `adapter.dropout` {adapter['dropout']}, so that margins "
            "would be differences of two masks; set that to 0, or compare with the 'base'"
        )
        yield Problem(message, file, where)
    if named == EMA and training["use_ema"] and training["ema_decay"] == 0:
        message = "'ema' of `training.ema_decay` 0 is the policy itself, and every margin 0; set that to 0.99 or more"
        yield Problem(message, file, where)


def draws(hooks: Sequence[HookConfig]) -> bool:
    """Whether a run generates all of its training samples from its own prompts, and so needs no data."""
    if any(hook.type == "flow_matching_loss" for hook in hooks):
        return False
    return any(hook.options.get("prompts") is not None for hook in hooks if hook.type in SOURCES)


def plain(hooks: Sequence[HookConfig]) -> str | None:
    """Return a sentence for a run without a method, or with `sft` alone; None where a hook changes what is learned."""
    if any(hook.type not in _SETTINGS for hook in hooks):
        return None
    return (
        "this is plain flow matching, noise - latents learned from the data; a `method` other than `sft` learns "
        "something else"
    )


def incomplete(document: dict[str, Any], hooks: Sequence[HookConfig], file: str) -> Iterator[Problem]:
    """Return problems of a run that lacks something it needs to train, besides hooks."""
    if document["model"]["pretrained_model_name_or_path"] is None:
        message = "is missing; name a pipeline folder, a Hub id, or 'digits'"
        yield Problem(message, file, "$.model.pretrained_model_name_or_path")
    if document["data"] is None and not draws(hooks):
        yield Problem(
            "is missing; name a data set file or a folder of images, or write the data sets here", file, "$.data"
        )

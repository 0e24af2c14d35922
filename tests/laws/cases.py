"""What the laws run over: every hook of the registry in at least one recipe, and every kind of adapter."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

import flowhooks
from flowhooks.hooks.registry import HOOKS
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Batch, StepResult
from flowhooks.probe import Condition, FlowModel
from tests.families import learnt

DPO = {"type": "flow_dpo", "norm_type": "masked_mean", "auto_beta": True}
MASK = {"type": "mask_reducer", "mask_dilate": 1}
ANCHOR = {"type": "anchor_regularizer", "role": "reference", "weight": 0.05}
WALK = {"type": "timestep_schedule", "flow_custom_timesteps": "801,694,548,338", "flow_timesteps_mode": "round-robin"}

LAYERSYNC = {"type": "feature_alignment", "block_index": 0, "teacher_block_index": 1, "weight": 0.2}
SELF_FLOW = {"type": "feature_alignment", "source": "self_flow", "block_index": 0, "teacher_block_index": 1}
PROJECTED = {"projector_depth": 2, "projector_width": 16}

ROLLOUT = {
    "type": "on_policy_rollout",
    "prompts": [{"prompt": "one", "task": "b"}, {"prompt": "a photo of two", "task": "b"}],
    "num_inference_steps": 4,
    "visits": 2,
    "pipeline_arguments": {"guidance_scale": 2.0},
}

CLIMB = {
    "type": "on_policy_rollout",
    "prompts": ["one", "a photo of two"],
    "sampler": "ode",
    "num_inference_steps": 4,
    "last_steps": 2,
    "early_visits": 1,
    "weighting": "dt",
    "pipeline_arguments": {"guidance_scale": 2.0},
}

MOVING = {"window": [0, 2], "window_every": 2}
INKS = [{"type": "flowhooks.digits.rewards:Ink"}, {"type": "flowhooks.digits.rewards:Ink", "name": "b", "weight": -3.0}]

SCORED = {
    "type": "ends",
    "prompts": ["one", "a photo of two"],
    "num_inference_steps": 2,
    "group_size": 3,
    "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
    "pipeline_arguments": {"guidance_scale": 2.0},
}

RECIPES = {
    **{type: [{"type": type, **spec.law}] for type, spec in HOOKS.items() if spec.law is not None},
    "sft": [],
    "sft_masked": [MASK, WALK],
    "masked_flow_dpo": [DPO, MASK, ANCHOR, WALK],
    "flow_dpo_ema_anchor": [
        {"type": "flow_dpo", "norm_type": "mean", "sft_loss_weight": 0.1},
        {"type": "paired_views"},
        {"type": "anchor_regularizer", "role": "ema", "weight": 0.1},
    ],
    "anyflow_flow_map": [
        {"type": "target_replacer", "target_mode": "flow_map", "velocity": "reference", "rescale": "sample"},
        {"type": "interval_times", "r_timestep_sampler": "mixture"},
    ],
    "anyflow_teacher": [
        {"type": "target_replacer", "teacher_rollout_steps": 3},
        {"type": "time_conditioning", "deltatime_type": "t-r"},
        WALK,
    ],
    "anyflow_shortcut_ema": [
        {"type": "target_replacer", "target_mode": "shortcut", "weighting": "sigma", "rescale": "branch"},
        {"type": "interval_times", "r_timestep_sampler": "mixture"},
        MASK,
    ],
    "anyflow_on_policy": [
        {"type": "target_replacer", "target_mode": "flow_map"},
        {"type": "interval_times", "r_timestep_sampler": "mixture"},
        {"type": "distribution_matching", "weight": 0.5, "jumps": 2, "critic_rank": 2},
    ],
    "dmd": [
        {
            "type": "distribution_matching",
            "student": "renoise",
            "jumps": 2,
            "teacher_guidance": 2.0,
            "critic_rank": 2,
        },
    ],
    "twin_flow_ema": [
        {"type": "twin_flow_target", "enhanced_ratio": 0.5},
        {"type": "interval_times", "r_timestep_sampler": "mixture"},
        {"type": "twin_flow"},
        MASK,
    ],
    "twin_flow_branch": [
        {"type": "target_replacer", "target_mode": "flow_map"},
        {"type": "interval_times", "r_timestep_sampler": "mixture"},
        {"type": "twin_flow", "rectification_weight": 0, "shift": 1.0},
        {"type": "time_conditioning", "deltatime_type": "t-r"},
    ],
    "flow_opd": [
        ROLLOUT,
        {"type": "teacher_velocity", "teachers": "written by the test"},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
    ],
    "flow_grpo": [
        {**ROLLOUT, "group_size": 2, "offload_states": True},
        {"type": "flow_grpo", "rewards": [{"type": "flowhooks.digits.rewards:Ink"}]},
    ],
    "adjoint_matching": [
        CLIMB,
        {"type": "adjoint_target", "rewards": [{"type": "flowhooks.digits.rewards:Ink"}]},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
    ],
    "adjoint_full": [
        {**CLIMB, "offload_states": True},
        {
            "type": "adjoint_target",
            "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
            "adjoint": "full",
            "regularizer": {"2": 1.0, "4": 0.5},
        },
    ],
    "adjoint_gated": [
        {**CLIMB, "last_steps": None, "sigma_max": 0.8, "early_visits": 0},
        {
            "type": "adjoint_target",
            "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
            "adjoint": "lookahead",
            "smoothing": {"samples": 2, "sigma": 0.1},
        },
        {"type": "adapter_gate", "sigma": 0.8},
        {"type": "anchor_regularizer", "role": "adapter:b", "weight": 0.1, "adapter": "written by the test"},
    ],
    "flow_grpo_sft": [
        {**ROLLOUT, "group_size": 2},
        {"type": "flow_grpo", "rewards": [{"type": "flowhooks.digits.rewards:Ink"}]},
        {"type": "flow_matching_loss", "prediction": "data", "weight": 0.5, "masked": True},
    ],
    "flow_grpo_updates": [
        {**ROLLOUT, "group_size": 2, "updates_per_rollout": 2, "noise_schedule": "constant", "shared_start": True},
        {"type": "flow_grpo", "rewards": INKS, "combine": "decoupled", "ratio": "guarded", "kl_weight": 0.1},
    ],
    "flow_grpo_trust": [
        {**ROLLOUT, "group_size": 2, "updates_per_rollout": 3, "visits": 1, "offload_states": True, **MOVING},
        {"type": "flow_grpo", "rewards": INKS, "spread": "batch", "trust": "divergence", "divergence_threshold": 1.0},
    ],
    "online_dpo": [
        {**SCORED, "updates_per_rollout": 3},
        {"type": "best_and_worst"},
        {"type": "flow_dpo", "beta": 50.0},
    ],
    "diffusion_nft": [
        {**SCORED, "sampled_by": "old", "updates_per_rollout": 2},
        {"type": "diffusion_nft", "beta": 0.5},
        {"type": "lagged_copy", "growth": 0.25},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
    ],
    "awm_ema": [
        {**SCORED, "sampled_by": "ema", "updates_per_rollout": 2},
        {"type": "awm", "clip_range": 0.01},
        {"type": "lagged_copy", "growth": 0.25},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
        {"type": "anchor_regularizer", "role": "old", "weight": 1.0},
    ],
    "dgpo": [
        {**SCORED, "sampled_by": "old", "noise": "group", "updates_per_rollout": 2},
        {"type": "dgpo", "reference_guidance": 4.5},
        {"type": "lagged_copy", "growth": 0.25},
    ],
    "crd": [
        {**SCORED, "sampled_by": "sampler", "updates_per_rollout": 2},
        {"type": "crd", "form": "relative"},
        {"type": "lagged_copy", "growth": 0.25, "least": 0.1},
        {"type": "lagged_copy", "role": "sampler", "every": 2},
        {"type": "anchor_regularizer", "weight": 0.1, "least_weight": 1e-4, "guidance_scale": 4.5},
    ],
    "layersync": [{**LAYERSYNC, **PROJECTED, "scheduler": "cosine", "decay_steps": 4, "similarity_threshold": 0.9}],
    "flow_dpo_backbone": [
        {"type": "flow_dpo"},
        {**LAYERSYNC, **PROJECTED, "source": "backbone", "block_index": "transformer_blocks.0"},
        MASK,
    ],
    "self_flow_ema": [{**SELF_FLOW, **PROJECTED}],
    "flow_dpo_self_flow_ema": [
        {"type": "flow_dpo", "beta": 2.0},
        {**SELF_FLOW, **PROJECTED},
        {"type": "dual_times", "mask_ratio": 0.5, "selection": "bernoulli"},
        MASK,
        WALK,
    ],
    "anyflow_layersync": [
        {"type": "target_replacer", "target_mode": "flow_map"},
        {"type": "interval_times", "r_timestep_sampler": "mixture"},
        LAYERSYNC,
    ],
}
#: Recipes that may ask less often than they declare: how often is drawn, or depends on the state.
DRAWN = {"anyflow_on_policy", "dmd", "adjoint_full", "adjoint_gated"}
#: Recipes that draw: the pipeline's own loop reads its schedule on the host, step by step.
DRAWING = {
    "adjoint_full",
    "adjoint_gated",
    "adjoint_matching",
    "flow_grpo",
    "flow_grpo_sft",
    "flow_grpo_trust",
    "flow_grpo_updates",
    "flow_opd",
    "online_dpo",
    "diffusion_nft",
    "awm_ema",
    "dgpo",
    "crd",
}
#: Recipes for adapters of PEFT's only.
PEFT_ONLY = {"anyflow_on_policy", "dmd"}

ADAPTERS = {
    "lora": {"type": "lora", "rank": 4, "alpha": 8},
    "dora": {"type": "lora", "use_dora": True, "rank": 4, "alpha": 8},
    "loha": {"type": "loha", "rank": 2, "alpha": 2},
    "lokr": {"type": "lokr", "rank": 2, "alpha": 2},
    "lycoris_locon": {"type": "lycoris", "algo": "locon", "rank": 4, "alpha": 2},
    "lycoris_loha": {"type": "lycoris", "algo": "loha", "rank": 2, "alpha": 1},
    "lycoris_lokr": {"type": "lycoris", "algo": "lokr", "rank": 2, "alpha": 1},
}


def run_document(recipe: str, adapter: str) -> dict:
    hooks = [{**block, **_written(block)} for block in RECIPES[recipe]]
    return {
        "model": {"pipeline_arguments": {"max_sequence_length": 8}},
        "adapter": ADAPTERS[adapter],
        "hooks": hooks,
        "training": {"use_ema": "ema" in recipe, "seed": 3},
    }


def _written(block: dict) -> dict:
    """The frozen adapter, wherever a block names one."""
    found = {"teachers": {"b": teacher()}} if "teachers" in block else {}
    return {**found, "adapter": teacher()} if "adapter" in block else found


@cache
def teacher() -> str:
    """The folder of an adapter off the base, the same one every time, there as long as the tests run."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with flowhooks.attach(shared_model(), {"adapter": {"rank": 2}, "hooks": []}) as session:
            with torch.no_grad():
                for i, p in enumerate(session.parameters().values()):
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            session.adapter.save(Path(folder), {})
    return folder


def tiny_model() -> FlowModel:
    """A new tiny SD3, which all laws are held on."""
    return learnt("sd3")


@cache
def shared_model() -> FlowModel:
    """One tiny SD3 for everybody who attaches to it and detaches: that leaves no trace, by the first law."""
    return tiny_model()


@cache
def _condition(size: int) -> Condition:
    """Of the tiny SD3's text encoders, which nothing that is attached changes."""
    return shared_model().encode_prompts(["one", "a photo of two", "three"][:size])


def batch_for(step: int, size: int = 2) -> Batch:
    """Data of one micro-step on the tiny SD3; the last mask of every third batch is empty."""
    generator = torch.Generator().manual_seed(100 + step)
    mask = (torch.rand(size, 1, 8, 8, generator=generator) > 0.5).float()
    if step % 3 == 2:
        mask[-1] = 0
    return Batch(
        clean=torch.randn(size, 4, 8, 8, generator=generator),
        rejected=torch.randn(size, 4, 8, 8, generator=generator),
        mask=mask,
        condition=_condition(size),
        files=tuple(f"{step}/{i}.png" for i in range(size)),
        records=tuple({"label": (step + i) % 2} for i in range(size)),
    )


class Loop:
    """Somebody's own training loop around a session: AdamW, one step a batch."""

    def __init__(self, session: Session, model: FlowModel):
        self.session, self.model = session, model
        self.optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-2)
        self.losses: list[torch.Tensor] = []

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            for result in self.chunks(batch_for(self.session.micro_step)):
                result.loss.backward()
                self.losses.append(result.loss.detach())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.session.updated()

    def chunks(self, batch: Batch, *, log: bool = True) -> Iterator[StepResult]:
        return self.session.steps(batch, log=log)

    def state(self) -> dict:
        weights = {name: p.detach().clone() for name, p in self.session.parameters().items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict(), "session": self.session.state_dict()}

    def load(self, state: dict) -> None:
        with torch.no_grad():
            for name, p in self.session.parameters().items():
                p.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.session.load_state_dict(state["session"])


@contextmanager
def looping(recipe: str, adapter: str = "lora", model: FlowModel | None = None) -> Iterator[Loop]:
    """A loop on the shared tiny pipeline, or on a model; the adapter's start is the same every time."""
    model = model or shared_model()
    torch.manual_seed(0)
    with flowhooks.attach(model, run_document(recipe, adapter)) as session:
        yield Loop(session, model)

"""Every method on pipelines that get images of each sample's own: a step, with the pipeline's own prediction, to which
the rejected side is no reference."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import flowhooks
from flowhooks.errors import ModelError
from flowhooks.hooks.on_policy_rollout.hook import Visited
from flowhooks.probe import Condition
from flowhooks.probe.values import same, tensors_in
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.states import RolloutState
from flowhooks.sampling.steps import Sampler
from tests.families import checks, learnt

SIMILAR = {"type": "reference_similarity", "measure": "l2"}
STEPS = {"num_inference_steps": 2}
METHODS = {
    "sft": {},
    "flow_dpo": {"norm_type": "masked_mean"},
    "anyflow": {},
    "self_flow": {"block_index": 0, "teacher_block_index": 1, "projector_depth": 0},
    "flow_opd": {"prompts": None, "visits": 1, **STEPS},
    "flow_grpo": {"prompts": None, "rewards": [SIMILAR], "group_size": 2, "visits": 1, **STEPS},
    "adjoint_matching": {"prompts": None, "rewards": [SIMILAR], **STEPS, "truncate": {"last_k": 2}, "early": "free"},
}
#: Tokens beside the sample's; text that sees the picture; a frame in place of the sample's.
BESIDE, JOINT, GIVEN = "flux-kontext", "qwen-image-edit", "wan22-5b-i2v"
CASES = [
    *((BESIDE, method) for method in METHODS),
    *((JOINT, method) for method in ("flow_dpo", "flow_grpo")),
    *((GIVEN, method) for method in ("flow_dpo", "flow_grpo", "adjoint_matching")),
]


def edits(model, seed: int = 0) -> flowhooks.Batch:
    """Pairs with masks and a picture each."""
    batch = checks.pairs(model)
    *_, height, width = model.layout(**model.size).vae_shape
    mask = torch.ones(len(batch.clean), 1, height, width)
    mask[..., : width // 2] = 0
    generator = torch.Generator().manual_seed(seed)
    return replace(
        batch,
        rejected=torch.randn(batch.clean.shape, generator=generator),
        mask=mask,
        prompts=checks.PROMPTS,
        records=({"task": "a"}, {"task": "a"}),
        references=tuple(checks.pictures(model)),
    )


def teacher(model, folder) -> dict:
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": []}) as session:
        with torch.no_grad():
            for p in session.parameters().values():
                p.add_(0.1)
        session.adapter.save(folder / "a", {})
    return {"teachers": {"a": str(folder / "a")}}


def document(method: str, options: dict, sigma: float) -> dict:
    """A run of a method; one that trains on data does so at this sigma."""
    drawn = "num_inference_steps" in options
    schedule = [] if drawn else [{"type": "timestep_schedule", "flow_custom_timesteps": [sigma]}]
    training = {"use_ema": method == "self_flow", "train_batch_size": 2}
    return {"adapter": {"rank": 2}, "hooks": schedule, "method": {method: options}, "training": training}


@contextmanager
def calls_of(model):
    """What the network is called with."""
    seen: list[list[torch.Tensor]] = []
    handle = model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append([t.detach().clone() for t in tensors_in([*args, *kwargs.values()])]),
        with_kwargs=True,
    )
    yield seen
    handle.remove()


def stepped(session, batch):
    """The results of a step, and the step of each."""
    steps, gather = [], session.assembly.penalties
    session.assembly.penalties = lambda step: steps.append(step) or gather(step)
    results = list(session.steps(batch))
    session.assembly.penalties = gather
    return results, steps


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_step_with_the_pipelines_own_prediction(name, method, tmp_path):
    model = learnt(name)
    options = {**METHODS[method], **(teacher(model, tmp_path) if method == "flow_opd" else {})}
    player = PipelineSampler(model, EncodedPrompts(model.pipe))
    batch = edits(model)
    # A method that samples does so itself.
    each = [] if "num_inference_steps" in options else zip(batch.prompts, batch.references, strict=True)
    runs = [player.draw([prompt], [0], Sampler(steps=2), [1], images=images) for prompt, images in each]
    sigma = runs[0].transitions[1].start if runs else 0.0
    torch.manual_seed(0)
    with flowhooks.attach(model, document(method, options, sigma)) as session:
        results, steps = stepped(session, batch)
        for step, result in zip(steps, results, strict=True):
            assert bool(result.loss.isfinite())
            view = step.views["main"]
            if isinstance(view.state, Visited):
                visit = view.state.visit
                images = [dict(visit.rollout.images)] * len(visit.rollout.prompts)
                condition = model.encode_conditions(visit.rollout.prompts, images)
                with torch.no_grad():
                    theirs = visit.velocity("policy")
                    mine = model.predict(visit.state, view.level, condition)
                found = step.predict("main")
            else:
                condition, found = view.condition, step.predict("main")
                visits = [
                    RolloutState(player=player, rollout=replace(run, states={1: view.noisy[i : i + 1]}), index=1)
                    for i, run in enumerate(runs)
                ]
                with torch.no_grad():
                    theirs = torch.cat([visit.velocity("policy") for visit in visits])
                    at = torch.full_like(view.level, sigma)
                    # The pipeline tells a flow map where its step ends.
                    end = {"r_sigma": at * 0 + runs[0].transitions[1].end} if method == "anyflow" else {}
                    mine = model.predict(view.noisy, at, condition, **end)
            seen = model.seen(mine, condition)
            # A flow map has times of its own.
            for each in (mine, *([found] if method != "anyflow" else [])):
                away = (each.detach() - theirs).abs()
                assert float((away if seen is None else away * seen).max()) < 1e-4
            assert seen is None or not (found * (1 - seen)).any(), "what is given weighs nothing"
        sum(result.loss for result in results).backward()
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())


def test_guidance_in_a_step_has_an_empty_prompt_with_the_samples_own_picture():
    """Qwen-Image-Edit's text encoder sees the picture beside the prompt."""
    model = learnt(JOINT)
    batch, pictures = edits(model), checks.pictures(model)
    bare = model.encode_conditions(["", ""], pictures)
    condition = Condition.unflatten(model.encode_conditions(batch.prompts, pictures, unprompted=True).flatten())
    null = model.null_conditions(condition.take([1, 0])).take([1, 0])
    assert same(null.samples, bare.samples) and null.signatures == bare.signatures
    noisy, sigma = batch.clean, torch.tensor([0.5, 0.9])
    with torch.no_grad():
        assert torch.equal(model.predict(noisy, sigma, condition), model.predict(noisy, sigma, batch.condition))
        assert torch.equal(model.predict(noisy, sigma, null), model.predict(noisy, sigma, bare))
    run = {**document("anyflow", {"target_mode": "flow_map", "guidance_scale": 2.0}, 0.5), "hooks": []}
    with flowhooks.attach(model, run) as session:
        session.step(replace(batch, condition=condition)).loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())
        with pytest.raises(ModelError, match="encodes an empty prompt together with each sample"):
            session.step(batch)


@pytest.mark.parametrize("method", METHODS)
def test_the_rejected_side_is_never_a_reference(method, tmp_path):
    """With another rejected side, the network gets the same beside its samples, whatever the method; only Flow-DPO
    predicts on it."""
    model = learnt(BESIDE)
    options = {**METHODS[method], **(teacher(model, tmp_path) if method == "flow_opd" else {})}
    found, batches = [], [edits(model, seed) for seed in (0, 1)]
    for batch in batches:
        torch.manual_seed(0)
        with flowhooks.attach(model, document(method, options, 0.5)) as session, calls_of(model) as calls:
            list(session.steps(batch))
        found.append(calls)
    tokens, differ = model.anatomy.tokens, 0
    for one, other in zip(*found, strict=True):
        for a, b in zip(one, other, strict=True):
            if torch.equal(a, b):
                continue
            assert method == "flow_dpo" and a.dim() == 3
            assert torch.equal(a[:, tokens:], b[:, tokens:]), "the tokens of the reference"
            differ += 1
    assert bool(differ) == (method == "flow_dpo")

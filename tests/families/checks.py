"""Checks of what works on a pipeline: each runs on a tiny one of the real classes, and raises when something does not
hold."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import flowhooks
from flowhooks.adapters.names import LORA_FILE, bare_key
from flowhooks.kernel.view import Batch
from flowhooks.probe import Condition, FlowModel, TokenSigma
from flowhooks.probe.calls import call_to_make, form_of, sized_by_image
from flowhooks.probe.learn import called_at
from flowhooks.probe.recomputing import gradient_checkpointing
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.references import examples
from flowhooks.probe.runs import first_network, walked
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.rollout import PipelineSampler, RolloutState, Sampler
from tests.families import learnt, pictured
from tests.traces import assert_same, trace

PROMPTS = ("a photo of two", "one")
RUN = {
    "adapter": {"type": "lora", "rank": 4, "alpha": 8},
    "hooks": [
        {"type": "flow_dpo", "norm_type": "mean", "beta": 100.0},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
    ],
}


#: Pipelines that take a height and a width and keep the shape of their picture.
OF_THE_TARGET = ("modular-wan21-i2v", "modular-wan22-i2v")


#: Pipelines that take several pictures a sample.
SEVERAL = tuple(
    f"{kind}{name}"
    for name in ("flux2-edit", "flux2-klein-edit", "qwen-image-edit-plus", "qwen-image-21-edit")
    for kind in ("", "modular-")
) + ("bria-fibo-edit",)


class Failed(AssertionError):
    """Something that a column claims does not hold."""


def pairs(model: FlowModel) -> Batch:
    """Two pairs of random latents with two prompts of different lengths, which a model encodes once."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(PROMPTS), *model.sample_shape)
    clean, rejected = (torch.randn(shape, generator=generator) for _ in range(2))
    if model not in _CONDITIONS:
        _CONDITIONS[model] = model.encode_conditions(prompts(model), pictures(model))
    return Batch(clean=clean, rejected=rejected, condition=_CONDITIONS[model])


def prompts(model: FlowModel) -> list[str]:
    """:data:`PROMPTS` in the form that the pipeline reads."""
    return [form_of(model.pipe)(prompt) for prompt in PROMPTS]


def pictures(model: FlowModel) -> list[dict[str, Any]]:
    """What :func:`pairs` pass beside their prompts: a picture each of its own, where the pipeline takes one."""
    shown = examples(model.contract.references, **model.size)
    return [dict(shown[k]) for k in (0, 2)] if shown else [{}, {}]


#: As long as the model is there.
_CONDITIONS: WeakKeyDictionary[FlowModel, Condition] = WeakKeyDictionary()


def gradients(model: FlowModel) -> dict[str, Tensor]:
    """The adapter's gradients after one Flow-DPO step away from its start."""
    torch.manual_seed(0)
    with flowhooks.attach(model, RUN) as session:
        step(session, model)
        session.step(pairs(model)).loss.backward()
        return {name: p.grad.clone() for name, p in session.parameters().items() if p.grad is not None}


def step(session: Any, model: FlowModel) -> None:
    """One Flow-DPO update of every adapter parameter."""
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-2)
    loss = session.step(pairs(model)).loss
    loss.backward()
    if not bool(loss.isfinite()):
        raise Failed(f"the loss is {float(loss)}")
    optimizer.step()
    optimizer.zero_grad()


def check_probe(name: str) -> None:
    learnt(name)


def check_flow_dpo(name: str) -> None:
    model = learnt(name)
    found = gradients(model)
    dead = [key for key, gradient in found.items() if not gradient.any() and _matters(model, key)]
    if not found or dead:
        raise Failed(f"no gradient reaches {dead[:3] or 'the adapter'}")


def _matters(model: FlowModel, key: str) -> bool:
    """Whether the base layer that an adapter's parameter sits on has any say in the prediction; a last block's text
    layers often have none."""
    layer = model.transformer.get_submodule(bare_key(key.partition(".lora_")[0]))
    batch = pairs(model)
    with torch.enable_grad():
        layer.weight.requires_grad_(True)
        noisy, sigma = batch.clean, torch.full((len(batch.clean),), sum(model.sigma_range) / 2)
        model.predict(noisy, sigma, batch.condition).square().sum().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    layer.weight.requires_grad_(False)
    return gradient is not None and bool(gradient.any())


def check_lora(name: str) -> None:
    """Trained, saved, loaded by the stock pipeline: the same latents as the trained one, other than the base's."""
    model = learnt(name)
    torch.manual_seed(0)
    base = latents(model)
    with tempfile.TemporaryDirectory() as folder, flowhooks.attach(model, RUN) as session:
        for _ in range(2):
            step(session, model)
        session.adapter.save(Path(folder), {})
        trained = latents(model)
        fresh = learnt(name)
        load_lora(fresh.pipe, folder)
        loaded = latents(fresh)
    if torch.equal(trained, base):
        raise Failed("training changes no latents")
    if not torch.allclose(trained, loaded, atol=1e-4 * float(trained.abs().max())):
        away = float((trained - loaded).abs().max())
        raise Failed(f"the file loaded by stock Diffusers gives latents {away:.2g} away")


def check_token_times(name: str, model: FlowModel | None = None) -> None:
    """Learning verifies mixed times; beyond it, equal ones are the plain prediction for prompts of any length, mixed
    ones are not, and gradient flows."""
    model = model or learnt(name)
    batch, sigma = pairs(model), middle(model)
    count = model.tokens(batch.clean).count
    index = (torch.arange(count) % 2).expand(len(sigma), -1)
    noisy = batch.clean.requires_grad_(True)
    low, _ = model.sigma_range
    plain, equal, mixed = (
        model.predict(noisy, sigma, batch.condition, token_sigma=told)
        for told in (
            None,
            *(
                TokenSigma(sigmas=torch.stack([sigma, low + part * (sigma - low)], 1), index=index)
                for part in (1.0, 0.2)
            ),
        )
    )
    away = float(((equal - plain).abs().max() / plain.abs().max().clamp(min=1)).detach())
    if away > 1e-4:
        raise Failed(f"equal times give a prediction {away:.2g} from that of one time")
    if torch.allclose(mixed, plain, atol=1e-4):
        raise Failed("the prediction does not depend on the times of tokens")
    mixed.square().sum().backward()
    if noisy.grad is None or not noisy.grad.isfinite().all() or not noisy.grad.any():
        raise Failed("no gradient reaches the sample")


def middle(model: FlowModel) -> Tensor:
    low, high = model.sigma_range
    return torch.full((len(PROMPTS),), low + 0.6 * (high - low))


def check_detach(name: str) -> None:
    """A step is taken, and what was attached is taken off: the pipeline is as it was, and predicts what it did."""
    model = learnt(name)
    batch, sigma = pairs(model), middle(model)
    with torch.no_grad():
        base = model.predict(batch.clean, sigma, batch.condition)
    model.anatomy  # noqa: B018
    before = trace(model.pipe, model.transformer)
    with flowhooks.attach(model, RUN) as session:
        step(session, model)
    assert_same(before, trace(model.pipe, model.transformer))
    with torch.no_grad():
        if not torch.equal(model.predict(batch.clean, sigma, batch.condition), base):
            raise Failed("the prediction is another one after a step and detaching")


def check_resume(name: str) -> None:
    """A run of two steps, and one that ended after the first and went on with what that left, to the last bit."""
    model, ends = learnt(name), []
    saved: dict[str, Any] = {}
    for seed, resumed in enumerate((False, True)):
        torch.manual_seed(seed)
        with flowhooks.attach(model, RUN) as session:
            weights = session.parameters()
            optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
            if resumed:
                with torch.no_grad():
                    for key, weight in weights.items():
                        weight.copy_(saved["weights"][key])
                optimizer.load_state_dict(saved["optimizer"])
                session.load_state_dict(saved["session"])
            else:
                _updated(session, model, optimizer)
                kept = {key: weight.detach() for key, weight in weights.items()}
                states = {"optimizer": optimizer.state_dict(), "session": session.state_dict()}
                saved = copy.deepcopy({"weights": kept, **states})
            _updated(session, model, optimizer)
            ends.append({key: weight.detach().clone() for key, weight in weights.items()})
    moved = [key for key, weight in ends[0].items() if not torch.equal(weight, saved["weights"][key])]
    others = [key for key, weight in ends[0].items() if not torch.equal(weight, ends[1][key])]
    if others or not moved:
        raise Failed(f"{others[0]} ends elsewhere in a resumed run" if others else "the second step moves nothing")


def _updated(session: Any, model: FlowModel, optimizer: Any) -> None:
    session.step(pairs(model)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    session.updated()


def check_replay(name: str) -> None:
    """Every step of a sample is visited again: the velocity is the one that was sampled with, and has a gradient."""
    model, steps = learnt(name), range(3)
    player = PipelineSampler(model, EncodedPrompts(model.pipe))
    rollout = player.draw(
        prompts(model)[:1],
        [0],
        Sampler(kind="sde", steps=len(steps)),
        keep=steps,
        keep_velocities=steps,
        images=pictures(model)[0],
    )
    weights = [weight for each in model.contract.networks_of(model.pipe).values() for weight in each.parameters()]
    for weight in weights:
        weight.requires_grad_(weight.is_floating_point())
    for index in steps:
        velocity = RolloutState(player=player, rollout=rollout, index=index).velocity("policy")
        theirs = rollout.velocities[index]
        away = float((velocity.detach() - theirs).abs().max() / theirs.abs().max().clamp(min=1))
        if away > 1e-5:
            raise Failed(f"step {index} replayed is {away:.2g} away")
        found = (
            torch.autograd.grad(velocity.square().mean(), weights, allow_unused=True) if velocity.requires_grad else ()
        )
        if not any(gradient is not None and bool(gradient.any()) for gradient in found):
            raise Failed(f"step {index} replayed has no gradient")


def check_checkpointing(name: str) -> None:
    model = learnt(name)
    plain = gradients(model)
    with gradient_checkpointing(model.transformer, True):
        saved = gradients(model)
    for key, gradient in plain.items():
        if not torch.allclose(gradient, saved[key], rtol=1e-3, atol=1e-6):
            raise Failed(f"the gradient of {key} changes")


@torch.no_grad()
def check_images(name: str) -> None:
    """Each of some samples with pictures of its own is predicted as the pipeline does, alone and beside the others: two
    of different pictures, one of two pictures where the pipeline takes :data:`SEVERAL`, and one of none where it runs
    without."""
    model = learnt(name)
    if not model.contract.references:
        raise Failed("the pipeline takes no image of each sample's own, or was not given one here")
    own = (model.size["width"], model.size["height"])
    sizes = [[own], [own]] if sized_by_image(model.pipe) or name in OF_THE_TARGET else [[(96, 64)], [(64, 96)]]
    sizes += [[(64, 64), (96, 64)]] if name in SEVERAL else []
    given = [
        {argument: pictured(each, seed=7 + 10 * seed + i) for i, argument in enumerate(model.contract.references)}
        for seed, each in enumerate(sizes)
    ]
    given += [{}] if model.contract.optional else []
    networks, conditions, states = model.contract.networks_of(model.pipe), [], []
    for seed, images in enumerate(given):
        prompt = prompts(model)[seed % 2]
        conditions.append(model.encode_conditions([prompt], [images]))
        generator = torch.Generator().manual_seed(7 + seed)
        with without_side_effects(model.pipe, networks):
            walk = walked(model.pipe, networks, model.call(prompt=prompt, generator=generator, **images), 3)
        places = [i for i, own_name in enumerate(walk.names) if own_name == model.component]
        asked, step = walk.calls[places[-1]], walk.steps[places[-1]]
        states.append((step.sample, torch.tensor([called_at(model, asked, step.sigma)]), step.velocity))
    noisy, sigma = (torch.cat([state[k] for state in states]) for k in (0, 1))
    together = model.predict(noisy, sigma, conditions[0].join(conditions[1:]))
    for i, (sample, level, theirs) in enumerate(states):
        for mine in (model.predict(sample, level, conditions[i]), together[i : i + 1]):
            away = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1))
            if away > 1e-5:
                raise Failed(f"the pipeline's prediction is {away:.2g} from ours")


def check_bf16(name: str) -> None:
    model = learnt(name, dtype=torch.bfloat16)
    if not all(bool(g.isfinite().all()) for g in gradients(model).values()):
        raise Failed("a gradient is not finite")


def load_lora(pipe: Any, folder: str) -> None:
    """By Diffusers' own loader: the pipeline's, or the network's where the pipeline class has none."""
    name = first_network(pipe)
    network = getattr(pipe, name)
    if name in getattr(pipe, "_lora_loadable_modules", ()):
        pipe.load_lora_weights(folder)
    elif hasattr(network, "load_lora_adapter"):
        network.load_lora_adapter(folder, prefix=name, weight_name=LORA_FILE)
    else:
        raise Failed(f"Diffusers has no LoRA loader for {type(pipe).__name__}")


@torch.no_grad()
def latents(model: FlowModel) -> Tensor:
    """What the stock pipeline draws in two steps, before decoding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        call = model.call(
            prompt=prompts(model)[0],
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            **model.example,
        )
        output = model.pipe(**call_to_make(model.pipe, call))
    first = output[0]
    return first if isinstance(first, Tensor) else torch.stack(list(first))

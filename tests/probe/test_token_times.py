"""A time per picture token: right where levels are mixed, on every pipeline that the probe learns."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import flowhooks
from flowhooks.adapters import build_adapter
from flowhooks.config import resolve_run
from flowhooks.errors import ModelError
from flowhooks.probe import TokenSigma, probe
from flowhooks.probe.levels import Broadcast, Levels, Mix
from flowhooks.probe.token_learning import _Learner, learn_tokens
from flowhooks.probe.tokens import TimeEntry
from flowhooks.probe.weight_names import WeightNames
from tests.copies import copier
from tests.families import PIPELINES, checks, learnt, pictured, tiny
from tests.probe.test_families import LEARNT
from tests.probe.two_copies import merged_prediction

#: A given frame in place of some of the sample's own tokens.
GIVEN = ["wan22-5b-i2v", "ltx-condition"]
#: The convolutions of a U-Net mix places, and Qwen-Image 2.1 adds a time for text to the times of the batch.
TIMED = [name for name in LEARNT if name not in ("stable-diffusion-xl", "qwen-image-21")]

#: The layers that make modulations, of a few kinds of network.
MODULATIONS = {
    "sd3": ["norm1.linear", "norm1_context.linear"],
    "flux": ["norm1.linear", "norm1_context.linear", "norm.linear"],
    "flux2": [
        "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.linear",
        "single_stream_modulation.linear",
    ],
    "qwen-image": ["img_mod.1", "txt_mod.1"],
    "sana": ["time_embed.linear", "linear_1"],
    "wan": ["time_proj", "linear_1"],
    "z-image": ["t_embedder.mlp.2", "adaLN_modulation.1"],
    "hunyuan-video": ["norm1.linear", "norm1_context.linear", "norm.linear"],
}


@cache
def _timed_once(name):
    model = learnt(name)
    model.tokens(torch.zeros(1, *model.sample_shape))
    return copier(model)


def timed(name):
    """A model that has learned its tokens; a process learns, and so verifies, those of a family once."""
    return _timed_once(name)()


def state(name, model=None):
    """Two noisy samples that share their prompt, at two levels each."""
    model = model or timed(name)
    batch = checks.pairs(model)
    count = model.tokens(batch.clean).count
    low, high = model.sigma_range
    sigmas = low + (high - low) * torch.tensor([[0.8, 0.3], [0.2, 0.7]])
    index = torch.randint(0, 2, (2, count), generator=torch.Generator().manual_seed(3))
    return model, batch.clean, batch.condition.take([0, 0]), TokenSigma(sigmas=sigmas, index=index)


def mixed(model, noisy, condition, told):
    return model.predict(noisy, told.sigmas[:, 0], condition, token_sigma=told)


def close(found, expected, rtol=1e-5):
    assert float((found - expected).abs().max()) <= rtol * max(1.0, float(expected.abs().max()))


def adapted(model, name, **changes):
    section = {"rank": 2, "target_modules": MODULATIONS[name], **changes}
    adapter = build_adapter(model.transformer, resolve_run({"hooks": [], "adapter": section}, Path("run.json")).adapter)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("name", [*TIMED, *GIVEN])
@torch.no_grad()
def test_mixed_levels_are_those_of_two_copies(name):
    model, noisy, condition, told = state(name)
    found = mixed(model, noisy, condition, told)
    close(found, merged_prediction(model, name, noisy, condition, told))
    assert not torch.allclose(found, model.predict(noisy, told.sigmas[:, 0], condition), atol=1e-4)
    alone = mixed(model, noisy[1:], condition[1:], told.take([1]))
    close(alone, found[1:], 1e-4)


@pytest.mark.parametrize("name", TIMED)
def test_what_the_matrix_claims(name):
    checks.check_token_times(name, timed(name))


@torch.no_grad()
def test_references_of_any_number_keep_the_time_of_the_pipeline():
    """FLUX.2, learnt beside one reference: samples with two and with none, alone and together."""
    model, noisy, _, told = state("flux2-edit")
    shown = [{"image": pictured([(64, 96), (64, 64)])}, {}]
    condition = model.encode_conditions(["a", "a"], shown)
    together = mixed(model, noisy, condition, told)
    for i in range(2):
        alone = mixed(model, noisy[i : i + 1], condition[i : i + 1], told.take([i]))
        close(together[i : i + 1], alone, 1e-4)
    alone = noisy[:1], condition[:1], told.take([0])
    close(mixed(model, *alone), merged_prediction(model, "flux2-edit", *alone))


def test_a_sample_without_its_given_frame_is_refused_with_the_reason():
    model, noisy, _, told = state("ltx-condition")
    condition = model.encode_conditions(["a", "a"], [{}, {}])
    with pytest.raises(ModelError, match="a sample without a given frame has another number of tokens of its own"):
        mixed(model, noisy, condition, told)


def test_tokens_between_others_that_are_not_those_of_references_are_refused_with_the_reason():
    other = torch.zeros(2, 6, 4)
    other[1, 2:4] = 1
    meeting = Broadcast(path=("a",), other=other, batch=-3, tokens=(-2,), expanded=False)
    assert _Learner(behind=2).place(meeting) == "between"
    with pytest.raises(ModelError, match="between 2 and 2 others, of which those behind are not the 1 of its ref"):
        _Learner(behind=1).place(meeting)


@pytest.mark.parametrize("name", [n for n in LEARNT if n in ("wan", "wan-two-experts", "ltx", "sana-video")])
def test_native_times_per_token_are_our_levels(name):
    model, noisy, condition, told = state(name)
    noisy.requires_grad_(True)
    native = mixed(model, noisy, condition, told)
    assert model.tokens(noisy).native
    model.anatomy = dataclasses.replace(model.anatomy, token_times=False)
    model._tokens.clear()
    ours = mixed(model, noisy, condition, told)
    assert not model.tokens(noisy).native
    close(ours, native)
    gradients = [torch.autograd.grad(each.square().sum(), noisy)[0] for each in (ours, native)]
    close(*gradients)


@pytest.mark.parametrize("kind", ["lora", "lycoris"])
@pytest.mark.parametrize("name", MODULATIONS)
def test_gradients_are_those_of_two_copies(name, kind):
    """Also with an adapter on the layers that make modulations."""
    model, noisy, condition, told = state(name)
    adapter = adapted(model, name, type=kind, **({"algo": "locon"} if kind == "lycoris" else {}))
    wanted = [noisy.requires_grad_(True), *adapter.parameters()]
    found, expected = (
        torch.autograd.grad(mse_loss(each, torch.ones_like(each)), wanted)
        for each in (mixed(model, noisy, condition, told), merged_prediction(model, name, noisy, condition, told))
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
    adapter.detach()


@pytest.mark.parametrize("kind", ["lora", "lycoris"])
@pytest.mark.parametrize("name", MODULATIONS)
def test_gradient_checkpointing_changes_nothing(name, kind):
    model, noisy, condition, told = state(name)
    adapter = adapted(model, name, type=kind, **({"algo": "locon"} if kind == "lycoris" else {}))
    wanted = [noisy.requires_grad_(True), *adapter.parameters()]
    gradients = []
    for _ in range(2):
        gradients.append(torch.autograd.grad(mixed(model, noisy, condition, told).square().sum(), wanted))
        model.transformer.enable_gradient_checkpointing()
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(saved, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))
    adapter.detach()


@pytest.mark.parametrize("name", MODULATIONS)
@torch.no_grad()
def test_under_autocast_it_is_as_close_as_one_time_is(name):
    model, noisy, condition, told = state(name)
    whole = mixed(model, noisy, condition, told)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mixed(model, noisy, condition, told)
    assert float((cast - whole).abs().max()) < 0.1 * float(whole.abs().max())


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "sana"])
@torch.no_grad()
def test_half_precision_is_learnt(name):
    model, noisy, condition, told = state(name, learnt(name, dtype=torch.bfloat16))
    assert mixed(model, noisy, condition, told).isfinite().all()
    exact = learnt(name)
    assert torch.equal(model.tokens(noisy).of_element, exact.tokens(noisy).of_element)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan", "ernie-image", "bria-fibo"])
@torch.no_grad()
def test_a_sample_alone_and_prompts_of_other_lengths(name):
    model, noisy, _, told = state(name)
    condition = model.encode_prompts(["a photo of two one a one", "one"])
    together = mixed(model, noisy, condition, told)
    for i in range(2):
        rows = slice(i, i + 1)
        alone = mixed(model, noisy[rows], condition[rows], told.take([i]))
        close(together[rows], alone, 1e-4)


@torch.no_grad()
def test_text_as_long_as_the_picture():
    """Also where it was learnt at another length."""
    pipe = tiny("flux")
    model = probe(pipe, arguments={**PIPELINES["flux"].arguments, "max_sequence_length": 16})
    assert model.anatomy.tokens == model.anatomy.text_tokens[1]
    model, noisy, condition, told = state("flux", model)
    close(mixed(model, noisy, condition, told), merged_prediction(model, "flux", noisy, condition, told))

    model, noisy, _, told = state("qwen-image")
    words = " ".join(["a", "photo", "of", "two", "one"] * 4).split()
    condition = next(
        c
        for n in range(1, 20)
        if (c := model.encode_prompts([" ".join(words[:n])])).samples[0]["encoder_hidden_states"].shape[1] == 16
    )
    condition = condition.take([0, 0])
    close(mixed(model, noisy, condition, told), merged_prediction(model, "qwen-image", noisy, condition, told))


@pytest.mark.parametrize(("name", "side"), [("sd3", 8), ("flux", 32), ("z-image", 32), ("lumina2", 32), ("sana", 32)])
@torch.no_grad()
def test_another_resolution_is_learnt_when_it_is_met(name, side):
    model = learnt(name)
    layout = model.layout(side, 2 * side)
    noisy = torch.randn(2, *layout.sample_shape)
    tokens = model.tokens(noisy)
    told = TokenSigma(sigmas=torch.tensor([[0.8, 0.3], [0.2, 0.7]]), index=torch.randint(0, 2, (2, tokens.count)))
    condition = model.at(side, 2 * side).encode_prompts(["a photo of two"]).take([0, 0])
    close(mixed(model, noisy, condition, told), merged_prediction(model, name, noisy, condition, told))


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "hidream-image", "kandinsky5-video"])
@torch.no_grad()
def test_tokens_hold_patches(name):
    model = learnt(name)
    tokens = model.tokens(torch.zeros(1, *model.sample_shape))
    if name == "flux":
        assert torch.equal(tokens.of_element, torch.arange(16)[:, None].expand(16, 16))
        return
    *_, height, width = model.layout(**model.size).vae_shape
    map_ = tokens.of_element.movedim(-1, 0) if name == "kandinsky5-video" else tokens.of_element
    assert bool((map_ == map_[:1]).all()), "all channels of a patch are one token's"
    patch = 8 if name == "hidream-image" else 2
    grid = torch.arange(tokens.count).reshape(-1, height // patch, width // patch)
    expected = grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    assert torch.equal(map_[0].reshape(expected.shape), expected)
    values = torch.rand(3, tokens.count)
    assert torch.equal(tokens.spread(values)[1], values[1][tokens.of_element])


def test_levels_of_a_sample_may_be_more_than_two():
    model, noisy, condition, told = state("sd3")
    three = TokenSigma(sigmas=torch.cat([told.sigmas, told.sigmas[:, :1]], 1), index=told.index)
    moved = TokenSigma(sigmas=three.sigmas, index=torch.where(told.index == 0, 2, 1))
    with torch.no_grad():
        expected = mixed(model, noisy, condition, told)
        for each in (three, moved):
            close(mixed(model, noisy, condition, each), expected)


def test_what_is_asked_for_must_fit():
    model, noisy, condition, told = state("sd3")
    with pytest.raises(ValueError, match=r"must be \[B, K\]"):
        TokenSigma(sigmas=told.sigmas[:, 0], index=told.index)
    with pytest.raises(ValueError, match="one level"):
        TokenSigma(sigmas=told.sigmas[:, :1], index=told.index)
    with pytest.raises(ModelError, match=r"2 samples of 16 tokens were expected"):
        mixed(model, noisy, condition, TokenSigma(sigmas=told.sigmas, index=told.index[:, 1:]))
    with pytest.raises(RuntimeError, match="level 0"):
        model.predict(noisy, told.sigmas[:, 1], condition, token_sigma=told)
    with (
        flowhooks.attach(model, [{"type": "time_conditioning"}]),
        pytest.raises(ModelError, match="cannot be given together"),
    ):
        model.predict(noisy, told.sigmas[:, 0], condition, r_sigma=told.sigmas[:, 0] / 2, token_sigma=told)


@torch.no_grad()
def test_a_network_with_a_second_time_still_takes_times_per_token():
    model, noisy, condition, told = state("sd3")
    expected = mixed(model, noisy, condition, told)
    with flowhooks.attach(model, [{"type": "time_conditioning"}]):
        assert torch.equal(mixed(model, noisy, condition, told), expected)


def test_learning_and_failing_leave_no_trace():
    model = learnt("sd3")
    network = model.transformer
    network.enable_gradient_checkpointing()
    before = {name: set(vars(m)) for name, m in network.named_modules()}
    model, noisy, condition, told = state("sd3", model)
    mixed(model, noisy, condition, told)
    handle = network.transformer_blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mixed(model, noisy, condition, told)
    handle.remove()
    for name, module in network.named_modules():
        assert not module._forward_hooks and not module._forward_pre_hooks, name
        assert set(vars(module)) == before[name], name
    assert network.is_gradient_checkpointing


def test_a_meeting_that_was_not_learnt_is_refused():
    model, noisy, condition, told = state("sd3")
    tokens = model.tokens(noisy)
    model._tokens[model._size] = dataclasses.replace(tokens, places={})
    with pytest.raises(
        ModelError, match="did not occur when its tokens were learned, after transformer_blocks.0.norm1"
    ):
        mixed(model, noisy, condition, told)


def test_a_network_that_reads_its_time_elsewhere_is_refused(monkeypatch):
    """It is never run with times that reach a part of it."""
    model = learnt("sd3")
    block = model.transformer.transformer_blocks[0]
    stolen = {}
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: stolen.update(time=kwargs["timestep"]), with_kwargs=True
    )
    block.attn.to_out[0].register_forward_hook(lambda m, args, out: out + stolen["time"][:, None, None] / 100)
    with pytest.raises(ModelError, match="cannot be given a time per token: .*mixed times.*apart"):
        learn_tokens(model, model.layout(**model.size))


def test_tables_are_no_tokens():
    rows = torch.arange(8.0).reshape(4, 2)
    mix = Mix(
        index=torch.tensor([[0, 1, 1], [1, 0, 0]]),
        count=2,
        places=lambda meeting: "all" if len(meeting.other) == 2 else None,
        names=WeightNames(nn.Identity),
    )
    levels = Levels(rows, mix)
    for table in (torch.ones(1, 6, 2), torch.ones(6, 2)):
        found = levels[:, None] + table
        assert isinstance(found, Levels) and found.shape == (2, 6, 2)
    tokens = torch.zeros(2, 3, 2)
    found = tokens + levels.unsqueeze(1)
    assert found.tolist() == [
        [[0, 1], [2, 3], [2, 3]],
        [[6, 7], [4, 5], [4, 5]],
    ]


def test_what_levels_cannot_do_is_refused():
    mix = Mix(
        index=torch.zeros(2, 3, dtype=torch.long), count=2, places=lambda meeting: "all", names=WeightNames(nn.Identity)
    )
    levels = Levels(torch.zeros(4, 6), mix)
    for wrong in (
        lambda: levels[0],
        lambda: levels.sum(),
        lambda: levels.t() @ levels,
        lambda: levels.T,
        lambda: list(levels),
    ):
        with pytest.raises(ModelError, match="cannot be done for several times at once"):
            wrong()
    assert levels.unsqueeze(0).axis == 1 and levels.t().axis == 1
    with pytest.raises(AttributeError):
        _ = levels.no_such_method


def test_an_entry_names_a_module_and_its_calls():
    tokens = {name: learnt(name) for name in ("anyflow", "cosmos25")}
    entries = {name: m.tokens(torch.zeros(1, *m.sample_shape)).entry for name, m in tokens.items()}
    assert entries["anyflow"] == TimeEntry(name="condition_embedder.timesteps_proj", calls=2)
    assert entries["cosmos25"] == TimeEntry(name="time_embed.time_proj", calls=1)


def test_names_follow_the_weights_that_come_and_go():
    """As a walk of the whole network gives them, whatever was asked before."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    names = WeightNames(lambda: network)
    for _ in range(50):
        assert [names.of(p) for p in network.parameters()] == [name for name, _ in network.named_parameters()]
        assert names.of(network[0].weight.detach()) is None and names.of(nn.Parameter(torch.zeros(1))) is None
        # What is let go here leaves its id to what comes next.
        network[1] = None
        network.insert(0, nn.Linear(2, 2))
        del network[2]

"""Every family on offer: the probe learns it, Flow-DPO takes a step on it, stock Diffusers loads its LoRA."""

from __future__ import annotations

from collections import Counter
from functools import wraps

import pytest
import torch

from flowhooks.errors import ModelError
from flowhooks.probe import exceptions, probe
from flowhooks.probe.runs import find_networks, recorded_arguments
from flowhooks.probe.values import same
from tests.families import PIPELINES, checks, interval_checks, learnt, tiny

#: What cannot be learnt, and whose reason it is.
REFUSED = {
    "sana-sprint": "SCMScheduler",
    "cosmos": "EDM",
    "cosmos2-image": "EDM",
    "cosmos3": "one sample a call",
    "anyflow-far": "calls its network",
    "skyreels-v2-diffusion-forcing": "copies of its scheduler",
    "prx-pixel": "no `vae`",
}
#: Of those that take pictures, one: the others are in ``test_references``.
LEARNT = [
    name for name in PIPELINES if name not in REFUSED and (not PIPELINES[name].references or name == "flux-kontext")
]
#: Diffusers has no way to load a LoRA for these.
UNLOADABLE = {"lumina", "prx", "easyanimate"}


@pytest.mark.parametrize("name", LEARNT)
def test_the_probe_learns_it_and_flow_dpo_takes_a_step(name):
    """Probing verifies by itself: prediction against the pipeline's, samples alone against a batch, layout round
    trip."""
    checks.check_flow_dpo(name)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan", "ernie-image"])
def test_learning_takes_few_forwards_runs_and_encodings(name, monkeypatch):
    pipe, count = tiny(name), Counter()
    block = next(m for m in pipe.transformer.modules() if isinstance(m, torch.nn.ModuleList) and len(m))[0]
    block.register_forward_pre_hook(lambda *_: count.update(["forwards"]))
    for method in ("__call__", "encode_prompt"):
        monkeypatch.setattr(type(pipe), method, counted(getattr(type(pipe), method), count))
    probe(pipe, arguments=PIPELINES[name].arguments)
    assert count["forwards"] <= 10 and count["__call__"] <= 18 and count["encode_prompt"] <= 8, count
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("name", ["lumina2", "z-image", "flux2-klein", "qwen-image"])
def test_text_encoders_return_after_the_probe_what_they_do_before(name):
    """Those of which a pipeline reads a layer inside: transformers hangs hooks on layers at the first call."""
    model, fresh = learnt(name), tiny(name)
    theirs = recorded_arguments(fresh, find_networks(fresh), ["one"], model.call())
    (ours,) = model.encode_prompts(["one"]).samples
    for argument in model.contract.rules:
        assert same(ours[argument], theirs[argument]), argument


def counted(method, count):
    @wraps(method)
    def called(*args, **kwargs):
        count[method.__name__] += 1
        return method(*args, **kwargs)

    return called


@pytest.mark.parametrize("name", LEARNT)
def test_its_network_learns_intervals_and_the_stock_pipeline_tells_them(name):
    interval_checks.check_intervals(name)


@pytest.mark.parametrize("name", [name for name in LEARNT if name not in UNLOADABLE])
def test_stock_diffusers_loads_its_lora(name):
    checks.check_lora(name)


@pytest.mark.parametrize("name", sorted(UNLOADABLE))
def test_where_diffusers_loads_no_lora_the_reason_is_named(name):
    with pytest.raises(checks.Failed, match="no LoRA loader"):
        checks.check_lora(name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learnt_is_refused_with_the_reason(name):
    with pytest.raises(ModelError, match=REFUSED[name]):
        checks.check_probe(name)


def test_every_step_of_a_sample_is_visited_again_though_its_image_is_drawn_without_a_seed():
    checks.check_replay("cogview4-control")


def test_a_run_with_images_is_resumed_and_detached():
    checks.check_resume("flux-kontext")
    checks.check_detach("flux-kontext")


def call_without(monkeypatch, *names):
    kept = {name: value for name, value in exceptions.CALL.items() if name not in names}
    monkeypatch.setattr(exceptions, "CALL", kept)


def test_without_its_exception_sana_draws_another_size(monkeypatch):
    arguments = {k: v for k, v in PIPELINES["sana"].arguments.items() if k != "use_resolution_binning"}
    assert probe(tiny("sana"), arguments=arguments).sample_shape == (4, 8, 8)
    call_without(monkeypatch, "use_resolution_binning")
    with pytest.raises(ModelError, match=r"the VAE encodes to \(4, 8, 8\), the pipeline decodes"):
        probe(tiny("sana"), arguments=arguments)


@pytest.mark.parametrize("name", ["stg_scale", "audio_stg_scale", "modality_scale", "audio_modality_scale"])
def test_without_its_exceptions_ltx2_goes_on_guiding(monkeypatch, name):
    call_without(monkeypatch, name)
    with pytest.raises(ModelError, match="guidance|cannot be run"):
        probe(tiny("ltx2"), arguments=PIPELINES["ltx2"].arguments)


def test_without_its_exception_ltx2_hears_its_own_sound(monkeypatch):
    monkeypatch.setattr(exceptions, "FIXED_ARGUMENTS", {})
    monkeypatch.setattr("flowhooks.probe.recorder.FIXED_ARGUMENTS", {})
    with pytest.raises(ModelError, match="`audio_hidden_states`, which changes from step to step"):
        probe(tiny("ltx2"), arguments=PIPELINES["ltx2"].arguments)


def test_the_rejected_side_never_reaches_the_network_as_a_reference():
    """On an edit model the network sees as many picture tokens for a pair's sides as for a picture alone."""
    model = learnt("flux-kontext")
    checks.pairs(model)
    tokens: list[int] = []
    handle = model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    checks.gradients(model)
    handle.remove()
    (shown,) = {picture.size for picture in model.example.values()}
    assert set(tokens) == {model.layout(16, 16).into.shape[0]}
    assert set(tokens) == {model.sample_shape[0] * (1 + shown[0] * shown[1] // 16**2)}, "the sample and its reference"


def test_prompts_of_different_lengths_share_no_forward_where_the_network_would_see_padding():
    model = learnt("z-image")
    condition = model.encode_prompts(["a", "a photo of two", "one"])
    noisy, sigma = torch.randn(3, *model.sample_shape), torch.tensor([0.9, 0.5, 0.2])
    together = model.predict(noisy, sigma, condition)
    for i in range(3):
        alone = model.predict(noisy[i : i + 1], sigma[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_two_experts_are_trained_one_at_a_time():
    pipe = tiny("wan-two-experts")
    arguments = PIPELINES["wan-two-experts"].arguments
    high = probe(pipe, arguments=arguments)
    low = probe(pipe, arguments=arguments, component="transformer_2")
    assert high.transformer is pipe.transformer and low.transformer is pipe.transformer_2
    assert high.sigma_range == (high.contract.boundary, 1.0) and low.sigma_range == (0.0, high.contract.boundary)
    assert high.contract.boundary == pytest.approx(0.875, abs=2e-3)
    with pytest.raises(ModelError, match="no network 'transformer_3'"):
        probe(pipe, arguments=arguments, component="transformer_3")

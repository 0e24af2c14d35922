"""A second time for a network that has one time: exact where it must change nothing, trained whatever lies on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import flowhooks
from flowhooks.adapters import build_adapter
from flowhooks.config import resolve_run
from flowhooks.errors import ModelError
from flowhooks.hooks import TimeConditioningEnabler
from flowhooks.probe.interval import Interval, Span, bare_copy
from tests.families import learnt, tiny
from tests.families.checks import pairs

SHORT = {"max_sequence_length": 8}
LINEAR = [{"type": "target_replacer", "target_mode": "linear"}]


@pytest.fixture
def model():
    return learnt("sd3", arguments=SHORT)


def state(model, t: float = 0.7):
    batch = pairs(model)
    return batch.clean, torch.full((2,), t), batch.condition


def section(**changes):
    return resolve_run({"hooks": [], "adapter": {"rank": 2, **changes}}, Path("run.json")).adapter


def test_an_interval_without_a_second_time_is_refused(model):
    with pytest.raises(ModelError, match="takes one time"):
        model.predict(*state(model), r_sigma=torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_an_empty_interval_is_the_base_bit_for_bit(dtype):
    model = learnt("sd3", arguments=SHORT, dtype=dtype)
    noisy, sigma, condition = state(model)
    base = model.predict(noisy, sigma, condition)
    with flowhooks.attach(model, [{"type": "time_conditioning"}]):
        assert torch.equal(model.predict(noisy, sigma, condition, r_sigma=sigma), base)
        assert torch.equal(model.predict(noisy, sigma, condition), base)
        assert not torch.equal(model.predict(noisy, sigma, condition, r_sigma=0.5 * sigma), base)
    with flowhooks.attach(model, [{"type": "time_conditioning", "deltatime_type": "t-r"}]):
        assert not torch.equal(model.predict(noisy, sigma, condition, r_sigma=sigma), base)


@torch.no_grad()
def test_the_blend_is_that_of_an_independent_reference(model):
    """``(1 - g) E_t(t) + g E_d(t - r)``, written out on the network's own modules."""
    noisy, sigma, condition = state(model)
    r = torch.tensor([0.2, 0.6])
    embedding = model.transformer.time_text_embed
    blocks = [{"type": "time_conditioning", "gate_value": 0.4, "deltatime_type": "t-r"}]
    with flowhooks.attach(model, blocks) as session:
        (delta,) = session.assembly.modules().values()
        for parameter in delta.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        mine = model.predict(noisy, sigma, condition, r_sigma=r)

        def blended(module, args, output):
            features = embedding.time_proj(1000 * (sigma - r))
            return 0.6 * output + 0.4 * delta(features)

        handle = embedding.timestep_embedder.register_forward_hook(blended)
        expected = model.predict(noisy, sigma, condition)
        handle.remove()
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("first", ["adapter", "time"])
@pytest.mark.parametrize("kind", ["lora", "lycoris"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_whatever_adapter_comes_before_or_after(model, first, kind, checkpointing):
    """Also where the adapter sits on the time embedder itself."""
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    algo = {"algo": "locon"} if kind == "lycoris" else {}

    def adapt():
        return build_adapter(model.transformer, section(type=kind, target_modules=["to_q", "linear_1"], **algo))

    def teach():
        return Interval(model.transformer, model.anatomy.time_embedder, model.contract.times)

    if first == "adapter":
        adapter, interval = adapt(), teach()
    else:
        interval, adapter = teach(), adapt()
    names = [name for name, _ in interval.delta_embedder.named_parameters()]
    assert names == ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"]
    noisy, sigma, condition = state(model)
    with interval.attached():
        model.interval = interval
        model.predict(noisy, sigma, condition, r_sigma=0.3 * sigma).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in interval.delta_embedder.parameters())
    adapter.detach()


@torch.no_grad()
def test_a_run_that_is_restored_draws_the_same(model, tmp_path):
    from flowhooks.modules_file import save_modules
    from tests.families.checks import latents

    with flowhooks.attach(model, {"hooks": LINEAR, "adapter": {"rank": 2}}) as session:
        for i, parameter in enumerate(session.parameters().values()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        session.adapter.save(tmp_path, {})
        save_modules(tmp_path, session.assembly, model, {})
        trained = latents(model)
    stock = tiny("sd3")
    stock.load_lora_weights(tmp_path)
    fresh = learnt("sd3", arguments=SHORT)
    with flowhooks.attach(fresh, tmp_path):
        assert torch.equal(latents(fresh), trained)
    with flowhooks.attach(stock, tmp_path, height=16, width=16) as session:
        # Stock Diffusers put the LoRA on; only the second time is added.
        assert session.adapter is None
        torch.testing.assert_close(latents(session.model), trained, atol=1e-5, rtol=1e-4)
    assert stock.transformer.peft_config


def test_modules_of_another_model_are_refused(model, tmp_path):
    from flowhooks.modules_file import save_modules

    with pytest.raises(ModelError, match="flowhooks_modules.safetensors: missing"), flowhooks.attach(model, tmp_path):
        pass
    with flowhooks.attach(model, [{"type": "time_conditioning"}]) as session:
        save_modules(tmp_path, session.assembly, model, {})
    other = learnt("flux")
    refused = pytest.raises(ModelError, match="was trained for SD3Transformer2DModel")
    with refused, flowhooks.attach(other, tmp_path):
        pass
    wider = learnt("sd3", arguments=SHORT)
    wider.transformer.time_text_embed.timestep_embedder.linear_2 = torch.nn.Linear(32, 32, bias=False)
    with pytest.raises(ModelError, match="keys this model has no place for"), flowhooks.attach(wider, tmp_path):
        pass


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gate_value": 1.5}, "`gate_value`: expected a number at least 0 and at most 1, found 1.5"),
        ({"gate_value": -0.1}, "gate_value"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TimeConditioningEnabler(**options)


def test_an_unknown_second_time_is_refused(model):
    with pytest.raises(ValueError, match="`deltatime_type`"):
        Interval(model.transformer, model.anatomy.time_embedder, model.contract.times, deltatime_type="r-t")


def test_two_second_times_are_refused(model):
    with (
        flowhooks.attach(model, [{"type": "time_conditioning"}]) as session,
        pytest.raises(ModelError, match="already"),
        TimeConditioningEnabler().attached(session),
    ):
        pass


@torch.no_grad()
def test_a_unit_of_ones_own(model):
    noisy, sigma, condition = state(model)
    with flowhooks.attach(model, [{"type": "time_conditioning", "timestep_scale": 1000.0}]):
        own = model.predict(noisy, sigma, condition, r_sigma=0.5 * sigma)
    with flowhooks.attach(model, [{"type": "time_conditioning"}]):
        assert torch.equal(model.predict(noisy, sigma, condition, r_sigma=0.5 * sigma), own)
    with flowhooks.attach(model, [{"type": "time_conditioning", "timestep_scale": 1.0}]):
        assert not torch.equal(model.predict(noisy, sigma, condition, r_sigma=0.5 * sigma), own)


def test_a_bare_copy_shares_nothing(model):
    embedder = model.transformer.time_text_embed.timestep_embedder
    embedder.register_forward_hook(lambda *_: None)
    clone = bare_copy(embedder)
    assert not clone._forward_hooks and len(embedder._forward_hooks) == 1
    for mine, theirs in zip(clone.parameters(), embedder.parameters(), strict=True):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr()


def test_the_network_is_as_before(model):
    embedder = model.transformer.time_text_embed.timestep_embedder
    interval = Interval(model.transformer, model.anatomy.time_embedder, model.contract.times)
    with pytest.raises(RuntimeError, match="mine"), interval.attached(), interval.between(Span(start=0.5, end=0.1)):
        raise RuntimeError("mine")
    assert not model.transformer._forward_pre_hooks and not embedder._forward_hooks and not embedder._forward_pre_hooks

"""Adapters that are off above a sigma, on six real pipelines: against the pipeline's own callback and by hand."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.errors import AdapterError
from flowhooks.sampling.gate import current_sigma
from tests.families import learnt, tiny
from tests.laws.test_laws import assert_same, trace
from tests.sampling.test_rollout import GUIDED

STEPS = 4


def off_the_base(session) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in session.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def drawn(model, name: str, **more) -> torch.Tensor:
    call = model.call(
        prompt="one",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
        output_type="latent",
        **GUIDED[name],
        **more,
    )
    return model.pipe(**call, return_dict=False)[0].float()


@pytest.mark.parametrize("adapter", ["lora", "lycoris"])
@pytest.mark.parametrize("name", GUIDED)
def test_early_steps_are_the_bases_and_late_ones_the_adapters(name, adapter):
    """By hand: the adapter is switched on between two steps."""
    model = learnt(name)
    base, section = drawn(model, name), {"adapter": {"type": adapter, "rank": 2}, "hooks": []}
    with flowhooks.attach(model, section) as session:
        off_the_base(session)
        trained = drawn(model, name)
        seen: list[float] = []
        with session.model.transformer.register_forward_pre_hook(
            lambda *_: seen.append(current_sigma(model.pipe.scheduler))
        ):
            drawn(model, name)
        starts = sorted(set(seen), reverse=True)
        assert len(starts) == STEPS and starts[0] == pytest.approx(1, abs=0.01)
        off = session.adapter.disabled()
        off.__enter__()

        def turn_on(pipe, step, timestep, kept):
            if step == 1:
                off.__exit__(None, None, None)
            return kept

        by_hand = drawn(model, name, callback_on_step_end=turn_on)
        with flowhooks.adapter_gate(model.pipe, starts[2]):
            gated = drawn(model, name)
        assert torch.equal(gated, by_hand)
        assert not torch.equal(gated, base) and not torch.equal(gated, trained)
        with flowhooks.adapter_gate(model.pipe, 1.0):
            assert torch.equal(drawn(model, name), trained)
        with flowhooks.adapter_gate(model.pipe, starts[-1] / 2 if starts[-1] else 1e-9):
            assert torch.equal(drawn(model, name), base)


def test_nothing_is_left_behind():
    model = learnt("sd3")
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": []}) as session:
        off_the_base(session)
        drawn(model, "sd3")
        before = trace(model.pipe)

        def fail(*_):
            raise RuntimeError("somebody's own")

        broken = model.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="somebody's own"), flowhooks.adapter_gate(model.pipe, 0.5):
            drawn(model, "sd3")
        broken.remove()
        assert_same(before, trace(model.pipe))


def test_what_cannot_be_gated_is_refused():
    pipe = tiny("sd3")
    with pytest.raises(AdapterError, match="no adapter on `transformer` to gate"), flowhooks.adapter_gate(pipe, 0.5):
        pass
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 500"), flowhooks.adapter_gate(pipe, 500):
        pass
    model = learnt("sd3")
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": []}) as session:
        off_the_base(session)
        session.adapter.layers[0].merge()
        with pytest.raises(AdapterError, match="fused into its weights"), flowhooks.adapter_gate(model.pipe, 0.5):
            pass
        session.adapter.layers[0].unmerge()

"""Two sigmas in one sample: the draw in plain arithmetic, the view on tiny pipelines."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.distributed import Processes
from flowhooks.errors import ConfigError
from flowhooks.hooks import DualTimes
from flowhooks.hooks.dual_times.hook import bernoulli_subset, exact_subset
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Sigma, View
from tests.families import learnt
from tests.families.checks import pairs

DUAL = {"type": "dual_times"}


def main_view(session: Session, batch: flowhooks.Batch, *, training: bool = True) -> View:
    """The main view of the session's next step, or of held-out data."""
    seen, gather = [], session.assembly.penalties
    session.assembly.penalties = lambda step: seen.append(step.views["main"]) or gather(step)
    (session.step if training else session.evaluate)(batch)
    session.assembly.penalties = gather
    return seen[0]


def test_the_exact_share_of_each_sample():
    uniform = torch.rand(5, 37, generator=torch.Generator().manual_seed(0))
    index = exact_subset(uniform, 0.25)
    assert index.sum(1).tolist() == [9] * 5
    for row, drawn in zip(index, uniform, strict=True):
        assert drawn[row == 1].max() < drawn[row == 0].min()
    assert exact_subset(uniform, 0.01).sum(1).tolist() == [1] * 5, "a share is never rounded away"
    assert not exact_subset(uniform, 0.0).any()


def test_each_token_by_itself():
    uniform = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0))
    assert bernoulli_subset(uniform, 0.3).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not bernoulli_subset(uniform, 0.0).any()


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_each_number_of_the_sample_is_at_the_sigma_of_its_token(name):
    model = learnt(name)
    batch = pairs(model)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": []}) as session:
        plain = main_view(session, batch)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [{**DUAL, "mask_ratio": 0.4}]}) as session:
        view = main_view(session, batch)
    assert torch.equal(view.sigma, plain.sigma), "most tokens keep the sigma that the step has anyway"
    assert torch.equal(view.noise, plain.noise), "one noise for both levels"
    tokens, told = model.tokens(batch.clean), view.time.tokens
    assert told.index.sum(1).tolist() == [round(0.4 * tokens.count)] * 2
    assert torch.equal(told.sigmas[:, 0], view.sigma)
    for sample in range(2):
        flat = zip(
            view.noisy[sample].flatten(),
            batch.clean[sample].flatten(),
            view.noise[sample].flatten(),
            tokens.of_element.flatten(),
            strict=True,
        )
        for number, clean, noise, token in list(flat)[::7]:
            sigma = told.sigmas[sample, told.index[sample, token]]
            assert number.item() == pytest.approx(((1 - sigma) * clean + sigma * noise).item(), abs=1e-6)
    assert torch.equal(view.velocity, view.noise - batch.clean)


def test_the_two_sigmas_are_independent_and_never_sorted():
    model = learnt("sd3")
    batch = pairs(model)
    drawn = []
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [DUAL]}) as session:
        for _ in range(120):
            step = _fresh(session, batch)
            views = session.assembly.chain("views", {"main": View.of(batch)}, step)
            drawn.append(views["main"].time.tokens.sigmas)
            session.micro_step += 1
    a, b = torch.cat(drawn).unbind(1)
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.15
    assert 0.35 < (a < b).float().mean().item() < 0.65
    assert a.mean().item() == pytest.approx(b.mean().item(), abs=0.06)


def _fresh(session: Session, batch: flowhooks.Batch):
    from flowhooks.kernel.random import Draws
    from flowhooks.kernel.step import Step

    return Step(
        session=session,
        model=session.model,
        given=batch,
        draws=Draws(seed=0, micro_step=session.micro_step),
        training=True,
        all_reduce=session.processes.all_reduce,
    )


def test_the_second_sigma_comes_from_the_list_too():
    model = learnt("sd3")
    walk = {"type": "timestep_schedule", "flow_custom_timesteps": [900, 500], "flow_timesteps_mode": "round-robin"}
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [DUAL, walk]}) as session:
        views = [main_view(session, pairs(model)) for _ in range(8)]
    assert {round(s, 3) for v in views for s in v.time.tokens.sigmas[:, 1].tolist()} == {0.9, 0.5}
    assert all(v.sigma.tolist() == pytest.approx(e) for v, e in zip(views, [[0.9, 0.5], [0.5, 0.9]] * 4, strict=True))


def test_processes_share_out_one_draw():
    model = learnt("sd3")
    batch = pairs(model)
    both = flowhooks.Batch(clean=batch.clean.repeat(2, 1, 1, 1), condition=batch.condition.join([batch.condition]))
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [DUAL]}) as session:
        whole = main_view(session, both).time.tokens
        for rank in (0, 1):
            session.processes = Processes(rank=rank, world_size=2)
            session.micro_step = 0
            part = main_view(session, batch).time.tokens
            rows = slice(2 * rank, 2 * rank + 2)
            assert torch.equal(part.sigmas, whole.sigmas[rows])
            assert torch.equal(part.index, whole.index[rows])


def test_held_out_data_keeps_one_sigma_a_sample():
    model = learnt("sd3")
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [DUAL]}) as session:
        view = main_view(session, pairs(model), training=False)
    assert type(view.time) is Sigma


@pytest.mark.parametrize(("name", "share"), [("sd3", 0.25), ("wan", 0.1)])
def test_pictures_and_videos_have_shares_of_their_own(name, share):
    model = learnt(name)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [DUAL]}) as session:
        index = main_view(session, pairs(model)).time.tokens.index
    assert index.sum(1).tolist() == [max(1, round(share * index.shape[1]))] * 2


def test_the_rejected_side_has_the_same_levels():
    model = learnt("sd3")
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [DUAL, {"type": "flow_dpo"}]}) as session:
        result = session.step(pairs(model))
    assert result.passes == 2, "both sides in one forward a role"
    assert float(result.metrics["flow_dpo_margin"]) == 0, "a fresh adapter is the base, level by level"


@pytest.mark.parametrize("ratio", [-0.1, 0.51])
def test_shares_out_of_range(ratio):
    with pytest.raises(ValueError, match="`mask_ratio`: expected a number at least 0 and at most 0.5"):
        DualTimes(mask_ratio=ratio)
    with pytest.raises(ConfigError, match="mask_ratio"):
        flowhooks.config.resolve_run({"hooks": [{**DUAL, "mask_ratio": ratio}]}, "run.json")


def test_an_unknown_selection():
    with pytest.raises(ValueError, match="`selection`: 'some' is not one of 'exact', 'bernoulli'"):
        DualTimes(selection="some")

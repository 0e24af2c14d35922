"""How the engine asks a model, on the analytic flow: views joined by type of time and state, each pair once, and one
primitive for everything else."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from flowhooks.distributed import ALONE, Processes
from flowhooks.hooks.interval_times.hook import IntervalTime
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.view import Path, Sigma
from flowhooks.testing import NoCondition
from tests.hooks.toy import FLOW, toy_batch, toy_model, toy_session


class Lagging(Sigma):
    """A kind of time that the kernel has never heard of."""

    @property
    def arguments(self):
        return {"lag": self.level / 2}

    def join(self, others):
        return Lagging(level=torch.cat([self.level, *(other.level for other in others)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A kind of state whose prediction comes from elsewhere."""

    values: torch.Tensor

    @property
    def shape(self):
        return self.values.shape

    def noisy(self, time):
        return self.values

    def fits(self, other):
        return other is self

    def predict(self, model, role, views):
        return [self.values + (role == "policy")]


class Copies(Hook):
    """Views beside the main one: by name, what ``change`` makes of it; and the policy's and the base's pass on all."""

    def __init__(self, **changes):
        self.changes = changes

    @classmethod
    def declaration(cls, options):
        names = ("main", *options["changes"])
        return {
            "slots": {"views", "penalty"},
            "needs": {"sigma"},
            "gives": {f"view:{name}" for name in options["changes"]},
            "passes": tuple((name, role) for name in names for role in ("policy", "reference")),
        }

    def views(self, step, views):
        main = views["main"]
        return {**views, **{name: replace(main, name=name, **change(main)) for name, change in self.changes.items()}}

    def penalty(self, step):
        self.step = step
        return {}


def stepped(*hooks, model=None, **options):
    """The step of a session, and what its model was asked."""
    model, asked = model or toy_model(), []
    predict = model.predict

    def recorded(noisy, sigma, condition, **times):
        asked.append((len(noisy), {name: len(value) for name, value in times.items()}, torch.is_grad_enabled()))
        return predict(noisy, sigma, condition)

    model.predict = recorded
    session = toy_session(model, *hooks, **options)
    session.step(toy_batch(3, masked=False))
    return hooks[0].step, asked


def exact(step, name):
    view = step.views[name]
    return FLOW.velocity(view.noisy, view.level.reshape(-1, 1, 1, 1))


def test_views_of_one_kind_go_through_together_and_come_apart_again():
    twice = Copies(same=lambda main: {}, flipped=lambda main: {"state": replace(main.state, clean=-main.clean)})
    step, asked = stepped(twice)
    assert step.groups(["main", "same", "flipped"]) == [["main", "same", "flipped"]]
    asked.clear()
    for name in ("main", "same", "flipped"):
        torch.testing.assert_close(step.predict(name, "reference"), exact(step, name))
    assert [count for count, _, _ in asked] == [9]


def test_views_apart_are_the_views_together():
    def copies():
        return Copies(flipped=lambda main: {"state": replace(main.state, clean=-main.clean)})

    (whole, _), (apart, asked) = stepped(copies()), stepped(copies(), batch_views=False)
    assert apart.groups(["main", "flipped"]) == [["main"], ["flipped"]]
    for name in ("main", "flipped"):
        torch.testing.assert_close(whole.predict(name), apart.predict(name), rtol=1e-12, atol=0)
    assert [count for count, _, _ in asked] == [3, 3]


@pytest.mark.parametrize(
    ("time", "told"),
    [
        (lambda level: Lagging(level=level), "lag"),
        (lambda level: IntervalTime(level=level, end=level / 2, rows=(0, 1, 2)), "r_sigma"),
    ],
)
def test_times_are_joined_by_type_and_told_to_the_model(time, told):
    def late(main):
        return {"time": time(main.level)}

    step, asked = stepped(Copies(late=late, same=lambda main: {}, later=late))
    assert step.groups(["main", "late", "same", "later"]) == [["main", "same"], ["late", "later"]]
    asked.clear()
    step.predict("late", "reference")
    step.predict("main", "reference")
    assert [(count, times) for count, times, _ in asked] == [(6, {told: 6}), (6, {})]


def test_states_of_other_shapes_and_kinds_go_alone():
    def cut(main):
        return {"state": Path(clean=main.clean[:, :1], noise=main.noise[:, :1])}

    def drawn(main):
        return {"state": Drawn(values=torch.zeros_like(main.clean))}

    step, _ = stepped(Copies(cut=cut, drawn=drawn))
    assert step.groups(["main", "cut", "drawn"]) == [["main"], ["cut"], ["drawn"]]
    assert bool((step.predict("drawn") == 1).all()) and bool((step.predict("drawn", "reference") == 0).all())
    assert step.views["drawn"].clean is None
    with pytest.raises(ValueError, match="no clean latents"):
        step.views["drawn"].velocity  # noqa: B018


def test_rows_of_joined_intervals_are_theirs():
    first = IntervalTime(level=torch.ones(2), end=torch.tensor([1.0, 0.5]), rows=(1,))
    other = IntervalTime(level=torch.ones(3), end=torch.zeros(3), rows=(0, 2))
    joined = first.join([other])
    assert joined.rows == (1, 2, 4) and joined.level.shape == joined.end.shape == (5,)


def test_what_is_asked_twice_is_computed_once():
    calls = []

    class Counting(Copies):
        def __init__(self):
            super().__init__()

        @classmethod
        def declaration(cls, options):
            found = super().declaration(options)
            return {**found, "slots": {*found["slots"], "error", "reduce", "target:main"}}

        def target(self, step, view):
            calls.append("target")

        def error(self, step, view, error):
            calls.append("error")
            return error

        def reduce(self, step, view, error):
            calls.append("reduce")
            return error.flatten(1).sum(1)

    step, asked = stepped(Counting())
    assert calls == ["target", "error", "reduce"] and len(asked) == step.forwards == 1
    for _ in range(2):
        torch.testing.assert_close(step.score("main"), step.error("main").flatten(1).sum(1))
        assert torch.equal(step.target("main"), step.views["main"].velocity)
        step.score("main", "reference")
    assert calls == ["target", "error", "reduce", "error", "reduce"] and len(asked) == step.forwards == 2


def test_playing_counts_a_forward_sets_the_role_and_keeps_no_graph():
    step, asked = stepped(Copies())
    asked.clear()
    before, view = step.forwards, step.views["main"]
    told = view.noisy, view.level, NoCondition(3)
    with step.playing("reference") as model:
        base = model.predict(*told)
    with step.playing("policy") as model:
        ours = model.predict(*told)
    with step.playing("policy", gradient=True) as model:
        trained = model.predict(*told)
    assert step.forwards == before + 3 and [gradient for _, _, gradient in asked] == [False, False, True]
    torch.testing.assert_close(base, exact(step, "main"))
    assert torch.equal(ours, trained) and not torch.allclose(ours, base)
    assert not ours.requires_grad and trained.requires_grad
    with torch.no_grad(), step.playing("policy", gradient=True) as model:
        assert not model.predict(*told).requires_grad, "held-out data has no graph to keep"


def test_playing_may_switch_autocast_off():
    step, _ = stepped(Copies())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with step.playing("policy"):
            assert torch.is_autocast_enabled("cpu")
        with step.playing("policy", autocast=False):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_a_role_is_there_as_long_as_it_is_registered():
    session, inside = toy_session(toy_model()), []

    @contextmanager
    def playing():
        inside.append(True)
        yield
        inside.pop()

    with session.roles.registered("other", playing):
        with session.roles["other"]():
            assert inside == [True]
        with pytest.raises(ValueError, match="two hooks give the role 'other'"):
            session.roles.registered("other", playing).__enter__()
    assert "other" not in session.roles and not inside


def test_held_out_data_is_measured_as_by_one_process():
    """A process among others may measure alone, under the noise and the means of a run of one."""
    many = Processes(rank=1, world_size=2, all_reduce=lambda tensor: tensor * float("nan"))
    alone, among = (toy_session(toy_model(), Copies(), processes=each) for each in (ALONE, many))
    batch = toy_batch(3, masked=False)
    expected = alone.evaluate(batch, micro_step=4)
    assert torch.equal(among.evaluate(batch, micro_step=4, processes=ALONE).loss, expected.loss)
    assert not torch.equal(among.evaluate(batch, micro_step=4).loss, expected.loss)
    assert among.micro_step == 0


def test_the_mean_over_processes_has_the_gradient_of_the_whole():
    """The average of the processes' gradients is the gradient of the mean over all counted samples."""
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    (expected,) = torch.autograd.grad((values * weights).sum() / 3, values)
    found = []
    for rank in (0, 1):
        hook = Copies()
        stepped(hook, processes=Processes(rank=rank, world_size=2, all_reduce=lambda total: torch.tensor(3.0)))
        rows = slice(2 * rank, 2 * rank + 2)
        found += torch.autograd.grad(hook.step.mean(values[rows], weights[rows]), values)
    torch.testing.assert_close(sum(found) / 2, expected)
    nobody = Copies()
    stepped(nobody)
    zero = nobody.step.mean(values, torch.zeros(4))
    assert float(zero.detach()) == 0 and not torch.autograd.grad(zero, values)[0].any()

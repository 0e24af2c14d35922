"""A hook of the user's own that declares its options as shipped hooks do, spec and class in one."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import Tensor

import flowhooks
from flowhooks.documents.spec import option
from flowhooks.errors import ConfigError
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.hook import Hook
from tests.families import learnt
from tests.families.matrix import pairs


class Scaled(HookSpec, Hook):
    """Multiplies every error by a number."""

    slots = {"error"}
    needs = {"sigma"}

    factor: float = option("The number.", default=2.0, minimum=0, maximum=10)
    side: Literal["both", "clean"] = option("Which samples.", default="both")

    def error(self, step, view, error: Tensor) -> Tensor:
        return error * self.factor


PATH = f"{__name__}:Scaled"


def test_it_is_completed_planned_and_run():
    model = learnt("sd3")
    losses = []
    for more in ({}, {"factor": 4}):
        run = {"adapter": {"rank": 2}, "hooks": [{"type": PATH, **more}]}
        with flowhooks.attach(model, run, seed=1, allow_imports=True) as session:
            assert [each.type for each in session.assembly.plan.order] == ["timestep_schedule", PATH]
            losses.append(session.step(pairs(model)).loss.item())
    assert losses[1] == pytest.approx(2 * losses[0])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"factor": 11}, "factor: expected a number"),
        ({"sid": "both"}, "did you mean 'side'"),
        ({"side": "x"}, "'clean'"),
    ],
)
def test_wrong_options_are_refused_with_their_place(option, words):
    run = {"hooks": [{"type": PATH, **option}]}
    with pytest.raises(ConfigError, match=words), flowhooks.attach(learnt("sd3"), run, allow_imports=True):
        pass
    with pytest.raises((ValueError, TypeError), match=next(iter(option))):
        Scaled(**option)


def test_built_in_python_it_runs_beside_others():
    model = learnt("sd3")
    with flowhooks.attach(model, [Scaled(factor=1.0)], adapter={"rank": 2}, seed=1) as session:
        assert session.step(pairs(model)).loss.isfinite()
    assert Scaled().options() == {"factor": 2.0, "side": "both"}

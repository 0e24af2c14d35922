"""A hook of the user's own that declares its options as shipped hooks do, spec and class in one."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import flowhooks
from flowhooks.config import resolve_hook
from flowhooks.documents.spec import option
from flowhooks.errors import ConfigError
from flowhooks.hooks import FlowDPO
from flowhooks.hooks.build import resolved_hooks
from flowhooks.hooks.registry import hook_class
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.hook import Hook
from tests.families import learnt
from tests.families.checks import pairs


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


class Unnamed(HookSpec, Hook):
    """Fills the slots whose methods it defines, and does not list them."""

    def penalty(self, step) -> dict[str, Tensor]:
        return {"unnamed": torch.full((), 7.0)}


class Misspelt(HookSpec, Hook):
    """Names a slot that there is none of."""

    slots = {"eror"}


class Odd(HookSpec, Hook):
    """Has an option of a kind that JSON has nothing for."""

    share: complex = option("A share.", default=1j)


def test_slots_that_are_not_listed_are_those_whose_methods_it_defines():
    model = learnt("sd3")
    with flowhooks.attach(model, [Unnamed()], adapter={"rank": 2}) as session:
        assert session.step(pairs(model)).metrics["unnamed"] == 7


@pytest.mark.parametrize(
    ("own", "words"),
    [("Misspelt", r"\$\.hooks\[0\]: .*'eror'.*did you mean 'error'"), ("Odd", r"\$\.hooks\[0\]: .*annotated.*complex")],
)
def test_a_mistake_in_a_spec_is_told_with_its_place(own, words):
    run = {"hooks": [{"type": f"{__name__}:{own}"}]}
    with pytest.raises(ConfigError, match=words), flowhooks.attach(learnt("sd3"), run, allow_imports=True):
        pass


def test_an_option_cannot_hide_a_method():
    with pytest.raises(TypeError, match="`modules` .* hides a method"):
        type(
            "Hiding", (HookSpec, Hook), {"__annotations__": {"modules": int}, "modules": option("How many.", default=1)}
        )


@pytest.mark.parametrize(
    "beta", [np.float32(-1), None, 1j, torch.tensor(-2.0), Fraction(-1), float("nan"), float("inf"), "1", True]
)
def test_what_is_no_number_above_0_is_refused_by_name(beta):
    with pytest.raises(ValueError, match="`beta`: expected a number"):
        FlowDPO(beta=beta)
    with pytest.raises(ConfigError, match=r"beta: expected a number"):
        resolve_hook({"type": "flow_dpo", "beta": beta}, "$")


def own_values() -> Iterator[tuple[dict, str, object]]:
    times = "flow_custom_timesteps"
    yield {"type": "timestep_schedule", times: (801, 694)}, times, [801, 694]
    yield {"type": "timestep_schedule", times: np.array([801, 694])}, times, [801, 694]
    yield {"type": "flow_dpo", "beta": np.float64(2.5)}, "beta", 2.5
    yield {"type": "teacher_velocity", "teachers": {"a": Path("runs/a")}}, "teachers", {"a": "runs/a"}


@pytest.mark.parametrize(("block", "name", "value"), own_values())
def test_natural_values_of_python_work_as_json_does(block, name, value):
    assert resolve_hook(block, "$").options[name] == value
    built = hook_class(block["type"], "$")(**{key: each for key, each in block.items() if key != "type"})
    assert built.options()[name] == value


@pytest.mark.parametrize("given", [Scaled, "flow_dpo"])
def test_a_class_or_a_name_in_place_of_a_hook_is_told(given):
    with pytest.raises(ConfigError, match=r"\$\.hooks\[0\]: expected a hook or a block"):
        resolved_hooks([given])


def test_a_penalty_of_one_name_twice_is_refused_by_the_plan():
    run = {"adapter": {"rank": 2}, "hooks": [{"type": "anchor_regularizer", "weight": w} for w in (0.1, 0.2)]}
    with pytest.raises(ConfigError, match="penalty:anchor_reference"), flowhooks.attach(learnt("sd3"), run):
        pass


def test_the_shipped_classes_are_listed():
    assert {"FlowDPO", "WeightAverage"} <= set(dir(flowhooks.hooks))

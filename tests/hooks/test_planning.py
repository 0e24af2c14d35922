"""The plan: order from needs, conflicts and unmet needs with both places, implied hooks, counted passes."""

from __future__ import annotations

import itertools

import pytest

from flowhooks.config import hook_defaults, resolve_hook
from flowhooks.errors import ConfigError
from flowhooks.hooks.planning import plan_hooks, slot_table
from flowhooks.hooks.registry import HOOKS, PROVIDERS, declare
from flowhooks.kernel.plan import ANY_DATA, SLOTS, Declaration
from tests.hooks.required import REQUIRED

OPTIONS = {"anchor_regularizer": {"role": "reference", "weight": 0.1, "adapter": None}}
ALL = {"data:image", "data:rejected", "data:mask", "role:reference", "role:ema"}


def declared(*types):
    return [declare(t, OPTIONS.get(t, {}), f"$.hooks[{i}]") for i, t in enumerate(types)]


def planned(*types, provides=ALL):
    return plan_hooks(declared(*types), provides, defaults=lambda type: OPTIONS.get(type, {}), where="run.json")


def test_providers_come_before_those_who_need_them():
    order = [d.type for d in planned("flow_dpo", "mask_reducer").order]
    assert order.index("timestep_schedule") < order.index("paired_views") < order.index("flow_dpo")
    assert order.index("mask_reducer") < order.index("paired_views")


def test_the_order_in_json_changes_nothing():
    types = ("flow_dpo", "mask_reducer", "anchor_regularizer", "timestep_schedule")
    orders = {tuple(d.type for d in planned(*p).order) for p in itertools.permutations(types)}
    assert len(orders) == 1


def test_two_hooks_of_one_type_are_ordered_by_their_options():
    a = declare("anchor_regularizer", {"role": "ema", "weight": 0.1, "adapter": None}, "$.hooks[0]")
    b = declare("anchor_regularizer", {"role": "reference", "weight": 0.2, "adapter": None}, "$.hooks[1]")
    orders = [
        [d.passes for d in plan_hooks(pair, ALL, defaults=lambda t: {}).order if d.type == "anchor_regularizer"]
        for pair in ([a, b], [b, a])
    ]
    assert orders[0] == orders[1]


def test_passes_are_counted_once():
    found = planned("flow_dpo", "anchor_regularizer")
    assert found.passes == (
        ("main", "policy"),
        ("rejected", "policy"),
        ("main", "reference"),
        ("rejected", "reference"),
    )
    assert found.roles == ("policy", "reference")
    assert planned().passes == (("main", "policy"),)


def test_implied_hooks_say_who_asked():
    implied = {d.type: d.where for d in planned("flow_dpo").order if d.where.startswith("(")}
    assert implied == {
        "timestep_schedule": "(implied by every run)",
        "paired_views": "(implied by $.hooks[0])",
    }


def test_two_writers_of_a_one_slot_are_named_with_both_places():
    with pytest.raises(ConfigError) as caught:
        planned("flow_dpo", "flow_dpo")
    text = str(caught.value)
    assert "run.json: $.hooks[1]" in text and "$.hooks[0]" in text and "each brings a loss" in text


def test_hooks_that_exclude_each_other_are_named_with_both_places_and_the_reason():
    def hooks(*types):
        loner = {"excludes": dict.fromkeys(("b", "c"), "one of them is enough, and {other} is there")}
        return [
            Declaration(type=t, where=f"$.hooks[{i}]", gives=frozenset({t}), **(loner if t == "a" else {}))
            for i, t in enumerate(("sigma", *types))
        ]

    plan_hooks(hooks("a", "d"), ())
    plan_hooks(hooks("b", "c"), ())
    for types, place, other in ((("a", "b"), 1, 2), (("b", "a"), 2, 1)):
        with pytest.raises(ConfigError) as caught:
            plan_hooks(hooks(*types), (), where="run.json")
        (problem,) = caught.value.problems
        assert problem.path == f"$.hooks[{place}]"
        said = f"`a` cannot be in one run with `b` (at $.hooks[{other}]): one of them is enough, and `b` is there"
        assert said in str(problem)
    with pytest.raises(ConfigError) as caught:
        plan_hooks(hooks("a", "b", "c"), ())
    assert len(caught.value.problems) == 2


def test_a_need_of_a_column_is_met_by_its_name_or_by_a_loop_of_somebody_else():
    own = Declaration(type="own", where="$.hooks[0]", needs=frozenset({"data:label", "data:image"}))
    given = {"sigma", "data:image"}
    assert plan_hooks([own], {*given, "data:label"}) and plan_hooks([own], {"sigma", ANY_DATA})
    with pytest.raises(ConfigError, match="needs 'data:label'.*name the column that holds it under 'label'"):
        plan_hooks([own], given)


def test_unmet_needs_are_all_reported_with_the_remedy():
    with pytest.raises(ConfigError) as caught:
        planned("flow_dpo", "mask_reducer", provides={"data:image"})
    problems = caught.value.problems
    assert {p.path for p in problems} >= {"$.hooks[0]", "$.hooks[1]"}
    text = str(caught.value)
    assert "'adapter' section" in text and "reference_strict" in text and "conditioning_type 'mask'" in text


def test_a_circle_is_an_error():
    a = Declaration(type="a", where="$.hooks[0]", needs=frozenset({"y"}), gives=frozenset({"x", "sigma"}))
    b = Declaration(type="b", where="$.hooks[1]", needs=frozenset({"x"}), gives=frozenset({"y"}))
    with pytest.raises(ConfigError, match="wait for each other"):
        plan_hooks([a, b], ())


def test_target_slots_are_one_per_view():
    def target(view, i):
        return Declaration(
            type=f"t{i}", where=f"$.hooks[{i}]", slots=frozenset({f"target:{view}"}), gives=frozenset({f"{i}"})
        )

    sigma = Declaration(type="s", where="-", gives=frozenset({"sigma"}))
    plan_hooks([target("main", 0), target("rejected", 1), sigma], ())
    with pytest.raises(ConfigError, match="each says what the network should predict"):
        plan_hooks([target("main", 0), target("main", 1), sigma], ())


def test_table_lists_every_slot_in_order():
    rows = slot_table(planned("flow_dpo", "mask_reducer"))
    assert [row[0] for row in rows] == list(SLOTS)
    assert dict((r[0], r[2]) for r in rows)["views"] == ("timestep_schedule", "mask_reducer", "paired_views")


def test_a_weight_of_zero_declares_no_pass():
    declaration = declare("anchor_regularizer", {"role": "ema", "weight": 0}, "$.hooks[0]")
    assert declaration.passes == () and declaration.needs == frozenset()


@pytest.mark.parametrize("type", HOOKS)
def test_declared_slots_are_the_methods_of_the_class(type):
    from flowhooks.hooks.registry import hook_class
    from flowhooks.kernel.hook import defined_slots

    options = resolve_hook({"type": type, **REQUIRED.get(type, {}), **OPTIONS.get(type, {})}, "-").options
    slots = {slot.partition(":")[0] for slot in declare(type, options, "-").slots}
    assert slots == defined_slots(hook_class(type, "-"))


def test_every_provider_gives_what_it_is_listed_for():
    for need, type in PROVIDERS.items():
        assert need in declare(type, hook_defaults(type), "-").gives


def test_an_unknown_hook_names_the_known_ones():
    with pytest.raises(ConfigError, match="flow_dpo"):
        declare("flow_dop", {}, "$.hooks[0]")
    with pytest.raises(ConfigError, match="cannot import"):
        declare("nowhere.at.all:Hook", {}, "$.hooks[0]")

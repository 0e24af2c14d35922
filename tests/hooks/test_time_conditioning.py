"""What `time_conditioning` says on a network that has a second time of its own."""

from __future__ import annotations

import pytest

import flowhooks
from flowhooks.errors import ModelError
from flowhooks.probe import probe
from flowhooks.testing.wan import wan_transformer
from tests.families import PIPELINES, learnt, tiny


@pytest.fixture(scope="module")
def native():
    """An AnyFlow pipeline whose network was built with other values than the usual ones."""
    pipe = tiny("anyflow")
    pipe.transformer = wan_transformer("AnyFlowTransformer3DModel", gate_value=0.4, deltatime_type="t-r")
    return probe(pipe, arguments=PIPELINES["anyflow"].arguments)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate_value": 0.4, "deltatime_type": "t-r", "timestep_scale": 1000.0},
        {"gate_value": 0.25, "deltatime_type": "r", "timestep_scale": None},
    ],
    ids=["none", "its own", "the defaults"],
)
def test_defaults_and_the_networks_own_values_are_no_contradiction(native, options):
    with flowhooks.attach(native, [{"type": "time_conditioning", **options}]) as session:
        assert not session.assembly.modules()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_value": 0.5}, "`gate_value` is 0.5, but AnyFlowPipeline .* was built with 0.4; leave `gate_value` out"),
        ({"timestep_scale": 1.0}, "`timestep_scale` is 1.0, but .* was built with 1000.0"),
    ],
)
def test_another_value_is_refused_and_both_are_named(native, options, message):
    with (
        pytest.raises(ModelError, match=message),
        flowhooks.attach(native, [{"type": "time_conditioning", **options}]),
    ):
        pass


def test_an_option_that_the_network_does_not_have():
    model = learnt("hunyuan-image-distilled")
    assert model.native_second_time
    with flowhooks.attach(model, [{"type": "time_conditioning"}]):
        pass
    hooks = [{"type": "time_conditioning", "deltatime_type": "t-r"}]
    with (
        pytest.raises(ModelError, match="`deltatime_type` is 't-r'.*has no such setting"),
        flowhooks.attach(model, hooks),
    ):
        pass

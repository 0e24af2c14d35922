"""A pipeline's scheduler tells where each step ends, whatever made its sigmas; where nobody knows that, it is an
error."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

import flowhooks
from flowhooks import FlowMapScheduler
from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import SecondTime, TimeUnit
from flowhooks.flow_map.step_time import FlowMapError, StepTime
from flowhooks.sampling.flow_map_steps import first_order, require_first_order

TIME = TimeUnit(name="timestep", scale=1000.0, offset=0.0, dtype=torch.float32)


class Network(torch.nn.Module):
    """The one thing that a second time needs of a network: it maps its time."""

    def __init__(self):
        super().__init__()
        self.embedder = torch.nn.Linear(1, 1)

    def forward(self, sample, timestep):
        self.embedder(timestep[:, None].float())
        return torch.ones_like(sample)


def flow_map(network: Network, time: TimeUnit = TIME) -> list[tuple[float, float]]:
    """The intervals that the network is told, call by call, from now on."""
    second = SecondTime(network, "embedder", [time], copy.deepcopy(network.embedder), torch.float32, gate=0.5,
                        deltatime_type="r")  # fmt: skip
    second.attach()
    seen, asked = [], second.asked

    def listening(arguments):
        span = asked(arguments)
        seen.append((span.start, span.end))
        return span

    second.asked = listening
    return seen


def walk(scheduler, begin: int | None = None, first: int = 0, time: TimeUnit = TIME):
    """The intervals of a sampling loop as pipelines write it, with guidance in two calls."""
    network = Network()
    seen, sample = flow_map(network, time), torch.ones(1, 2)
    if begin is not None:
        scheduler.set_begin_index(begin)
    for timestep in scheduler.timesteps[begin or first :]:
        for _ in range(2):
            output = network(sample, timestep.expand(1))
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
    assert seen[::2] == seen[1::2] and type(sample) is torch.Tensor
    return seen[::2]


def intervals(scheduler, first: int = 0):
    sigmas = [float(s) for s in scheduler.sigmas]
    return list(zip(sigmas, sigmas[1:], strict=False))[first:]


SCHEDULES = {
    "static shift": (FlowMatchEulerDiscreteScheduler(shift=3.0), {"num_inference_steps": 4}),
    "dynamic shift": (
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        {"num_inference_steps": 4, "mu": 0.9},
    ),
    "own sigmas": (FlowMatchEulerDiscreteScheduler(), {"sigmas": [1.0, 0.6, 0.3]}),
    "own timesteps": (FlowMatchEulerDiscreteScheduler(), {"timesteps": [1000.0, 700.0, 200.0]}),
    "one step": (FlowMatchEulerDiscreteScheduler(shift=2.0), {"num_inference_steps": 1, "sigmas": [1.0]}),
    "flow map": (FlowMapEulerDiscreteScheduler(shift=5.0), {"num_inference_steps": 4}),
    "flow map, own timesteps": (FlowMapEulerDiscreteScheduler(), {"timesteps": [1000.0, 400.0]}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_steps_like_the_pipelines_own_and_tells_where_each_step_ends(name):
    own, call = SCHEDULES[name]
    scheduler = FlowMapScheduler.from_scheduler(own)
    for each in (own, scheduler):
        each.set_timesteps(**call)
    assert isinstance(scheduler, type(own)) and torch.equal(scheduler.timesteps, own.timesteps)
    found = walk(scheduler)
    assert found == intervals(own) and found[-1][1] == 0
    assert all(r < t for t, r in found)
    states = []
    for each in (own, scheduler):
        each.set_timesteps(**call)
        state = torch.linspace(-1, 1, 6).reshape(1, 6)
        for timestep in each.timesteps:
            if each is scheduler:
                each.pass_over()
            state = each.step(state.sin(), timestep, state, return_dict=False)[0]
        states.append(state)
    assert torch.equal(*states)


def test_a_compiled_network_is_told_too():
    scheduler, sample, network = FlowMapScheduler(), torch.ones(1, 2), Network()
    seen = flow_map(network)
    network.compile(backend="eager")
    scheduler.set_timesteps(2)
    for timestep in scheduler.timesteps:
        scheduler.step(network(sample, timestep.expand(1)), timestep, sample)
    assert seen == intervals(scheduler)


@pytest.mark.parametrize("begin", [None, 2])
def test_a_pipeline_that_starts_midway(begin):
    """Whether it says where (`set_begin_index`) or only hands over fewer timesteps."""
    scheduler = FlowMapScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    assert walk(scheduler, begin=begin, first=2) == intervals(scheduler, 2)


def test_noise_at_zero_is_turned_round():
    scheduler = FlowMapScheduler(invert_sigmas=True)
    scheduler.set_timesteps(3)
    found = walk(scheduler, time=TimeUnit(name="timestep", scale=-1000.0, offset=1000.0, dtype=torch.float32))
    assert found == [(1 - t, 1 - r) for t, r in intervals(scheduler)]
    assert found[0][0] > found[0][1]


@pytest.mark.parametrize(
    "compute",
    [
        lambda t: t.expand(2),
        lambda t: (1000 - t.expand(2).to(torch.bfloat16)) / 1000,
        lambda t: torch.cat([t[None]] * 2),
        lambda t: (torch.ones(1, 3) * t).flatten(),
        lambda t: copy.deepcopy(t),
    ],
)
def test_a_time_remembers_its_step_through_what_pipelines_compute(compute):
    scheduler = FlowMapScheduler()
    scheduler.set_timesteps(4)
    for times in (scheduler.timesteps, scheduler.timesteps.to(torch.float64), scheduler.timesteps[1:][-2:]):
        found = [compute(t) for t in times]
        assert [t.step for t in found] == list(range(4))[-len(times) :]
        assert all(t.source is scheduler for t in found)
    assert not isinstance(scheduler.timesteps.max(), StepTime) and "timesteps" not in vars(scheduler)


def test_a_time_of_somebody_elses_is_refused():
    network, stock, scheduler = Network(), FlowMatchEulerDiscreteScheduler(), FlowMapScheduler()
    seen = flow_map(network)
    for each in (stock, scheduler):
        each.set_timesteps(3)
    with pytest.raises(FlowMapError, match="comes from no FlowMapScheduler.*from_scheduler"):
        network(torch.ones(1, 2), stock.timesteps[0].expand(1))
    with pytest.raises(FlowMapError, match="comes from no FlowMapScheduler"):
        network(torch.ones(1, 2), torch.tensor([float(scheduler.timesteps[0])]))
    with pytest.raises(FlowMapError, match="comes from no FlowMapScheduler"):
        network(torch.ones(3, 2), scheduler.timesteps)
    with pytest.raises(FlowMapError, match="given the time 500 in `timestep` for a step that starts at 1000"):
        network(torch.ones(1, 2), (scheduler.timesteps[0] / 2).expand(1))
    scheduler.set_begin_index(0)
    with pytest.raises(FlowMapError, match="at the time of step 1 of a FlowMapScheduler that is at step 0 of 3"):
        network(torch.ones(1, 2), scheduler.timesteps[1].expand(1))
    assert not seen


def test_a_network_that_never_asked_is_not_stepped():
    scheduler, sample = FlowMapScheduler(), torch.ones(1, 2)
    scheduler.set_timesteps(2)
    with pytest.raises(FlowMapError, match="no network asked where that ends.*load_flow_map"):
        scheduler.step(sample, scheduler.timesteps[0], sample)
    scheduler.set_timesteps(2)
    network = Network()
    flow_map(network)
    network(sample, scheduler.timesteps[0].expand(1))
    scheduler.step(sample, scheduler.timesteps[0], sample)
    with pytest.raises(FlowMapError, match="step 1, and no network asked"):
        scheduler.step(sample, scheduler.timesteps[1], sample)
    with pytest.raises(FlowMapError, match="leave `per_token_timesteps` out"):
        scheduler.step(sample, scheduler.timesteps[1], sample, per_token_timesteps=sample + 3)
    stock = scheduler.stock()
    assert type(stock) is FlowMatchEulerDiscreteScheduler
    stock.set_timesteps(2)
    stock.step(sample, stock.timesteps[0], sample)


def test_a_copy_beside_it_takes_the_same_steps():
    """As pipelines do that make sound beside images."""
    scheduler, sample, network = FlowMapScheduler(), torch.ones(1, 2), Network()
    flow_map(network)
    scheduler.set_timesteps(2)
    beside = copy.deepcopy(scheduler)
    for timestep in scheduler.timesteps:
        network(sample, timestep.expand(1))
        for each in (scheduler, beside):
            each.step(sample, timestep, sample)


@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "from_config", "from_pretrained", "from_scheduler"])
def test_copies_tell_too(kind, tmp_path):
    scheduler = FlowMapScheduler.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0))
    scheduler.set_timesteps(2)
    if kind == "from_pretrained":
        scheduler.save_pretrained(tmp_path)
        stock = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
        assert type(stock) is FlowMatchEulerDiscreteScheduler and stock.config.shift == 3.0
    made = {
        "deepcopy": lambda: copy.deepcopy(scheduler),
        "pickle": lambda: pickle.loads(pickle.dumps(scheduler)),  # our own bytes
        "from_config": lambda: FlowMapScheduler.from_config(scheduler.config),
        "from_pretrained": lambda: FlowMapScheduler.from_pretrained(tmp_path),
        "from_scheduler": lambda: FlowMapScheduler.from_scheduler(scheduler),
    }[kind]()
    assert type(made) is FlowMapScheduler and made is not scheduler
    made.set_timesteps(2)
    assert all(t.source is made for t in made.timesteps)
    assert walk(made) == intervals(scheduler)


def test_a_shift_that_was_set_since_is_kept():
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own.set_shift(7.0)
    assert FlowMapScheduler.from_scheduler(own).shift == 7.0


OTHERS = [
    FlowMatchHeunDiscreteScheduler(),
    FlowMatchLCMScheduler(),
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
]


@pytest.mark.parametrize("own", OTHERS, ids=lambda s: type(s).__name__)
def test_other_schedulers_are_refused_by_name_and_replaced_while_we_draw(own):
    with pytest.raises(ModelError, match=f"^{type(own).__name__} "):
        require_first_order(own)
    telling = FlowMapScheduler.from_scheduler(own)
    assert type(telling) is FlowMapScheduler and not telling.config.stochastic_sampling
    assert telling.config.shift == (5.0 if isinstance(own, UniPCMultistepScheduler) else 1.0)

    class Pipe:
        scheduler = own

    with first_order(pipe := Pipe()):
        assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
        assert pipe.scheduler.config.shift == telling.config.shift
    assert pipe.scheduler is own


def test_the_replacement_shifts_by_the_resolution_where_the_pipelines_own_did():
    own = FlowMatchLCMScheduler(use_dynamic_shifting=True, max_shift=0.9, num_train_timesteps=500)
    kept = ("use_dynamic_shifting", "max_shift", "base_shift", "num_train_timesteps")
    assert [FlowMapScheduler.from_scheduler(own).config[name] for name in kept] == [True, 0.9, 0.5, 500]
    noisy = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, stochastic_sampling=True)
    config = FlowMapScheduler.from_scheduler(noisy).config
    assert config.use_dynamic_shifting and not config.stochastic_sampling


def test_what_cannot_be_sampled_so_is_refused():
    class Own(FlowMatchEulerDiscreteScheduler):
        pass

    with pytest.raises(FlowMapError, match="DDIMScheduler is no scheduler that is set up for flow matching"):
        FlowMapScheduler.from_scheduler(DDIMScheduler())
    with pytest.raises(FlowMapError, match="Own changes FlowMatchEulerDiscreteScheduler"):
        FlowMapScheduler.from_scheduler(Own())
    assert flowhooks.FlowMapScheduler is FlowMapScheduler

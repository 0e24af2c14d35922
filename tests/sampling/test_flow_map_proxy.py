"""What a stock pipeline's scheduler says of the step to come, whatever made its sigmas."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    StableDiffusion3Img2ImgPipeline,
    UniPCMultistepScheduler,
)

import flowhooks
from flowhooks.errors import ModelError
from flowhooks.probe import probe
from flowhooks.probe.times import Time
from flowhooks.sampling.flow_map_proxy import FlowMapSchedulerProxy, first_order, require_first_order
from tests.families import tiny

SHORT = {"max_sequence_length": 8}
TIME = Time(name="timestep", scale=1000.0, offset=0.0, dtype=torch.float32)


class Pipe:
    """The one thing the proxy looks at."""

    def __init__(self, scheduler):
        self.scheduler = scheduler


def told(scheduler, begin: int | None = None, first: int = 0, time: Time = TIME):
    """The intervals of a sampling loop as pipelines write it."""
    proxy = FlowMapSchedulerProxy(Pipe(scheduler), [time])
    if begin is not None:
        scheduler.set_begin_index(begin)
    found, sample = [], torch.ones(1, 2)
    for timestep in scheduler.timesteps[begin or first :]:
        span = proxy({"timestep": timestep.expand(1)})
        found.append((span.start, span.end))
        sample = scheduler.step(torch.ones(1, 2), timestep, sample, return_dict=False)[0]
    assert proxy({"timestep": torch.zeros(1)}) is None
    return found


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
def test_every_step_ends_where_the_next_begins_and_the_last_at_zero(name):
    scheduler, call = SCHEDULES[name]
    scheduler.set_timesteps(**call)
    found = told(scheduler)
    assert found == intervals(scheduler) and found[-1][1] == 0
    assert all(r < t for t, r in found)


@pytest.mark.parametrize("begin", [None, 2])
def test_a_pipeline_that_starts_midway(begin):
    """Whether it says where (`set_begin_index`) or only hands over fewer timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    assert told(scheduler, begin=begin, first=2) == intervals(scheduler, 2)


def test_noise_at_zero_is_turned_round():
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(3)
    found = told(scheduler, time=Time(name="timestep", scale=-1000.0, offset=1000.0, dtype=torch.float32))
    assert found == [(1 - t, 1 - r) for t, r in intervals(scheduler)]
    assert found[0][0] > found[0][1]


def test_nothing_is_told_before_the_first_run():
    assert FlowMapSchedulerProxy(Pipe(FlowMatchEulerDiscreteScheduler()), [TIME])({}) is None


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchHeunDiscreteScheduler(),
        FlowMatchLCMScheduler(),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ],
    ids=lambda s: type(s).__name__,
)
def test_other_schedulers_are_refused_by_name_and_replaced_while_we_draw(scheduler):
    with pytest.raises(ModelError, match=f"^{type(scheduler).__name__} "):
        require_first_order(scheduler)
    pipe = Pipe(scheduler)
    pipe.scheduler.set_timesteps(2)
    with pytest.raises(ModelError, match="cannot sample a flow map"):
        FlowMapSchedulerProxy(pipe, [TIME])({"timestep": torch.ones(1)})
    with first_order(pipe):
        assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    assert pipe.scheduler is scheduler


def test_the_replacement_keeps_the_shift():
    pipe = Pipe(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0))
    with first_order(pipe):
        assert pipe.scheduler.config.shift == 5.0


def test_the_replacement_shifts_by_the_resolution_where_the_pipelines_own_did():
    own = FlowMatchLCMScheduler(use_dynamic_shifting=True, max_shift=0.9, num_train_timesteps=500)
    pipe = Pipe(own)
    with first_order(pipe):
        kept = ("use_dynamic_shifting", "max_shift", "base_shift", "num_train_timesteps")
        assert [pipe.scheduler.config[name] for name in kept] == [True, 0.9, 0.5, 500]
    noisy = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, stochastic_sampling=True)
    with first_order(pipe := Pipe(noisy)):
        assert pipe.scheduler.config.use_dynamic_shifting and not pipe.scheduler.config.stochastic_sampling


class Ends:
    """The second time that the network's embedder was given, call by call, in thousandths."""

    def __init__(self, session):
        self.seen: list[float] = []
        interval = session.model.interval
        before = interval._second

        def second(arguments, span):
            found = before(arguments, span)
            self.seen.append(round(float(found["timestep"].flatten()[0])))
            return found

        interval._second = second


def draw(pipe, **more):
    call = dict(output_type="latent", guidance_scale=1.0, **SHORT)
    return pipe("one", generator=torch.Generator().manual_seed(0), **{**call, **more})[0]


def test_a_stock_pipeline_is_told_under_whatever_scheduler_it_has():
    pipe = tiny("sd3")
    model = probe(pipe, arguments=SHORT)
    with flowhooks.attach(model, [{"type": "time_conditioning"}]) as session:
        ends = Ends(session)
        first = draw(pipe, num_inference_steps=3)
        expected = [round(1000 * float(s)) for s in pipe.scheduler.sigmas[1:]]
        assert ends.seen == expected and expected[-1] == 0
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        assert torch.equal(draw(pipe, num_inference_steps=3), first)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        assert torch.equal(draw(pipe, num_inference_steps=3), first)
        assert ends.seen == 3 * expected
        # Guidance asks twice a step, in one doubled batch.
        ends.seen.clear()
        draw(pipe, num_inference_steps=3, guidance_scale=4.0)
        assert ends.seen == expected


def test_image_to_image_starts_in_the_middle():
    pipe = tiny("sd3")
    model = probe(pipe, arguments=SHORT)
    pictures = StableDiffusion3Img2ImgPipeline(**pipe.components)
    with flowhooks.attach(model, [{"type": "time_conditioning"}]) as session:
        ends = Ends(session)
        image = torch.rand(1, 3, 16, 16)
        draw(pictures, num_inference_steps=4, image=image, strength=0.5, height=16, width=16)
        assert ends.seen == [round(1000 * float(s)) for s in pipe.scheduler.sigmas[3:]]


@pytest.mark.parametrize("before", [True, False])
def test_the_schedule_is_that_of_the_pipeline_that_runs(before):
    """Image to image shares the network and has a scheduler of its own: what the other's holds, or never held, does not
    matter."""
    pipe = tiny("sd3")
    model = probe(pipe, arguments=SHORT)
    own = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pictures = StableDiffusion3Img2ImgPipeline(**{**pipe.components, "scheduler": own})
    with flowhooks.attach(model, [{"type": "time_conditioning"}]) as session:
        if before:
            draw(pipe, num_inference_steps=5)
        ends = Ends(session)
        image = torch.rand(1, 3, 16, 16)
        draw(pictures, num_inference_steps=4, image=image, strength=0.5, height=16, width=16)
        assert ends.seen == [round(1000 * float(s)) for s in own.sigmas[3:]] and len(ends.seen) == 2
        ends.seen.clear()
        draw(pipe, num_inference_steps=3)
        assert ends.seen == [round(1000 * float(s)) for s in pipe.scheduler.sigmas[1:]]


def test_a_pipeline_saved_while_attached_is_the_stock_one(tmp_path):
    pipe = tiny("sd3")
    with flowhooks.attach(probe(pipe, arguments=SHORT), [{"type": "time_conditioning"}]):
        draw(pipe, num_inference_steps=2)
        pipe.scheduler.save_pretrained(tmp_path)
    loaded = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert dict(loaded.config).items() >= {k: v for k, v in pipe.scheduler.config.items() if k[0] != "_"}.items()

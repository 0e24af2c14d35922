"""Components that accelerate moves to the accelerator only while they run."""

from __future__ import annotations

import pytest
import torch

from flowhooks.cli import main
from flowhooks.errors import ModelError
from flowhooks.probe import probe
from flowhooks.probe.recorder import execution_device, run, without_side_effects
from flowhooks.probe.runs import find_networks
from tests.families import PIPELINES, tiny


def offloaded(name):
    """With the hooks of ``enable_model_cpu_offload``; the accelerator is the CPU."""
    pipe = tiny(name)
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def hooks(pipe):
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [(part._hf_hook, part.forward, part._old_forward) for part in parts], list(pipe._all_hooks)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan-two-experts"])
def test_an_offloaded_pipeline_is_learnt_and_keeps_its_hooks(name):
    pipe, arguments = offloaded(name), PIPELINES[name].arguments
    before = hooks(pipe)
    model = probe(pipe, arguments=arguments)
    condition = model.encode_prompts(["one"])
    assert hooks(pipe) == before
    plain = probe(tiny(name), arguments=arguments)
    noisy, sigma = torch.randn(1, *model.sample_shape), torch.tensor([0.95])
    with torch.no_grad():
        assert torch.equal(model.predict(noisy, sigma, condition), plain.predict(noisy, sigma, condition))
    size = {key: model.call()[key] for key in ("height", "width")}
    assert torch.equal(model.decode(noisy, **size), plain.decode(noisy, **size))


def test_an_offloaded_module_computes_where_its_hook_takes_it():
    pipe = offloaded("sd3")
    assert execution_device(pipe.vae) == torch.device("cpu", 0)
    pipe.vae._hf_hook.execution_device = torch.device("cuda", 1)
    assert execution_device(pipe.vae) == torch.device("cuda", 1)
    assert execution_device(tiny("sd3").vae) == torch.device("cpu")


def test_a_run_that_was_stopped_leaves_nothing_on_the_accelerator(monkeypatch):
    """The probe stops most of its runs before the pipeline itself would free its components."""
    pipe = offloaded("sd3")
    freed = []
    free = type(pipe).maybe_free_model_hooks
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: (freed.append(1), free(self)))
    model = probe(pipe, arguments=PIPELINES["sd3"].arguments)
    freed.clear()
    model.encode_prompts(["one"])
    assert freed


def test_neither_does_one_that_failed(monkeypatch):
    pipe = offloaded("sd3")
    freed = []
    free = type(pipe).maybe_free_model_hooks
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: (freed.append(1), free(self)))
    before = hooks(pipe)
    with pytest.raises(ModelError, match="divisible by"), without_side_effects(pipe, find_networks(pipe)):
        run(pipe, prompt="one", height=17, width=16)
    assert freed and hooks(pipe) == before


def test_offloading_without_an_accelerator_is_one_clear_line(monkeypatch, capsys):
    # Diffusers' own refusal, whatever this machine has.
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.get_device", lambda: "cpu")
    assert main(["probe", "tiny:sd3", "--offload"]) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "offload" in line]
    assert "`--offload` does not work on StableDiffusion3Pipeline here" in line and "requires accelerator" in line


def test_with_an_accelerator_the_command_learns_the_offloaded_pipeline(monkeypatch, capsys):
    from diffusers import DiffusionPipeline

    enable, asked = DiffusionPipeline.enable_model_cpu_offload, []

    def on_the_cpu(self, *args, **kwargs):
        asked.append(kwargs)
        return enable(self, device="cpu")

    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", on_the_cpu)
    assert main(["probe", "tiny:sd3", "--offload"]) == 0
    assert asked and "tokens: 16" in capsys.readouterr().out

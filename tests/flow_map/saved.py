"""Folders of flow maps on tiny pipelines, as a run leaves them, and what they must generate."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

import flowhooks
from flowhooks.flow_map.scheduler import Span
from flowhooks.modules_file import save_modules
from flowhooks.sampling.flow_map_steps import first_order
from tests.families import PIPELINES, learnt

HOOKS = [{"type": "time_conditioning", "gate_value": 0.4}]
STEPS = 3


@lru_cache
def flow_map(name: str) -> tuple[Path, Tensor]:
    """The folder of a flow map on a tiny pipeline, with random weights, and the latents of three steps.

    The latents come from the pipeline under Diffusers' own scheduler, with every call of the network told its interval
    from a list of the sigmas, not by the scheduler.
    """
    folder = Path(mkdtemp(prefix="flow-map-"))
    model = learnt(name)
    with flowhooks.attach(model, {"hooks": HOOKS, "adapter": {"rank": 2}}) as session, torch.no_grad():
        for i, parameter in enumerate(session.parameters().values()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        session.adapter.save(folder, {})
        save_modules(folder, session.assembly, model, {})
        model.pipe.scheduler = getattr(model.pipe.scheduler, "stock", lambda: model.pipe.scheduler)()
        with first_order(model.pipe):
            counted = iter(range(STEPS))

            def tell(network: Any, args: Any) -> None:
                sigmas = model.pipe.scheduler.sigmas.tolist()
                k = next(counted)
                session.model.interval._between = (Span(start=sigmas[k], end=sigmas[k + 1]),)

            handle = model.transformer.register_forward_pre_hook(tell, prepend=True)
            found = sampled(model.pipe, name)
            handle.remove()
    return folder, found


def sampled(pipe: Any, name: str, **more: Any) -> Tensor:
    """Latents of a pipeline in three steps, without guidance unless ``more`` says so."""
    pipe.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 1.0, **PIPELINES[name].arguments, **more}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return pipe(prompt="one", num_inference_steps=STEPS, output_type="latent", generator=generator, **call)[0]

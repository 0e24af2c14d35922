"""What is read off Diffusers' source is what its classes are."""

from __future__ import annotations

import inspect
from pathlib import Path

import diffusers
import pytest
from diffusers import pipelines
from diffusers.schedulers import scheduling_utils

from flowhooks.checks.library import (
    call_arguments,
    checkpoints_gradients,
    exported,
    foreign_parts,
    is_foreign,
    single_arguments,
)
from flowhooks.checks.trainable import FROM_BETAS


def test_the_classes_are_those_that_can_be_imported():
    names = exported()
    assert names is not None and {"DiffusionPipeline", "FluxPipeline", "WanTransformer3DModel"} <= names
    assert [name for name in sorted(names) if "Scheduler" in name and not hasattr(diffusers, name)] == []


@pytest.mark.parametrize("pipeline", ["StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline", "QwenImagePipeline"])
def test_arguments_of_a_call(pipeline):
    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    assert call_arguments(pipeline) == set(parameters) - {"self"}


@pytest.mark.parametrize(
    ("pipeline", "single"),
    [
        ("LongCatImageEditPipeline", True),
        ("HunyuanVideo15ImageToVideoPipeline", True),
        ("DreamLitePipeline", True),
        # They state a list, be it for one sample or for several.
        ("FluxKontextPipeline", False),
        ("Flux2Pipeline", False),
        ("QwenImageEditPlusPipeline", False),
        ("NoPipeline", False),
    ],
)
def test_an_argument_that_states_no_list_takes_one_image(pipeline, single):
    assert ("image" in single_arguments(pipeline)) == single


def test_of_a_call_that_takes_anything_or_is_not_there_nothing_is_known():
    assert call_arguments("HiDreamImagePipeline") is None
    assert call_arguments("NoPipeline") is None and checkpoints_gradients("NoModel") is None


@pytest.mark.parametrize(
    "network", ["SD3Transformer2DModel", "FluxTransformer2DModel", "WanTransformer3DModel", "LuminaNextDiT2DModel"]
)
def test_recomputing_activations(network):
    assert checkpoints_gradients(network) == getattr(diffusers, network)._supports_gradient_checkpointing


def test_schedulers_of_betas():
    """Those of Diffusers that are built from betas; JAX's and old ones aside."""
    schedulers = {
        name: getattr(diffusers, name)
        for name in exported() or ()
        if name.endswith("Scheduler") and not name.startswith("Flax")
    }
    found = {
        name
        for name, kind in schedulers.items()
        if isinstance(kind, type)
        and issubclass(kind, scheduling_utils.SchedulerMixin)
        and "beta_start" in inspect.signature(kind.__init__).parameters
    }
    # One is a stand-in where the package that it needs is not installed.
    assert found <= FROM_BETAS <= found | {"DPMSolverSDEScheduler"}


def test_what_diffusers_would_import_is_foreign():
    """It asks whether its pipelines have such a module, and imports a package of that name where they have not."""
    folder = Path(pipelines.__file__).parent
    names = {each.name for each in folder.iterdir() if each.is_dir()} | {"os", "torch", "stranger", "", "..", "numpy"}
    assert {name for name in names if is_foreign(name)} == {name for name in names if not hasattr(pipelines, name)}
    assert not any(map(is_foreign, ("diffusers", "transformers", None))) and is_foreign(3)


def test_every_part_of_an_index_that_is_made_by_other_code_is_told():
    index = {
        "_class_name": ["mine", "Mine"],
        "_diffusers_version": "1",
        "vae": ["stranger", "Thing"],
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": [None, None],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "empty": [],
    }
    told = list(foreign_parts(index))
    assert [line.partition(", ")[0] for line in told[1:]] == ["has 'vae' made by 'stranger'"]
    assert told[0].startswith("has '_class_name' made by ['mine', 'Mine'], code that comes with neither")

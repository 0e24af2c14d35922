"""A training adapter on one transformer: every kind of file, its strength, when it is on, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from flowhooks.adapters import FrozenAdapter, build_adapter
from flowhooks.adapters.base import base_shape
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.names import LORA_FILE, PEFT_FILE
from flowhooks.adapters.training import TrainingAdapter
from flowhooks.errors import AdapterError
from flowhooks.export.dialects import export_lora
from tests.adapters.helpers import KINDS, appearance, forward, predict, section, train_randomly, transformer

FIRST = "transformer_blocks.0.attn.to_q"
#: Kinds of files that add to a layer; a DoRA scales it, and is refused.
ADDING = [kind for kind in KINDS if kind != "dora"]


@contextmanager
def held(model, source, **told):
    adapter = TrainingAdapter(SimpleNamespace(transformer=model, pipe=None, device=torch.device("cpu")), source, **told)
    with adapter.attached():
        yield adapter


def first_layer(model) -> torch.Tensor:
    """What the first adapted layer gives."""
    found = []
    handle = model.get_submodule(FIRST).register_forward_hook(lambda module, args, output: found.append(output))
    try:
        predict(model)
    finally:
        handle.remove()
    return found[0]


@pytest.mark.parametrize("kind", ADDING)
def test_strength_is_a_factor_of_the_change_of_every_kind(kind, teacher):
    folder, alone = teacher(kind, target_modules=[FIRST])
    model = transformer()
    bare = first_layer(model)
    changes = []
    for strength in (1.0, 0.5, 2.0):
        with held(model, folder, strength=strength) as adapter, adapter.switched(True):
            changes.append(first_layer(model) - bare)
    assert torch.equal(first_layer(model), bare)
    torch.testing.assert_close(changes[0] + bare, first_layer(alone), rtol=0, atol=1e-6)
    torch.testing.assert_close(changes[1], changes[0] / 2, rtol=0, atol=1e-6)
    torch.testing.assert_close(changes[2], changes[0] * 2, rtol=0, atol=2e-6)
    assert changes[0].abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "lycoris-lokr"])
def test_it_is_on_where_a_gradient_is_and_gets_none_itself(kind, teacher):
    folder, alone = teacher(kind)
    model = transformer()
    looks, bare = appearance(model), predict(model)
    student = build_adapter(model, section("lora", rank=3))
    train_randomly(student, seed=7, std=0.1)
    with held(model, folder) as adapter:
        with torch.no_grad():
            off = predict(model)
        with student.disabled():
            assert torch.equal(predict(model), bare)
            with adapter.switched(True):
                torch.testing.assert_close(predict(model), predict(alone), rtol=0, atol=1e-5)
        # As in the backward pass of a checkpointed block, which runs outside every block of ours.
        on = forward(model)
        with adapter.switched(True):
            assert torch.equal(predict(model), on)
        with adapter.switched(False):
            assert torch.equal(forward(model), off)
        assert not torch.allclose(on, off)
        on.square().mean().backward()
        assert all(p.grad is not None for p in student.parameters())
        assert not any(t.requires_grad or t.grad is not None for t in adapter.tensors())
    student.detach()
    assert appearance(model) == looks and torch.equal(predict(model), bare)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("quiet_compiler")
def test_a_compiled_layer_looks_at_it_in_every_call(teacher):
    folder, _ = teacher("lora", target_modules=[FIRST])
    model = transformer()
    layer = model.get_submodule(FIRST)
    given = torch.randn(2, base_shape(model, FIRST)[1], generator=torch.Generator().manual_seed(0))
    with held(model, folder) as adapter, torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        compiled = torch.compile(lambda x: layer(x), backend="eager", fullgraph=True)
        for on in (True, False, None):
            for mode in (torch.enable_grad, torch.no_grad):
                with nullcontext() if on is None else adapter.switched(on), mode():
                    assert torch.equal(compiled(given), layer(given))
    assert torch.equal(compiled(given), layer(given))


def test_a_teacher_may_be_on_beside_it_and_no_other_teacher(teacher):
    (folder, _), (other, _) = teacher("lora"), teacher("lokr", seed=5, place="other")
    model = transformer()
    frozen, second = FrozenAdapter(model, other), FrozenAdapter(model, folder)
    with held(model, folder) as adapter, frozen.alone():
        with adapter.switched(True):
            both = predict(model)
        alone = predict(model)
        with pytest.raises(AdapterError, match="would not be alone"), second.alone():
            pass
    assert not torch.allclose(both, alone)


def test_names_of_other_programs_are_read(teacher, tmp_path):
    folder, alone = teacher("lora", target_modules=None)
    other = tmp_path / "other.safetensors"
    export_lora(folder, "comfyui", other)
    model = transformer()
    with held(model, other) as adapter, adapter.switched(True):
        torch.testing.assert_close(predict(model), predict(alone), rtol=0, atol=1e-5)


def test_a_dora_is_refused(tmp_path):
    model = transformer()
    config = LoraConfig(r=2, use_dora=True, target_modules=[FIRST])
    inject_adapter_in_model(config, model)
    tensors = {key: value + 0.1 for key, value in get_peft_model_state_dict(model).items()}
    save_file({f"base_model.model.{key}": value for key, value in tensors.items()}, tmp_path / PEFT_FILE)
    config.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="is a DoRA, which cannot be on beneath"), held(transformer(), tmp_path):
        pass
    # From its header, before any weight loads; a teacher may be one.
    with pytest.raises(AdapterError, match="is a DoRA, which cannot be on beneath"):
        check_file(tmp_path, None, beneath=True)
    check_file(tmp_path, None)


def test_a_key_that_no_layer_takes_and_a_file_without_effect_are_refused(teacher, tmp_path):
    folder, _ = teacher("lora")
    tensors = load_file(folder / LORA_FILE)
    down, up = (f"transformer.{FIRST}.lora_{side}.weight" for side in "AB")
    cases = {
        "has no layer": {**tensors, **{key.replace("attn", "atn"): tensors[key].clone() for key in (down, up)}},
        "no `transformer": {key: value for key, value in tensors.items() if key != up},
        "of different ranks": {**tensors, up: tensors[up][:, :1].contiguous()},
        "changes nothing": {key: value * ("lora_A" in key) for key, value in tensors.items()},
    }
    for i, (words, changed) in enumerate(cases.items()):
        file = tmp_path / f"{i}.safetensors"
        save_file(changed, file)
        model = transformer()
        looks = appearance(model)
        with pytest.raises(AdapterError) as refused, held(model, file):
            pass
        assert appearance(model) == looks and str(file) in str(refused.value)
        if words in ("no `transformer", "of different ranks"):
            # It is told without the model's weights too.
            with pytest.raises(AdapterError, match=words):
                check_file(file, None)
        else:
            assert words in str(refused.value)

"""A frozen adapter computes what it computes when loaded alone, and whatever is trained beside it does not notice."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoHaConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn

from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.base import base_layer, base_shape
from flowhooks.adapters.outline import meta_copy
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, appearance, forward, inputs, predict, section, train_randomly, transformer
from tests.families import tiny

#: LyCORIS picks another kernel for a frozen LoKr than for a trained one.
TOLERANCE = {"lycoris-lokr": 1e-6}
per_kind = pytest.mark.parametrize("kind", KINDS)

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def equal(kind, found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE.get(kind, 0))


def tensors_of(adapter: FrozenAdapter) -> list[torch.Tensor]:
    return [tensor for change in adapter._changes.values() for tensor in change.tensors()]


@pytest.mark.parametrize("student", [None, *KINDS])
@per_kind
def test_beside_any_student_it_is_the_adapter_loaded_alone(kind, student, teacher):
    folder, alone = teacher(kind)
    model = transformer()
    bare = predict(model)
    trained = build_adapter(model, section(student, rank=3, target_modules=["to_q", "to_k"])) if student else None
    if trained is not None:
        train_randomly(trained, seed=7)
    looks, before = appearance(model), predict(model)
    values = [p.clone() for p in model.parameters()]
    frozen = FrozenAdapter(model, folder)
    with trained.disabled() if trained else nullcontext():
        with frozen.alone():
            equal(kind, predict(model), predict(alone))
        assert torch.equal(predict(model), bare)
    assert appearance(model) == looks and torch.equal(predict(model), before)
    frozen.detach()
    assert appearance(model) == looks
    assert all(torch.equal(a, b) for a, b in zip(values, model.parameters(), strict=True))


@pytest.mark.parametrize("family", ["flux", "qwen-image", "z-image", "sana", "wan", "hunyuan-video15", "ltx2"])
def test_layers_of_other_families(family, tmp_path):
    """Each against the adapted layer itself, which takes no knowledge of the model's arguments."""
    model = tiny(family).transformer
    adapter = build_adapter(model, section("lora"))
    train_randomly(adapter)
    adapter.save(tmp_path, {})
    adapter.detach()
    looks = appearance(model)
    student = build_adapter(model, section("lycoris-lokr"))
    frozen = FrozenAdapter(model, tmp_path)
    generator = torch.Generator().manual_seed(3)
    given = {name: torch.randn(2, base_shape(model, name)[1], generator=generator) for name in frozen.targets}
    with torch.no_grad(), student.disabled(), frozen.alone():
        found = {name: base_layer(model, name)(x) for name, x in given.items()}
    student.detach()
    assert appearance(model) == looks
    alone = load_adapter(model, tmp_path)
    assert alone.targets == frozen.targets
    with torch.no_grad():
        assert all(torch.equal(found[name], model.get_submodule(name)(x)) for name, x in given.items())


@per_kind
def test_a_student_may_come_later_and_go_first(kind, teacher):
    folder, alone = teacher(kind)
    model = transformer()
    frozen = FrozenAdapter(model, folder)
    for student in KINDS:
        trained = build_adapter(model, section(student))
        train_randomly(trained)
        with trained.disabled(), frozen.alone():
            equal(kind, predict(model), predict(alone))
        trained.detach()
    with frozen.alone():
        equal(kind, predict(model), predict(alone))


@per_kind
def test_training_mode_drops_nothing_and_trains_nothing(kind, teacher):
    folder, alone = teacher(kind, dropout=0.5)
    model = transformer().train()
    student = build_adapter(model, section("lora", dropout=0.5))
    frozen = FrozenAdapter(model, folder)
    with student.disabled(), frozen.alone():
        equal(kind, predict(model), predict(alone))
    assert not any(tensor.requires_grad for tensor in tensors_of(frozen))
    model.enable_gradient_checkpointing()
    with student.disabled(), frozen.alone():
        equal(kind, predict(model), predict(alone))
    forward(model).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@per_kind
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_precision_is_the_librarys(kind, weights, autocast, teacher):
    folder, _ = teacher(kind)
    model, alone = transformer().to(weights), transformer().to(weights)
    load_adapter(alone, folder)
    student = build_adapter(model, section("loha"))
    frozen = FrozenAdapter(model, folder)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = predict(alone)
        with student.disabled(), frozen.alone():
            found = predict(model)
    assert found.dtype == wanted.dtype
    if kind != "lycoris-lokr":
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_several_are_switched_one_by_one(teacher):
    model = transformer()
    student = build_adapter(model, section("lora"))
    train_randomly(student, seed=9)
    trained = predict(model)
    kinds = {"loha": ["to_q"], "lycoris-locon": ["to_k", "ff.net.2"], "lora": None}
    written = {kind: teacher(kind, place=kind, target_modules=layers) for kind, layers in kinds.items()}
    frozen = {kind: FrozenAdapter(model, folder) for kind, (folder, _) in written.items()}
    for _ in range(2):
        for kind, (_, alone) in written.items():
            with student.disabled(), frozen[kind].alone():
                assert torch.equal(predict(model), predict(alone))
        assert torch.equal(predict(model), trained)


def test_what_would_not_be_alone_is_refused(teacher):
    model = transformer()
    first, second = (FrozenAdapter(model, teacher("lora", seed, str(seed))[0]) for seed in (1, 2))
    bare = predict(model)
    with first.alone(), pytest.raises(AdapterError, match="frozen adapter is on already.*'2'"), second.alone():
        pass
    with first.alone(), pytest.raises(AdapterError, match="frozen adapter is on already"), first.alone():
        pass
    for kind in KINDS:
        student = build_adapter(model, section(kind))
        with pytest.raises(AdapterError, match="Enter that adapter's `disabled"), first.alone():
            pass
        student.detach()
    assert torch.equal(predict(model), bare)
    first.detach()
    first.detach()
    with pytest.raises(AdapterError, match="was detached"), first.alone():
        pass


@pytest.mark.parametrize("leave", ["exception", "detached", "interrupted"])
def test_it_is_off_however_the_block_is_left(leave, teacher):
    model = transformer()
    looks, bare = appearance(model), predict(model)
    frozen = FrozenAdapter(model, teacher("loha")[0])
    if leave == "detached":
        with frozen.alone():
            frozen.detach()
    elif leave == "exception":
        with pytest.raises(ZeroDivisionError), frozen.alone():
            _ = 1 / 0
    else:
        wrong = {**inputs(model), "hidden_states": torch.zeros(1, 3, 8, 8)}
        with pytest.raises(RuntimeError), frozen.alone():
            model(**wrong)
        assert all(change._result is None for change in frozen._changes.values())
    assert appearance(model) == looks and torch.equal(predict(model), bare)


@per_kind
def test_it_holds_its_files_tensors_and_nothing_of_the_size_of_the_model(kind, teacher):
    folder, _ = teacher(kind, target_modules=["to_q", "to_k"])
    model = transformer()
    frozen = FrozenAdapter(model, folder)
    with frozen.alone():
        predict(model)
    saved = sum(tensor.nbytes for tensor in load_file(frozen.file).values())
    assert frozen.describe()["bytes"] == saved
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(frozen))
    # LyCORIS has numbers of its own in every layer.
    assert saved <= held <= saved + 16 * len(frozen.targets)
    rest = [p for change in frozen._changes.values() for p in change._adapted.parameters()]
    assert sum(p.untyped_storage().nbytes() for p in rest) <= held + 8 * len(frozen.targets)


@per_kind
def test_parked_tensors_leave_with_the_block(kind, teacher, monkeypatch):
    """Told on the meta device, which every machine has; it knows no autocast."""
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: False)
    folder, alone = teacher(kind)
    model = transformer()
    frozen = FrozenAdapter(model, folder, parked=True)
    home = [tensor.data_ptr() for tensor in tensors_of(frozen)]
    with frozen.alone():
        equal(kind, predict(model), predict(alone))
    model.to("meta")
    with frozen.alone():
        assert all(tensor.device.type == "cpu" for tensor in tensors_of(frozen))
        model(**{k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs(model).items()})
        assert any(tensor.device.type == "meta" for tensor in tensors_of(frozen))
    assert [tensor.data_ptr() for tensor in tensors_of(frozen)] == home
    assert all(tensor.device.type == "cpu" for tensor in tensors_of(frozen))
    stays = FrozenAdapter(transformer(), folder)
    assert not stays.describe()["parked"] and frozen.describe()["parked"]


def test_weights_kept_elsewhere_are_followed_when_they_run(teacher):
    """As under Diffusers' sequential offloading, which leaves meta tensors on the layers between two calls."""
    folder, alone = teacher("lora")
    model = transformer()
    weights = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name, weight in weights.items():
        model.get_submodule(name).weight = nn.Parameter(weight.to("meta"))
    frozen = FrozenAdapter(model, folder)
    for name, weight in weights.items():
        model.get_submodule(name).weight = weight
    with frozen.alone():
        assert torch.equal(predict(model), predict(alone))


@per_kind
@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_where_the_network_computes(kind, parked, device, teacher):
    folder, _ = teacher(kind)
    model, alone = transformer().to(device), transformer().to(device)
    load_adapter(alone, folder)
    given = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs(model).items()}
    frozen = FrozenAdapter(model, folder, parked=parked)
    with torch.no_grad(), frozen.alone():
        torch.testing.assert_close(model(**given)[0], alone(**given)[0], rtol=0, atol=1e-6)
    assert {tensor.device.type for tensor in tensors_of(frozen)} == {"cpu" if parked else device}


@per_kind
def test_random_numbers_are_the_runs(kind, teacher):
    folder, _ = teacher(kind)
    model = transformer()
    state = torch.get_rng_state()
    FrozenAdapter(model, folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_changed_by_pefts_own_adapter_is_told_apart_too(teacher):
    """One that flowhooks did not put on."""
    folder, alone = teacher("lora")
    model = transformer()
    inject_adapter_in_model(LoHaConfig(r=2, alpha=2, target_modules=["to_q"]), model)
    frozen = FrozenAdapter(model, folder)
    with pytest.raises(AdapterError, match="An adapter is on"), frozen.alone():
        pass
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    with frozen.alone():
        assert torch.equal(predict(model), predict(alone))


def test_modules_with_two_places_are_one():
    """As tied layers are: a configuration selects such a layer once."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = nn.Linear(4, 4)
            self.again = nn.ModuleDict({"to_q": self.to_q})

    assert [name for name, _ in meta_copy(Tied()).named_modules()] == [name for name, _ in Tied().named_modules()]

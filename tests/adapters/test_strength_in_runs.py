"""Wherever a run takes a LoRA file from, its layers act as strongly as Diffusers' own loader has them act."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

import flowhooks
from flowhooks.adapters import FrozenAdapter, build_adapter, build_second
from flowhooks.adapters.names import LORA_FILE
from flowhooks.manifest import RUN
from flowhooks.modules_file import save_modules
from flowhooks.restore import Restored, read_run, restore_pipeline
from tests.adapters.helpers import predict, section, transformer
from tests.adapters.strength_files import ALPHA, KINDS, RANK, by_formula, changed, deltas, same, write_lora
from tests.families import learnt, tiny

per_kind = pytest.mark.parametrize("kind", KINDS)
LORA = {"type": "lora", "rank": 3, "alpha": 1.0}
EXPERT = ("blocks.0.attn1.to_q", "blocks.0.attn1.to_k")


@pytest.fixture(scope="module")
def model():
    return learnt("sd3")


@pytest.fixture(scope="module")
def pipe():
    return tiny("sd3")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """The folder of a finished run without an adapter, and its pipeline as `sample` restores it."""
    folder = tmp_path_factory.mktemp("run")
    base = folder / "base"
    model.pipe.save_pretrained(base)
    (folder / RUN).write_text(json.dumps({"model": {"pretrained_model_name_or_path": str(base)}}))
    with flowhooks.attach(model, [{"type": "time_conditioning"}]) as session:
        save_modules(folder, session.assembly, model, {})
    write_lora(folder / LORA_FILE, {}, {})
    restored = restore_pipeline(str(folder), None, "fp32")
    (folder / LORA_FILE).unlink()
    return folder, restored


def stock(pipe, network, file, kind):
    """The network with a file, as Diffusers loads it; its weights changed by hand where its loader reads none."""
    if KINDS[kind][1]:
        return changed(network, by_formula(file, *KINDS[kind]))
    pipe.transformer = changed(network, {})
    pipe.load_lora_weights(str(file))
    return pipe.transformer


@per_kind
@pytest.mark.parametrize("hook", ["teacher_velocity", "anchor_regularizer"])
def test_a_frozen_role(hook, kind, model, pipe, tmp_path):
    file = write_lora(tmp_path / "lora.safetensors", *KINDS[kind])
    options = {
        "teacher_velocity": {"teachers": {"x": str(file)}},
        "anchor_regularizer": {"role": "adapter:x", "weight": 1.0, "adapter": str(file)},
    }
    expected = predict(stock(pipe, model.transformer, file, kind))
    run = {"adapter": LORA, "hooks": [{"type": hook, **options[hook]}]}
    with flowhooks.attach(model, run) as session, session.roles["adapter:x"]():
        found = predict(model.transformer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@per_kind
def test_attached_and_sampled_from_a_folder(kind, model, pipe, finished, tmp_path):
    ready, restored = finished
    folder = tmp_path / "run"
    shutil.copytree(ready, folder, ignore=shutil.ignore_patterns("base"))
    file = write_lora(folder / LORA_FILE, *KINDS[kind])
    expected = by_formula(file, *KINDS[kind])
    with flowhooks.attach(model, folder):
        same(deltas(model.transformer), expected, "attach")
    own = read_run(folder)[1]
    with replace(restored, adapter=own, modules=None).trained() as sampled:
        same(deltas(sampled.transformer), expected, "sample")
        found = predict(sampled.transformer)
    torch.testing.assert_close(found, predict(stock(pipe, model.transformer, file, kind)), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def experts():
    return tiny("wan-two-experts")


@per_kind
def test_the_second_expert(kind, experts, tmp_path):
    file = write_lora(tmp_path / "lora.safetensors", *KINDS[kind], layers=EXPERT, width=24)
    expected = by_formula(file, *KINDS[kind], layers=EXPERT)
    find = partial(deltas, layers=EXPERT)
    second = experts.transformer_2
    if not KINDS[kind][1]:
        experts.load_lora_weights(str(file), load_into_transformer_2=True)
        same(find(second), expected, "Diffusers")
        experts.unload_lora_weights()
    alpha = float(RANK) if kind == "no metadata" else ALPHA
    wanted = section("lora", rank=RANK, alpha=alpha, target_modules=list(EXPERT), init_from=str(file))
    adapter = build_adapter(second, wanted)
    same(find(second), expected, "init_from")
    adapter.detach()
    restored = Restored(
        pipe=experts,
        arguments={},
        component="transformer_2",
        adapter=file,
        modules=None,
        below=None,
        allow_imports=False,
    )
    with restored.trained():
        same(find(second), expected, "sample")
    frozen, ones = FrozenAdapter(second, file), torch.eye(24)
    layers = {name: second.get_submodule(name) for name in EXPERT}
    with torch.no_grad(), frozen.alone():
        found = {name: layer(ones) for name, layer in layers.items()}
    with torch.no_grad():
        same({name: (found[name] - layer(ones)).T for name, layer in layers.items()}, expected, "teacher")


@pytest.mark.parametrize("kind", ["rslora", "alpha_pattern"])
def test_a_second_adapter_has_the_strength_that_it_was_told(kind, tmp_path):
    """Whatever the file is of that the first one started from."""
    file = write_lora(tmp_path / "lora.safetensors", *KINDS[kind])
    network = transformer()
    layers = list(by_formula(file, *KINDS[kind]))
    first = build_adapter(network, section("lora", rank=RANK, alpha=ALPHA, target_modules=layers, init_from=str(file)))
    second = build_second(first, name="critic", rank=2, alpha=6.0)
    assert {layer.scaling["critic"] for layer in first.layers} == {3.0}
    second.detach()
    same(deltas(network), by_formula(file, *KINDS[kind]))

"""A folder of the user's for each test, and a note of every pipeline that was loaded."""

from __future__ import annotations

import shutil

import pytest
from diffusers import DiffusionPipeline, FluxTransformer2DModel, SD3Transformer2DModel

from flowhooks.adapters import build_adapter
from tests.acceptance.user import User
from tests.train.runs import write_data, write_model


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """The folder that is copied: a tiny SD3, six pairs with masks, an adapter for it and some for other models."""
    folder = tmp_path_factory.mktemp("template") / "mine"
    write_model(folder / "model")
    write_data(folder / "data")
    section = {"alpha": 2, "rank": 2, "dropout": 0.0, "target_modules": None, "init_from": None}
    wide = dict(attention_head_dim=16, num_attention_heads=4, caption_projection_dim=64)
    own = SD3Transformer2DModel.from_pretrained(folder / "model" / "transformer")
    widened = SD3Transformer2DModel.from_config({**own.config, **wide})
    flux = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    for name, model in (("own", own), ("wide", widened), ("flux", flux)):
        _save(model, {**section, "type": "lora", "algo": None}, folder / f"{name}.safetensors")
    _save(flux, {**section, "type": "lycoris", "algo": "locon"}, folder / "lycoris-flux.safetensors")
    return folder


def _save(model, section, file):
    adapter = build_adapter(model, section)
    adapter.save(file.with_suffix(""), {}).rename(file)
    file.with_suffix("").rmdir()
    adapter.detach()


@pytest.fixture
def user(template, tmp_path, capsys):
    shutil.copytree(template, tmp_path / "mine")
    return User(tmp_path, lambda: tuple(capsys.readouterr()))


@pytest.fixture
def loads(monkeypatch):
    """The names of the pipelines whose weights were loaded, in order; they are loaded as ever."""
    names = []
    genuine = DiffusionPipeline.from_pretrained.__func__

    def noted(cls, name, *args, **kwargs):
        names.append(str(name))
        return genuine(cls, name, *args, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(noted))
    return names


@pytest.fixture(scope="session")
def done(template, tmp_path_factory):
    """A finished run, with its checkpoints and its cache."""
    folder = tmp_path_factory.mktemp("done")
    shutil.copytree(template, folder / "mine")
    user = User(folder, lambda: ("", ""))
    assert user.train().code == 0
    return user

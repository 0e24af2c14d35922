"""One tiny model and one tiny data set for all tests of this folder."""

from __future__ import annotations

import pytest

from flowhooks.train import train
from tests.train.runs import make_run, write_data, write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "sd3")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def new_run(model, data, cache, tmp_path):
    """Make a run; its first argument names the output folder under the test's own folder."""

    def make(name="out", **sections):
        return make_run(model, data, tmp_path / name, **{"cache_dir": str(cache), **sections})

    return make


@pytest.fixture(scope="session")
def finished(model, data, cache, tmp_path_factory):
    """The output folder of a run of one step."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    run = make_run(model, data, folder, cache_dir=str(cache), training={"max_train_steps": 1})
    return train(run, progress=False).output_dir

"""What is said of a quantised base before weights load, and what a checkpoint says of it."""

from __future__ import annotations

import pytest

from flowhooks.checks import quantization
from flowhooks.checks.quantization import describe_quantization, quantization_problems, quantization_warnings
from flowhooks.config import resolve_run
from flowhooks.data import Audit
from flowhooks.errors import UnusableCheckpoint
from flowhooks.quantization.table import BACKENDS, METHOD, SHORT
from flowhooks.train.identity import identity, require_same
from tests.families import tiny
from tests.train.runs import write_model


def run_with(tmp_path, value, **model):
    section = {"pretrained_model_name_or_path": "digits", "quantization": value, **model}
    return resolve_run({"model": section, "hooks": []}, tmp_path / "run.json")


@pytest.mark.parametrize("name", [name for name in SHORT if name != "gguf"])
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, name):
    run = run_with(tmp_path, name)
    assert list(quantization_problems(run)) == []
    for answer in (lambda module: None, _no_parent):
        monkeypatch.setattr(quantization, "find_spec", answer)
        (problem,) = quantization_problems(run)
        assert problem.path == "$.model.quantization"
        assert f"pip install 'flowhooks[{BACKENDS[SHORT[name][METHOD]].extra}]'" in problem.message


def _no_parent(module):
    raise ModuleNotFoundError(module)


def test_numbers_that_a_gpu_does_not_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "has_apple", lambda: True)
    (problem,) = quantization_problems(run_with(tmp_path, {"transformer": "fp8"}))
    assert problem.path == "$.model.quantization.transformer" and "use 'int8'" in problem.message
    assert list(quantization_problems(run_with(tmp_path, "int8"))) == []


@pytest.mark.parametrize(
    ("value", "model", "said"),
    [
        ("int8", {}, "in fp32 until the backward pass: without `model.gradient_checkpointing`"),
        ("fp8", {"dtype": "bf16"}, "in bf16 until"),
        ({"transformer": "int8"}, {"gradient_checkpointing": 2}, "in the blocks that keep activations"),
        ("int8", {"gradient_checkpointing": True}, None),
        ("nf4", {}, None),
        ({"text_encoder": "int8"}, {}, None),
        (None, {}, None),
    ],
)
def test_copies_that_are_kept_until_the_backward_pass_are_warned_of(tmp_path, value, model, said):
    told = list(quantization_warnings(run_with(tmp_path, value, **model)))
    assert len(told) == (said is not None)
    assert all(said in sentence and "GiB" in sentence and "use 'nf4' or 'int4'" in sentence for sentence in told)


def test_the_size_of_the_copies_is_that_of_the_layers(tmp_path):
    from flowhooks.quantization.layers import quantizable

    network = tiny("sd3").transformer
    numbers = sum(network.get_submodule(name).weight.numel() for name in quantizable(network))
    run = run_with(tmp_path, "int8", dtype="bf16", pretrained_model_name_or_path=str(write_model(tmp_path / "model")))
    (told,) = quantization_warnings(run)
    assert f"about {2 * numbers / 2**30:.2g} GiB" in told


def test_it_is_described_in_a_line(tmp_path):
    described = describe_quantization(run_with(tmp_path, {"transformer": "nf4", "text_encoder_2": "int8"}).model)
    assert described == "transformer nf4 (bitsandbytes), text_encoder_2 int8 (torchao)"
    assert describe_quantization(run_with(tmp_path, None).model) is None


def test_a_run_does_not_go_on_over_another_base(tmp_path):
    audit = Audit(records=(), counts={}, provides=frozenset(), report=(), warnings=())
    own, other, plain = (identity(run_with(tmp_path, value), audit, 1) for value in ("int8", "nf4", None))
    require_same(own, own, "here")
    # As in a checkpoint of a version that quantised nothing.
    assert "quantization" not in plain["model"]
    for found in (other, plain):
        with pytest.raises(UnusableCheckpoint, match="`model.quantization` is"):
            require_same(found, own, "here")

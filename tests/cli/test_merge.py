"""`flowhooks merge` writes a LoRA and tells its error, or says what does not go together."""

from __future__ import annotations

import re

import pytest

from flowhooks.cli import main


def _adapters(folder, count=2):
    from flowhooks.adapters import build_adapter
    from tests.adapters.helpers import section, train_randomly, transformer

    for i in range(count):
        adapter = build_adapter(transformer(), section("lora"))
        train_randomly(adapter, seed=i)
        yield str(adapter.save(folder / f"teacher{i}", {}).parent)


def test_merge_writes_a_lora_and_tells_its_error(tmp_path, capsys):
    files, out = list(_adapters(tmp_path)), str(tmp_path / "out")
    assert main(["merge", *files, "--output", out, "--method", "factor_average", "--weights", "0.5", "0.5"]) == 0
    told = capsys.readouterr().out
    assert f"wrote      {out}/pytorch_lora_weights.safetensors: 18 layers of rank 2\n" in told
    assert re.search(r"^error      0\.[67]\d* of the exact sum$", told, re.MULTILINE)
    assert "warning    averaged factors are not the averaged change" in told
    assert main(["merge", *files, "--output", out, "--method", "cat"]) == 2
    captured = capsys.readouterr()
    assert "exists already and is not overwritten" in captured.err and captured.out == ""
    assert main(["merge", *files, "--output", f"{out}/exact", "--method", "cat"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (["--method", "svd", "--weights", "1"], "`--weights` has 1 numbers for 2 adapters"),
        (["--method", "cat", "--rank", "4"], "goes with 'svd' only"),
        (["--method", "svd", "--model", "nowhere"], "has no transformer/*.safetensors"),
    ],
)
def test_merge_refuses_what_does_not_go_together(tmp_path, capsys, options, words):
    assert main(["merge", *_adapters(tmp_path), "--output", str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Every file and every piece of JSON is read through one bounded reader."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowhooks import reading
from flowhooks.adapters import load_adapter
from flowhooks.adapters.names import PEFT_CONFIG_FILE, PEFT_FILE
from flowhooks.config import load_datasets
from flowhooks.data import audit
from flowhooks.data.store import Store
from flowhooks.errors import AdapterError, CheckpointError, ConfigError, DataError, ModelError
from flowhooks.manifest import MANIFEST, MODULES
from flowhooks.modules_file import read_manifest
from flowhooks.reading import BadJson, Unreadable, parse, read_json, text_of
from flowhooks.restore import read_run
from flowhooks.sampling.outputs import prompts_of
from flowhooks.train.checkpoint import read_manifest as read_checkpoint
from flowhooks.train.codec import read_state
from tests.families import tiny

PACKAGE = Path(reading.__file__).parent


def test_nobody_else_parses_json_or_expands_a_home():
    """The reader of bounded JSON is worth as much as the number of those who go past it."""
    allowed = {
        "reading.py": {"json.loads", "expanduser"},
        # Copies of what the program wrote itself.
        "train/identity.py": {"json.loads"},
        "data/sources/streams.py": {"json.loads"},
        # It is written beside weights, for people without this package.
        "flow_map/loader.py": {"json.loads"},
        # A file of the package.
        "naming/rules.py": {"json.loads"},
        # A variable of the environment, and the home of the user.
        "files.py": {"expanduser"},
    }
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        used = set(re.findall(r"json\.loads?\b|\bexpanduser\b", file.read_text(encoding="utf-8")))
        if used:
            found[file.relative_to(PACKAGE).as_posix()] = used
    assert found == allowed


def test_bounds_of_json():
    assert reading.parse("[" * reading.MAX_DEPTH + "]" * reading.MAX_DEPTH)
    for text, words in (
        ("[" * (reading.MAX_DEPTH + 1) + "]" * (reading.MAX_DEPTH + 1), "nested too deeply"),
        ('{"a":' * 60_000 + "1" + "}" * 60_000, "nested too deeply"),
        (str(reading.MAX_INTEGER + 1), "too large for a number"),
        ("-" + "9" * 5000, "too large for a number"),
        ("1" + "0" * 400 + ".0", "too large for a number"),
        ("-Infinity", "is not a JSON number"),
        ('{"a": 1, "a": 2}', "written twice"),
        ('["\\udfff"]', "half of a surrogate pair"),
        ('{"a\\u0000": 1}', "zero byte"),
    ):
        with pytest.raises(reading.BadJson, match=words):
            reading.parse(text)
    assert reading.parse(str(reading.MAX_INTEGER)) == 2**63 - 1
    assert reading.parse("[Infinity, 340282366920938463463374607431768211456]", finite=False, largest=float("inf"))


def test_a_file_above_its_bound_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "large.txt"
    with file.open("wb") as opened:
        opened.truncate(reading.MAX_TEXT + 1)
    with pytest.raises(ConfigError, match=r"has 268,435,457 bytes; more than 268,435,456 are not read"):
        prompts_of(str(file))


@pytest.fixture(scope="module")
def network():
    return tiny("sd3").transformer


READERS = {
    "prompts.txt": (prompts_of, ConfigError),
    "prompts.jsonl": (prompts_of, ConfigError),
    "data.json": (lambda file: load_datasets(file, Path()), ConfigError),
    "table.csv": (
        lambda file: audit(load_datasets([{"id": "a", "type": "csv", "instance_data_dir": file}], Path())),
        DataError,
    ),
    MANIFEST: (lambda file: read_checkpoint(Path(file).parent), CheckpointError),
    "state.safetensors": (lambda file: read_state(Path(file)), CheckpointError),
    MODULES: (lambda file: read_manifest(Path(file)), ModelError),
    "run.json": (lambda file: read_run(Path(file).parent), ConfigError),
    "lora.safetensors": (lambda file: load_adapter(None, file), AdapterError),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", READERS)
def test_what_would_never_end_is_refused(tmp_path, monkeypatch, network, name, kind):
    read, error = READERS[name]
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    if name == "lora.safetensors":
        read = lambda file: load_adapter(network, file)  # noqa: E731
    with pytest.raises(error) as caught:
        read(str(tmp_path / name))
    assert name in str(caught.value) and len(str(caught.value)) < 600


def test_a_pipe_among_the_shards_is_no_shard(tmp_path):
    (tmp_path / "latents").mkdir()
    os.mkfifo(tmp_path / "latents" / f"{'a' * 64}.safetensors")
    with pytest.warns(UserWarning, match="a pipe or a device"):
        assert Store(tmp_path).find("latents", {"key"}) == {}


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lora_alpha": [2]}, r"`lora_alpha` is \[2\], expected a number"),
        ({"lora_alpha": "2"}, "`lora_alpha` is '2', expected a number"),
        ({"r": 0}, "`r` is 0, expected a whole number above 0"),
        ({"r": True}, "`r` is True, expected a whole number"),
        ({"lora_dropout": 3}, "`lora_dropout` is 3, expected a number from 0 to below 1"),
        ({"rank_pattern": ["a"]}, "`rank_pattern` is .*, expected an object of numbers"),
        ({"target_modules": 5}, "`target_modules` is 5, expected a list of names"),
        ({"use_rslora": "no"}, "`use_rslora` is 'no', expected true or false"),
        ({"peft_type": []}, r"`peft_type` is \[\]"),
        ({"modules_to_save": 0.5}, "`modules_to_save`|PEFT cannot use this configuration"),
    ],
)
def test_an_adapter_config_of_the_wrong_kind(tmp_path, network, change, words):
    layer = network.get_submodule("transformer_blocks.0.attn.to_q")
    key = "base_model.model.transformer_blocks.0.attn.to_q.lora_{}.weight"
    tensors = {key.format("A"): torch.ones(2, layer.in_features), key.format("B"): torch.ones(layer.out_features, 2)}
    save_file(tensors, tmp_path / PEFT_FILE)
    before = [name for name, _ in network.named_modules()]
    for text in (json.dumps({**CONFIG, **change}), "[" * 5000):
        (tmp_path / PEFT_CONFIG_FILE).write_text(text)
        with pytest.raises(AdapterError, match=words if text[0] == "{" else "nested too deeply"):
            load_adapter(network, tmp_path)
    (tmp_path / PEFT_CONFIG_FILE).write_bytes(b"\xff\xfe{")
    with pytest.raises(AdapterError, match="is UTF-16"):
        load_adapter(network, tmp_path)
    assert [name for name, _ in network.named_modules()] == before


def test_a_manifest_that_names_files_elsewhere_is_damaged(tmp_path):
    for name in ("../outside", "/etc/passwd", "n" * 300, ""):
        document = {"format": 1, "step": 1, "files": {name: {"size": 1, "sha256": "0"}}, "identity": {}}
        (tmp_path / MANIFEST).write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match="it names a file"):
            read_checkpoint(tmp_path)


def test_every_place_for_a_path_in_a_schema_is_looked_at():
    """A key that is described as a file or a folder takes a path, and a path is looked at before anything opens it."""
    missed = []

    def walk(schema, at):
        if isinstance(schema, dict):
            about = schema.get("description", "")
            kind = schema.get("type", ())
            if isinstance(about, str) and "string" in (kind if isinstance(kind, list) else [kind]):
                named = re.search(r"\b([Ff]ile|[Ff]older|[Aa] \.jsonl)\b", about)
                if named and not re.match(r"(Schema|Column|Variant|Name) ", about) and "format" not in schema:
                    missed.append(f"{at}: {about}")
            for key, value in schema.items():
                walk(value, f"{at}.{key}")
        elif isinstance(schema, list):
            for value in schema:
                walk(value, at)

    from flowhooks.documents.schemas import schemas

    for name, schema in schemas().items():
        walk(schema, name)
    assert not [each for each in missed if not re.search(r"\.(type|id|caption_strategy|early)\b", each)], missed


@pytest.mark.parametrize(
    ("text", "place", "path"),
    [
        ('{"a": 1,\n "b": {"c": 1, "c": 2}}', (2, 16), "$.b.c"),
        ('{"a": ["NaN",\n  NaN]}', (2, 3), "$.a[1]"),
        ('{"a": [1, {"b": -Infinity}]}', (1, 17), "$.a[1].b"),
        ('{"a": 1, "b": 1e999}', (1, 15), "$.b"),
        ("[1, 99999999999999999999]", (1, 5), "$[1]"),
        ('{"a": "x,:{y", "b": "\\u0000"}', (1, 21), "$.b"),
        ('{"a": {"\\ud800": 1}}', (1, 8), '$.a["\\ud800"]'),
    ],
)
def test_what_is_no_strict_json_is_named_with_path_line_and_column(tmp_path, text, place, path):
    with pytest.raises(BadJson) as found:
        parse(text)
    assert (found.value.place, found.value.path) == (place, path)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError) as told:
        read_json(tmp_path / "a.json")
    assert str(told.value).startswith(f"{tmp_path / 'a.json'}:{place[0]}:{place[1]}: {path}: ")


def test_a_byte_that_is_not_utf8_is_named_with_line_and_column():
    with pytest.raises(Unreadable, match=r"byte 9 is not UTF-8 \(line 2, column 3\)"):
        text_of('{"ä":\n12'.encode() + b"\xff")

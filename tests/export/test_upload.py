"""Publishing: what goes up, what stays, and what is said when the Hub cannot be reached."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.commands.push import run as push_run
from flowhooks.documents.privacy import without_local_paths
from flowhooks.errors import ConfigError, HubError
from flowhooks.export import CardPicture, push, upload, write_card
from flowhooks.export.upload import stage, upload_set
from tests.export.helpers import PRIVATE, document, run_folder

PUBLISHED = ["README.md", "pytorch_lora_weights.safetensors", "run.json", "validation/step_000004_0.png"]


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_upload_set_is_an_allow_list():
    assert upload_set(
        [
            *PUBLISHED,
            "pytorch_lora_weights_comfyui.safetensors",
            "pipeline/transformer/diffusion_pytorch_model.safetensors",
            "checkpoint-5/pytorch_lora_weights.safetensors",
            "cache/x.safetensors",
            "logs/README.md",
            "validation/deep/step.png",
            "pytorch_lora_weights.bin",
            ".env",
            "token",
            "pipeline/transformer/diffusion_pytorch_model.bin",
            "pipeline/notes.txt",
        ]
    ) == sorted(
        [
            *PUBLISHED,
            "pytorch_lora_weights_comfyui.safetensors",
            "pipeline/transformer/diffusion_pytorch_model.safetensors",
        ]
    )


def test_push_uploads_cleaned_copies_in_one_commit(tmp_path, server, token):
    folder = run_folder(tmp_path)
    before = contents(folder)
    address = push(folder, "me/my-dpo", private=True, endpoint=server.address)
    assert address.endswith("me/my-dpo")
    assert server.created.get("visibility") == "private" or server.created.get("private") is True
    assert sorted(server.files) == PUBLISHED
    assert sum("/commit/" in path for path, _ in server.requests) == 1
    assert not any(PRIVATE.encode() in content for content in server.files.values())
    assert json.loads(server.files["run.json"])["output_dir"] == "my-dpo"
    assert contents(folder) == before


def test_staging_cleans_weight_headers_and_keeps_tensors(tmp_path):
    folder = run_folder(tmp_path / "run")
    stage(folder, PUBLISHED, tmp_path / "staging")
    name = "pytorch_lora_weights.safetensors"
    with safe_open(tmp_path / "staging" / name, "pt") as handle:
        metadata = handle.metadata()
    assert json.loads(metadata["flowhooks.run"])["data"] == "pairs.json"
    assert metadata["note"] == "plain text"
    assert load_file(tmp_path / "staging" / name).keys() == load_file(folder / name).keys()


def test_local_paths_of_every_kind():
    assert without_local_paths({"/a/b": [f"{PRIVATE}/x", "~/y", r"C:\z\w", "../sets/d.json", "a/b", 3, None]}) == {
        "b": ["x", "y", "w", "../sets/d.json", "a/b", 3, None]
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"a cat as in {PRIVATE}/cats/tom.png, on a table", "a cat as in tom.png, on a table"),
        (f"like {PRIVATE}/a.png.", "like a.png."),
        (f"({PRIVATE}/a.png) or '{PRIVATE}/b c'", "(a.png) or 'b c'"),
        (f"see file://{PRIVATE}/a.png and ~/b/c.png and ~ann/d.png", "see a.png and c.png and d.png"),
        (r"as C:\Users\ann\a.png, \\server\share\b.png", "as a.png, b.png"),
        (f"in {PRIVATE}/ there", "in private there"),
        (f"like {PRIVATE}/my cats/tom.png, on a table", "like tom.png, on a table"),
        (f"like {PRIVATE}/my big cats/old ones/my tom.png.", "like my tom.png."),
        (r"as C:\Users\ann b\My Pictures\a.jpeg on a wall", "as a.jpeg on a wall"),
        (f"see {PRIVATE}/a.png and black and/or b/c.png", "see a.png and black and/or b/c.png"),
        (f"in {PRIVATE}/cats in black and/or white", "in cats in black and/or white"),
        (f"in {PRIVATE}/cats or {PRIVATE}/my dogs/b.png or ~/c/d.png", "in cats or b.png or d.png"),
    ],
)
def test_paths_within_a_prompt(text, told):
    assert without_local_paths({"prompts": [{"prompt": text}]}) == {"prompts": [{"prompt": told}]}


@pytest.mark.parametrize(
    "text",
    [
        "black and/or white, 1/2 size, 24 km/h",
        "https://huggingface.co/a/b and hf://datasets/a/b",
        "<p><a href='x/y'>b</a></p>",
        "owner/name",
        "a sign that says /imagine",
        "ratio 16:9, a:b, and so on...",
    ],
)
def test_what_only_looks_like_a_path_in_a_prompt(text):
    assert without_local_paths(text) == text


def test_nothing_of_this_machine_is_uploaded(tmp_path, server, token):
    """In whatever file and however deep it stands."""
    folder = run_folder(tmp_path)
    prompt = f"as in {PRIVATE}/faces/ann.png"
    run = document(
        validation={"prompts": [prompt]},
        hooks=[{"type": "on_policy_rollout", "prompts": [{"prompt": prompt, "image": f"{PRIVATE}/a.png"}]}],
    )
    (folder / "run.json").write_text(json.dumps(run))
    write_card(
        folder,
        document={**run, "training": {}},
        metrics={},
        pictures=[CardPicture(path=folder / "validation" / "step_000004_0.png", prompt=prompt)],
    )
    (folder / "metrics.json").write_text(json.dumps({"note": prompt}))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": PRIVATE}))
    part = folder / "pipeline" / "tokenizer"
    part.mkdir(parents=True)
    (part / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": PRIVATE, "deep": [{"vocab_file": PRIVATE}]})
    )
    push(folder, "me/my-dpo", private=True, endpoint=server.address)
    assert {"metrics.json", "pipeline/tokenizer/tokenizer_config.json", "adapter_config.json"} < set(server.files)
    for name, content in server.files.items():
        assert PRIVATE.encode() not in content and b"somebody" not in content, name
    assert b"as in ann.png" in server.files["README.md"]


def test_the_words_of_a_tokenizer_are_uploaded_as_they_are(tmp_path):
    """Some of them look like paths."""
    words = {"/": 0, "~": 1, "/usr/share": 2, "\\": 3, "C:/": 4, "//": 5}
    part = tmp_path / "run" / "pipeline" / "tokenizer"
    part.mkdir(parents=True)
    (part / "vocab.json").write_text(json.dumps(words))
    name = "pipeline/tokenizer/vocab.json"
    stage(tmp_path / "run", [name], tmp_path / "staging")
    assert json.loads((tmp_path / "staging" / name).read_text()) == words


def test_without_a_token(tmp_path, monkeypatch, server):
    monkeypatch.setattr(upload, "get_token", lambda: None)
    folder = run_folder(tmp_path)
    before = contents(folder)
    with pytest.raises(HubError, match="hf auth login"):
        push(folder, "me/my-dpo", private=True, endpoint=server.address)
    assert server.requests == []
    assert contents(folder) == before


def test_without_a_network(tmp_path, token, monkeypatch):
    folder = run_folder(tmp_path)
    before = contents(folder)
    with pytest.raises(HubError, match="Cannot reach the Hub at http://127.0.0.1:9 .*untouched"):
        push(folder, "me/my-dpo", private=False, endpoint="http://127.0.0.1:9")
    assert contents(folder) == before


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal(tmp_path, server, token, status):
    server.status = status
    with pytest.raises(HubError, match=f"refused 'me/my-dpo'.*{status}.*untouched"):
        push(run_folder(tmp_path), "me/my-dpo", private=True, endpoint=server.address)
    assert server.files == {}


@pytest.mark.parametrize(
    ("part", "status", "document", "told"),
    [
        (
            "/preupload/",
            403,
            {"error": "Storage limit\nreached"},
            r"\(403: Storage limit; reached\)\. .*hf auth whoami",
        ),
        ("/commit/", 400, {"error": "Bad name"}, r"\(400: Bad name\)\. Correct what it names"),
        ("/commit/", 409, {"error": "Concurrent commit"}, r"\(409: Concurrent commit\)\. .*wait"),
        ("/commit/", 412, {"error": "Moved on"}, r"\(412: Moved on\)\. .*wait"),
        ("/commit/", 413, {"error": "Too large"}, r"\(413: Too large\)\. .*larger"),
        ("/commit/", 429, {"error": "Slow down"}, r"\(429: Slow down\)\. Wait"),
        ("/commit/", 503, {"error": "Busy"}, r"\(503: Busy\)\. The Hub has a problem"),
        ("/objects/batch", 403, {"error": "No quota"}, r"\(403: No quota\)\."),
        ("/storage/", 403, {"error": "Expired"}, r"\(403: Expired\)\."),
    ],
)
def test_what_the_hub_refuses_during_the_upload(tmp_path, server, token, part, status, document, told):
    folder = run_folder(tmp_path / "my run")
    before = contents(folder)
    server.large, server.refusals = True, {part: (status, document)}
    with pytest.raises(HubError, match=f"^The Hub refused 'me/my-dpo' {told}.*untouched") as found:
        push(folder, "me/my-dpo", private=True, endpoint=server.address)
    assert f"`flowhooks push '{folder}' --repo-id me/my-dpo --private`" in str(found.value)
    assert "\n" not in str(found.value) and "hf_not_a_real_one" not in str(found.value)
    assert server.files == {} and contents(folder) == before


def test_a_file_that_the_storage_refuses(tmp_path, server, token):
    server.large = True
    refused = {"oid": "1" * 64, "size": 1, "error": {"message": "No space", "code": 422}}
    server.refusals = {"/objects/batch": (200, {"objects": [refused]})}
    with pytest.raises(
        HubError, match="^The Hub refused 'me/my-dpo' .*No space.* Continue with `flowhooks push"
    ) as found:
        push(run_folder(tmp_path), "me/my-dpo", private=True, endpoint=server.address)
    assert "model card" not in str(found.value) and "\n" not in str(found.value)


def test_a_card_that_the_hub_refuses(tmp_path, server, token):
    reasons = {
        "errors": [{"message": '"license" must be one of [mit].'}, {"message": '"tags" is no list'}],
        "warnings": [],
    }
    server.refusals = {"/validate-yaml": (400, reasons)}
    folder = run_folder(tmp_path)
    with pytest.raises(HubError) as found:
        push(folder, "me/my-dpo", private=False, endpoint=server.address)
    told = str(found.value)
    assert told.startswith(f"The Hub refused the model card {folder / 'README.md'} (")
    assert '"license" must be one of [mit]; "tags" is no list' in told and "\n" not in told
    assert told.endswith(f"ontinue with `flowhooks push {folder} --repo-id me/my-dpo --no-private`.")
    assert server.files == {}
    server.refusals = {}
    push(folder, "me/my-dpo", private=False, endpoint=server.address)
    assert sorted(server.files) == PUBLISHED


@pytest.mark.parametrize("part", ["/validate-yaml", "/preupload/", "/objects/batch", "/storage/", "/commit/"])
def test_a_connection_cut_during_the_upload(tmp_path, server, token, part):
    folder = run_folder(tmp_path)
    before = contents(folder)
    server.large, server.cut = True, [part]
    with pytest.raises(HubError) as found:
        push(folder, "me/my-dpo", private=True, endpoint=server.address)
    told = str(found.value)
    assert told.startswith(f"The connection to the Hub at {server.address} was cut during the upload to 'me/my-dpo' (")
    assert f"ontinue with `flowhooks push {folder} --repo-id me/my-dpo --private`" in told
    assert "\n" not in told and "hf_not_a_real_one" not in told
    assert server.files == {} and contents(folder) == before
    sent = sum("/storage/" in path for path, _ in server.requests)
    server.cut, server.requests = [], []
    push(folder, "me/my-dpo", private=True, endpoint=server.address)
    assert sorted(server.files) == PUBLISHED
    # What arrived whole the first time is not sent again.
    again = sum("/storage/" in path for path, _ in server.requests)
    assert (sent, again) == (1, 0) if part == "/commit/" else again == 1


def test_staged_weights_are_the_same_at_each_push(tmp_path):
    """The Hub knows a file by its hash."""
    name = "pytorch_lora_weights.safetensors"
    folder = run_folder(tmp_path / "run")
    header = {"format": "pt", **{f"note {i}": f"at {PRIVATE}/{i}.png" for i in range(9)}}
    save_file({"a": torch.ones(3), "b": torch.arange(4.0)}, folder / name, header)
    for staging in ("one", "two"):
        stage(folder, [name], tmp_path / staging)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with safe_open(tmp_path / "one" / name, "pt") as handle:
        order = list(json.loads(_header(folder / name))["__metadata__"])
        assert list(json.loads(_header(tmp_path / "one" / name))["__metadata__"]) == order
        assert handle.metadata()["note 3"] == "at 3.png"
        assert torch.equal(handle.get_tensor("b"), torch.arange(4.0))


def _header(file):
    content = file.read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def test_damaged_weights_are_not_published(tmp_path, server, token):
    folder = run_folder(tmp_path)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="a file in it is damaged.*nothing was uploaded"):
        push(folder, "me/my-dpo", private=True, endpoint=server.address)
    assert server.requests == []


def test_what_cannot_be_pushed(tmp_path, token, server):
    """What is wrong on this side is bad input, exit code 2; what the Hub or the network refuses is 1."""
    run = run_folder(tmp_path / "run")
    (tmp_path / "unfinished" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "unfinished" / "run.json").write_text("{}")
    refusals = [
        (tmp_path / "nowhere", "me/x", "no such folder"),
        (run / "README.md", "me/x", "is a file; give the output folder"),
        (tmp_path, "me/x", "no trained weights"),
        (tmp_path / "unfinished", "me/x", "has written no weights yet; finish it"),
        (run, "me/x/y/z", "not a valid name"),
        (run, "", "not a valid name"),
    ]
    for folder, repository, message in refusals:
        with pytest.raises(ConfigError, match=message) as found:
            push(folder, repository, private=True, endpoint=server.address)
        assert found.value.exit_code == 2
    assert server.files == {} and server.requests == []


def test_the_command_without_a_token(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "get_token", lambda: None)
    with pytest.raises(HubError, match="HF_TOKEN"):
        push_run(Namespace(run_dir=str(run_folder(tmp_path)), repo_id="me/x", private=True))

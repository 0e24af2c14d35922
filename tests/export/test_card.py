"""The model card says what was trained, how to use it and whom to cite, and nothing about the machine."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard

import flowhooks
from flowhooks.export import CardPicture, write_card
from flowhooks.export.card import cited, entries
from flowhooks.export.card_code import card_code
from flowhooks.export.pipelines import PipelineKind, pipeline_kind
from flowhooks.hooks.registry import HOOKS
from flowhooks.rewards.registry import REWARDS
from tests.export.helpers import PRIVATE, document
from tests.families import tiny


@cache
def pipeline(name):
    return tiny(name)


def snippet_of(text):
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(snippet, "snippet", "exec")
    return snippet


def card(tmp_path, *, pipe="sd3", metrics=None, instance_prompts=(), **changes):
    picture = CardPicture(path=tmp_path / "validation" / "step_4_0.png", prompt="a [handwritten]\nseven")
    file = write_card(
        tmp_path,
        document=document(**changes),
        metrics=metrics or {"flow_dpo_margin": 0.123456789, "loss": 1.0},
        pictures=[picture],
        pipe=pipeline(pipe),
        instance_prompts=instance_prompts,
    )
    assert file == tmp_path / "README.md"
    assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]
    text = file.read_text(encoding="utf-8")
    assert PRIVATE not in text and "somebody" not in text and str(tmp_path) not in text
    return ModelCard.load(file), text


def test_a_hub_base_model(tmp_path):
    loaded, text = card(tmp_path)
    assert loaded.data.base_model == "stabilityai/stable-diffusion-3.5-medium"
    assert loaded.data.license == "other"
    assert loaded.data.license_link == "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium"
    assert loaded.data.library_name == "diffusers"
    assert {"lora", "flow_dpo", "mask_reducer", "flowhooks", "text-to-image"} <= set(loaded.data.tags)
    assert loaded.data.widget == [{"text": "a [handwritten]\nseven", "output": {"url": "validation/step_4_0.png"}}]
    assert "![a handwritten seven](validation/step_4_0.png)" in text
    assert "| flow_dpo_margin | 0.1235 |" in text
    assert text.startswith("---\n") and "# my-dpo" in text


def test_the_run_is_a_json_block_without_local_paths(tmp_path):
    _, text = card(tmp_path)
    block = re.search(r"```json\n(.*?)\n```", text, re.DOTALL).group(1)
    assert json.loads(block) == document(data="pairs.json", output_dir="my-dpo")


@pytest.mark.parametrize(
    "location", [f"{PRIVATE}/models/my-base", f"{PRIVATE}/models/my-base/", "~/my-base", r"C:\models\my-base"]
)
def test_a_local_base_model_is_only_its_folder_name(tmp_path, location):
    loaded, text = card(tmp_path, model={"pretrained_model_name_or_path": location})
    assert loaded.data.base_model is None
    assert loaded.data.to_dict().get("license_link") is None
    assert "from `my-base`" in text
    assert 'from_pretrained("my-base"' in text
    assert "huggingface.co" not in text
    assert "`my-base` was a folder" in text


def test_a_relative_folder_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded, _ = card(tmp_path / "run", model={"pretrained_model_name_or_path": "models/base"})
    assert loaded.data.base_model is None


def test_pictures_of_a_relative_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = CardPicture(path=Path("runs/x/validation/step_4.png"), prompt="a seven")
    file = write_card(Path("runs/x"), document=document(), metrics={}, pictures=[picture])
    assert ModelCard.load(file).data.widget[0]["output"]["url"] == "validation/step_4.png"


def test_citations_follow_the_hooks(tmp_path):
    _, text = card(tmp_path)
    assert "2501.13918" in text and "2311.12908" in text
    (tmp_path / "README.md").unlink()
    _, text = card(tmp_path, hooks=[{"type": "timestep_schedule"}])
    assert "arXiv" not in text and "Citation" not in text
    assert "`timestep_schedule`" in text


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        ({"type": "lora"}, 'pipe.load_lora_weights("FOLDER", weight_name="pytorch_lora_weights.safetensors")'),
        ({"type": "lycoris"}, 'create_lycoris_from_weights(1.0, "FOLDER/pytorch_lycoris_weights.safetensors"'),
        ({"type": "loha"}, 'PeftModel.from_pretrained(pipe.transformer, "FOLDER")'),
        (None, 'DiffusionPipeline.from_pretrained("FOLDER/pipeline"'),
    ],
)
def test_the_snippet_is_valid_and_fits_the_adapter(tmp_path, adapter, line):
    _, text = card(tmp_path, adapter=adapter)
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(snippet, "snippet", "exec")
    assert line in snippet


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        ({"type": "lora"}, 'weight_name="pytorch_lora_weights.safetensors", load_into_transformer_2=True)'),
        ({"type": "lycoris"}, 'create_lycoris_from_weights(1.0, "FOLDER/pytorch_lycoris_weights.safetensors", pipe.t'),
        ({"type": "loha"}, 'PeftModel.from_pretrained(pipe.transformer_2, "FOLDER")'),
    ],
)
def test_the_snippet_loads_onto_the_expert_that_was_trained(tmp_path, adapter, line):
    _, text = card(
        tmp_path,
        pipe="wan-two-experts",
        adapter=adapter,
        model={"pretrained_model_name_or_path": "a/b", "component": "transformer_2"},
    )
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(snippet, "snippet", "exec")
    assert line in snippet and "pipe.transformer)" not in snippet and "pipe.transformer." not in snippet


@pytest.mark.parametrize(
    ("adapter", "line"),
    [
        ({"type": "lora"}, "if pipe.scheduler.sigmas[step + 1] <= 0.4321987:"),
        ({"type": "loha"}, "with flowhooks.adapter_gate(pipe, 0.4321987):"),
    ],
)
def test_a_gated_adapter_is_used_with_its_gate(tmp_path, adapter, line):
    _, text = card(tmp_path, adapter=adapter, hooks=[{"type": "adapter_gate", "sigma": 0.4321987}])
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(snippet, "snippet", "exec")
    assert line in snippet
    assert "at or below sigma 0.4321987, and off above it" in text


def test_a_run_with_modules_is_put_on_by_flowhooks(tmp_path):
    (tmp_path / "flowhooks_modules.safetensors").write_bytes(b"")
    file = write_card(tmp_path, document=document(hooks=[{"type": "target_replacer"}]), metrics={})
    text = file.read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    compile(snippet, "snippet", "exec")
    assert 'with flowhooks.attach(pipe, "FOLDER"):' in snippet and "load_lora_weights" not in snippet
    assert "2605.13724" in text


@pytest.mark.parametrize(
    ("pipe", "line"),
    [
        ("sd3", 'pipe.load_lora_weights("FOLDER", weight_name="pytorch_lora_weights.safetensors")'),
        ("bria", 'pipe.transformer.load_lora_adapter("FOLDER", prefix="transformer", weight_name="pytorch_lora_'),
        # It has `load_lora_weights`, for another network.
        ("prx", 'load_adapter(pipe.transformer, "FOLDER")'),
        ("lumina", 'load_adapter(pipe.transformer, "FOLDER")'),
    ],
)
def test_the_card_names_the_loader_that_the_pipeline_has(tmp_path, pipe, line):
    snippet = snippet_of(card(tmp_path, pipe=pipe)[1])
    assert line in snippet and ("load_lora_weights" in snippet) == (pipe == "sd3")


@pytest.mark.parametrize("pipe", ["bria", "lumina"])
def test_what_the_card_says_loads_a_lora(tmp_path, pipe):
    """Onto a pipeline whose class has no ``load_lora_weights``: every value arrives."""
    trained, fresh = tiny(pipe), tiny(pipe)
    with flowhooks.attach(trained, {"adapter": {"type": "lora", "rank": 2}}) as session, torch.no_grad():
        for parameter in session.parameters().values():
            parameter.fill_(0.1)
        session.adapter.save(tmp_path, {})
        count = len(session.parameters())
    code = card_code(document(hooks=[]), "x/y", pipeline_kind(fresh, "transformer"), modules=False)
    exec("\n".join(_loading(code)).replace("FOLDER", str(tmp_path)), {"pipe": fresh})
    loaded = {name: parameter for name, parameter in fresh.transformer.named_parameters() if ".lora_" in name}
    assert len(loaded) == count > 0
    assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in loaded.values())


def _loading(code):
    """The lines between the one that makes the pipeline and the one that calls it."""
    lines = code.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("pipe = "))
    return [line for line in lines[start + 1 :] if " = pipe(" not in line]


@pytest.mark.parametrize(
    ("pipe", "task", "call"),
    [
        ("sd3", "text-to-image", 'image = pipe(prompt="your prompt").images[0]'),
        ("flux2", "text-to-image", 'image = pipe(prompt="your prompt").images[0]'),
        ("flux-kontext", "image-to-image", 'image = pipe(image=load_image("your_image.png"), prompt="your prompt")'),
        ("wan", "text-to-video", 'frames = pipe(prompt="your prompt").frames[0]'),
        ("sana-video", "text-to-video", 'frames = pipe(prompt="your prompt").frames[0]'),
    ],
)
def test_the_task_is_the_pipelines(tmp_path, pipe, task, call):
    loaded, text = card(tmp_path, pipe=pipe)
    assert loaded.data.pipeline_tag == task
    assert [tag for tag in loaded.data.tags if "-to-" in tag] == [task]
    assert call in snippet_of(text)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("WanImageToVideoPipeline", "image-to-video"),
        ("LTXImageToVideoPipeline", "image-to-video"),
        ("SanaImageToVideoPipeline", "image-to-video"),
        ("LTX2ImageToVideoPipeline", "image-to-video"),
        ("LTX2Pipeline", "text-to-video"),
        ("QwenImageEditPipeline", "image-to-image"),
        ("LongCatImageEditPipeline", "image-to-image"),
        ("StableDiffusion3Img2ImgPipeline", "image-to-image"),
        ("StableAudioPipeline", "text-to-audio"),
        ("StableAudio3Pipeline", "text-to-audio"),
        ("AceStepPipeline", "text-to-audio"),
        ("LongCatAudioDiTPipeline", "text-to-audio"),
    ],
)
def test_the_task_of_classes_without_a_tiny_pipeline(name, task):
    cls = getattr(diffusers, name)
    assert pipeline_kind(cls.__new__(cls), "transformer").task == task


@pytest.mark.parametrize("makes", ["image", "video", "audio"])
@pytest.mark.parametrize("from_picture", [True, False])
@pytest.mark.parametrize("changes", [{}, {"hooks": [{"type": "adapter_gate", "sigma": 0.5}]}, {"adapter": None}])
def test_the_code_of_every_kind_is_python(makes, from_picture, changes):
    for loader in ("pipeline", "network", None):
        kind = PipelineKind(makes=makes, from_picture=from_picture, loader=loader)
        for modules in (True, False):
            compile(card_code(document(**changes), "x/y", kind, modules=modules), "code", "exec")


def test_the_instance_prompt_is_the_trigger(tmp_path):
    prompts = ['a photo of "sks" dog', f"like {PRIVATE}/tom.png", 'a photo of "sks" dog']
    loaded, text = card(tmp_path, instance_prompts=prompts)
    assert loaded.data.instance_prompt == 'a photo of "sks" dog'
    assert '* a photo of "sks" dog\n* like tom.png\n' in text
    assert 'prompt="a photo of \\"sks\\" dog"' in snippet_of(text)


def test_a_card_without_an_instance_prompt(tmp_path):
    loaded, text = card(tmp_path)
    assert "instance_prompt" not in loaded.data.to_dict() and "Trigger words" not in text


def test_few_metrics_are_in_the_card(tmp_path):
    detail = {f"flow_dpo_policy_win_err_{i}": 0.5 for i in range(40)}
    many = {f"reward_{i:02}": 0.123456789 for i in range(40)}
    _, text = card(tmp_path, metrics={"loss": 123456.789, "flow_dpo_implicit_accuracy": 0.75, **detail, **many})
    rows = re.findall(r"^\| (\w+) \| ([\d.e+]+) \|$", text, re.MULTILINE)
    assert 0 < len(rows) <= 8 and ("loss", "1.235e+05") in rows and "policy_win_err" not in text
    assert ("flow_dpo_implicit_accuracy", "0.75") in rows
    assert "Every value, in full, is in `metrics.json`." in text


def test_cards_cite_the_papers_of_the_index():
    """All but the one that is behind every run."""
    index = (Path(__file__).parents[2] / "docs" / "paper_index.md").read_text(encoding="utf-8")
    cited = {paper for spec in (*HOOKS.values(), *REWARDS.values()) for paper in spec.papers}
    assert cited == entries().keys()
    numbers = {re.search(r"eprint += \{(.+)\}", paper).group(1) for paper in entries().values()}
    assert {*numbers, "2403.03206"} == set(re.findall(r"arxiv\.org/abs/([\d.]+)", index))


def test_only_pairs_over_http_cite_the_share_of_wins():
    def papers(**options):
        block = {"type": "http", "url": "http://127.0.0.1:9/", **options}
        return "".join(cited([{"type": "flow_grpo", "rewards": [block]}]))

    assert "2508.20751" in papers(judges="pairs") and "2508.20751" not in papers()

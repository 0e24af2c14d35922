"""The model card says what was trained, how to use it and whom to cite, and nothing about the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from flowhooks.export import CardPicture, write_card
from flowhooks.export.papers import PAPERS, REWARD_PAPERS
from tests.export.helpers import PRIVATE, document


def card(tmp_path, **changes):
    picture = CardPicture(path=tmp_path / "validation" / "step_4_0.png", prompt="a [handwritten]\nseven")
    file = write_card(
        tmp_path,
        document=document(**changes),
        metrics={"flow_dpo_margin": 0.123456789, "loss": 1.0},
        pictures=[picture],
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
    assert "| flow_dpo_margin | 0.123457 |" in text
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
        tmp_path, adapter=adapter, model={"pretrained_model_name_or_path": "a/b", "component": "transformer_2"}
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


def test_cards_cite_the_papers_of_the_index():
    """All but the one that is behind every run."""
    index = (Path(__file__).parents[2] / "docs" / "paper_index.md").read_text(encoding="utf-8")
    cited = {paper for papers in (*PAPERS.values(), *REWARD_PAPERS.values()) for paper in papers}
    numbers = {re.search(r"eprint += \{(.+)\}", paper).group(1) for paper in cited}
    assert {*numbers, "2403.03206"} == set(re.findall(r"arxiv\.org/abs/([\d.]+)", index))

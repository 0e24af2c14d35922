"""The shipped rewards, on tiny models of the real classes loaded from disk, against the stock classes by hand."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from flowhooks.errors import ConfigError, ModelError, RewardError
from flowhooks.rewards import build_reward, reward_gradient, scored
from flowhooks.rewards.classifier import label_number
from flowhooks.rewards.ocr import edit_distance, text_accuracy
from tests.rewards.judges import (
    PROMPTS,
    photos,
    pixels_of,
    write_clip,
    write_head,
    write_siglip,
    write_trocr,
    write_vit,
)

NOTHING = [{}, {}]
WANTED = [{"label": "cat"}, {"label": "flower"}]
#: Pictures are resized without rounding to 8 bits; see test_pictures.py.
CLOSE = {"rtol": 0, "atol": 2e-3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    writers = {"clip": write_clip, "siglip": write_siglip, "vit": write_vit, "trocr": write_trocr}
    made = {name: str(write(root / name)) for name, write in writers.items()}
    return {**made, "head": str(write_head(root / "head.safetensors"))}


@pytest.fixture(scope="module")
def blocks(folders):
    clip = folders["clip"]
    return {
        "classifier": {"type": "classifier", "model": folders["vit"]},
        "clip_score": {"type": "clip_score", "model": clip},
        "siglip": {"type": "clip_score", "model": folders["siglip"]},
        "pickscore": {"type": "pickscore", "model": clip, "processor": None},
        "aesthetic": {"type": "aesthetic", "model": clip, "head": folders["head"]},
        "ocr": {"type": "ocr", "model": folders["trocr"], "max_new_tokens": 8},
    }


DIFFERENTIABLE = ["classifier", "clip_score", "siglip", "pickscore", "aesthetic"]


def judged(block, records=NOTHING, on=None):
    reward = build_reward(block, allow_imports=True)
    return scored([reward], [1.0], pixels_of(photos()) if on is None else on, PROMPTS, records)[0]


def stock_pixels(folder):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(images=list(photos()), return_tensors="pt", input_data_format="channels_last").pixel_values


@torch.no_grad()
def stock_cosine(cls, folder, **padding):
    model, tokenizer = cls.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pictures = model.get_image_features(pixel_values=stock_pixels(folder)).pooler_output
    texts = model.get_text_features(**tokenizer(PROMPTS, return_tensors="pt", **padding)).pooler_output
    return F.cosine_similarity(pictures, texts), model


# Values.


def test_clip_score_is_the_cosine_of_the_stock_model(folders, blocks):
    expected, _ = stock_cosine(CLIPModel, folders["clip"], padding=True)
    torch.testing.assert_close(judged(blocks["clip_score"]), expected, **CLOSE)
    torch.testing.assert_close(
        judged({**blocks["clip_score"], "scale": 100}), 100 * expected, rtol=0, atol=100 * CLOSE["atol"]
    )


def test_siglip_reads_text_padded_to_its_full_length(folders, blocks):
    expected, _ = stock_cosine(SiglipModel, folders["siglip"], padding="max_length", max_length=16)
    torch.testing.assert_close(judged(blocks["siglip"]), expected, **CLOSE)


def test_pickscore_is_the_cosine_times_the_models_own_scale(folders, blocks):
    expected, model = stock_cosine(CLIPModel, folders["clip"], padding=True)
    factor = float(model.logit_scale.detach().exp())
    assert 90 < factor < 110
    torch.testing.assert_close(judged(blocks["pickscore"]), factor * expected, rtol=0, atol=factor * CLOSE["atol"])
    assert build_reward(blocks["pickscore"]).range == pytest.approx((-factor, factor))


def test_pickscore_takes_its_processor_from_elsewhere(folders, blocks, tmp_path):
    CLIPModel.from_pretrained(folders["clip"]).save_pretrained(tmp_path)
    apart = {"type": "pickscore", "model": str(tmp_path), "processor": folders["clip"]}
    assert torch.equal(judged(apart), judged(blocks["pickscore"]))


@torch.no_grad()
def test_the_aesthetic_score_is_the_head_on_an_embedding_of_length_one(folders, blocks):
    model, head = CLIPVisionModelWithProjection.from_pretrained(folders["clip"]), load_file(folders["head"])
    x = model(pixel_values=stock_pixels(folders["clip"])).image_embeds
    x = x / x.norm(dim=-1, keepdim=True)
    for i in (0, 2, 4):
        x = x @ head[f"layers.{i}.weight"].T + head[f"layers.{i}.bias"]
    torch.testing.assert_close(judged(blocks["aesthetic"]), x[:, 0], rtol=0.01, atol=0.01)


@torch.no_grad()
def test_the_classifier_is_the_stock_one(folders, blocks):
    logits = ViTForImageClassification.from_pretrained(folders["vit"])(stock_pixels(folders["vit"])).logits
    expected = logits.softmax(1)[[0, 1], [0, 2]]
    likely = {**blocks["classifier"], "target": "probability"}
    torch.testing.assert_close(judged(likely, WANTED), expected, **CLOSE)
    torch.testing.assert_close(judged(blocks["classifier"], WANTED), expected.log(), rtol=0.02, atol=0.02)


def test_labels_are_named_or_numbered_in_records_or_for_all(blocks):
    block = blocks["classifier"]
    by_name = judged(block, WANTED)
    assert torch.equal(judged(block, [{"label": 0}, {"label": "2"}]), by_name)
    assert torch.equal(judged({**block, "label_column": "kind"}, [{"kind": "cat"}, {"kind": "flower"}]), by_name)
    both = judged({**block, "label": "cat"})
    assert both[0] == by_name[0] and both[1] != by_name[1]


def test_a_module_of_ones_own_as_the_classifier():
    on = pixels_of(photos())
    block = {"type": "classifier", "model": "tests.rewards.judges:Greenest", "label": 1}
    torch.testing.assert_close(judged(block, on=on), (10 * on.mean((2, 3))).log_softmax(1)[:, 1])


def test_what_is_read_is_compared_with_the_record(blocks):
    reward = build_reward(blocks["ocr"])
    on = pixels_of(photos())
    read = reward.read(on)
    assert len(set(read)) == 2 and all(read)
    records = [{"text": read[0]}, {"text": f"  {read[0].upper()}"}]
    expected = [1.0, text_accuracy(read[1], read[0].upper())]
    assert scored([reward], [1.0], on, PROMPTS, records)[0].tolist() == pytest.approx(expected)
    loose = build_reward({**blocks["ocr"], "ignore_case": True, "ignore_spaces": True})
    values = scored([loose], [1.0], on[:1], PROMPTS[:1], [{"text": " ".join(read[0].upper())}])[0]
    assert values.tolist() == [1.0]


def recursive_distance(one, other):
    @lru_cache(None)
    def of(i, j):
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    return of(len(one), len(other))


@given(st.text("abc ", max_size=7), st.text("abc ", max_size=7))
def test_edit_distance(one, other):
    assert edit_distance(one, other) == recursive_distance(one, other)
    assert 0 <= text_accuracy(one, other) <= 1


def test_edit_distance_of_known_words():
    assert edit_distance("kitten", "sitting") == 3
    assert text_accuracy("kitten", "sitting") == pytest.approx(4 / 7)
    assert text_accuracy("", "abc") == 0 and text_accuracy("abc", "abc") == 1


# Gradients, precision, frames.


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_is_that_of_finite_differences(name, blocks):
    reward = build_reward(blocks[name])
    reward.network.double()
    on = 0.3 + 0.4 * torch.rand(2, 3, 40, 48, dtype=torch.float64)
    gradient = reward_gradient(reward, on, PROMPTS, WANTED)
    direction = torch.randn_like(on)
    with torch.no_grad():
        ahead, behind = (reward(on + step * direction, PROMPTS, WANTED).sum() for step in (1e-5, -1e-5))
    assert float((gradient * direction).sum()) == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-5)
    assert all(each.any() for each in gradient)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_climbing_the_gradient_raises_the_reward(name, blocks):
    reward, on = build_reward(blocks[name]), 0.25 + 0.5 * pixels_of(photos())
    gradient = reward_gradient(reward, on, PROMPTS, WANTED)
    better = (on + 0.02 * gradient.sign()).clamp(0, 1)
    assert (reward(better, PROMPTS, WANTED) > reward(on, PROMPTS, WANTED)).all()


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, "ocr"])
def test_models_are_frozen_and_in_evaluation_mode(name, blocks):
    reward = build_reward(blocks[name]).to("cpu")
    assert not any(p.requires_grad for p in reward.network.parameters())
    assert not any(module.training for module in reward.network.modules())
    assert reward.network_dtype == torch.float32
    assert reward.differentiable == (name != "ocr")


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_half_precision_is_the_models_alone(name, blocks):
    coarse = build_reward({**blocks[name], "dtype": "bf16"})
    assert coarse.network_dtype == torch.bfloat16
    values = coarse(pixels_of(photos()), PROMPTS, WANTED)
    assert values.dtype == torch.float32
    exact = build_reward(blocks[name])(pixels_of(photos()), PROMPTS, WANTED)
    torch.testing.assert_close(values, exact, rtol=0.1, atol=0.1)
    assert reward_gradient(coarse, pixels_of(photos()), PROMPTS, WANTED).dtype == torch.float32


def test_autocast_outside_does_not_reach_in(blocks):
    reward, on = build_reward(blocks["clip_score"]), pixels_of(photos())
    plain = reward(on, PROMPTS, NOTHING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(reward(on, PROMPTS, NOTHING), plain)


def test_a_video_is_the_mean_of_its_frames(blocks):
    frames = pixels_of(photos(3))
    clip = frames.transpose(0, 1)[None]
    reward = build_reward(blocks["clip_score"])
    each = reward(frames, PROMPTS[:1] * 3, [{}] * 3)
    torch.testing.assert_close(reward(clip, PROMPTS[:1], [{}])[0], each.mean())
    assert (reward_gradient(reward, clip, PROMPTS[:1], [{}]).abs().sum((0, 1, 3, 4)) > 0).all()


def test_a_prompt_beyond_the_models_length_is_cut(blocks):
    long = "a photo of the one " * 20
    values = build_reward(blocks["clip_score"])(pixels_of(photos()), [long, long + "seven"], NOTHING)
    assert values.isfinite().all()


# What cannot be used.


def test_a_column_that_is_not_there(blocks):
    with pytest.raises(RewardError, match=f"'classifier' reads the column 'label'.*{PROMPTS[1]!r}.* has 'kind'"):
        judged(blocks["classifier"], [{"label": 0}, {"kind": "cat"}])
    with pytest.raises(RewardError, match="'ocr' reads the column 'text'.*no columns"):
        judged(blocks["ocr"])
    with pytest.raises(RewardError, match="holds no text to read"):
        judged(blocks["ocr"], [{"text": "one"}, {"text": " "}])


def test_a_label_that_is_not_there(blocks):
    with pytest.raises(RewardError, match=f"column 'label' of prompt {PROMPTS[1]!r}.*'cats'.*mean 'cat'"):
        judged(blocks["classifier"], [{"label": "cat"}, {"label": "cats"}])
    with pytest.raises(RewardError, match="there is no label 3; known: 'cat', 'dog', 'flower'"):
        judged(blocks["classifier"], [{"label": 0}, {"label": 3}])
    with pytest.raises(ConfigError, match=r"\$: there is no label 'bird'"):
        build_reward({**blocks["classifier"], "label": "bird"})
    own = {"type": "classifier", "model": "tests.rewards.judges:Greenest", "label": 3}
    with pytest.raises(RewardError, match=f"`label` of prompt {PROMPTS[0]!r}: .* 3; known: numbers from 0 to 2"):
        judged(own)


@pytest.mark.parametrize(("label", "number"), [("dog", 1), ("2", 2), (0, 0), ("7", 0)])
def test_a_label_is_looked_up_by_name_and_then_by_number(label, number):
    assert label_number(label, {"7": 0, "dog": 1, "3": 2}, 3) == number


@pytest.mark.parametrize("label", [True, -1, 3, "4", "", "Dog", None, 1.0, ["dog"]])
def test_what_is_no_label(label):
    with pytest.raises(ValueError, match="there is no label"):
        label_number(label, {"7": 0, "dog": 1, "3": 2}, 3)


def test_weights_that_are_missing_are_not_left_to_chance(tmp_path):
    """An encoder without the head of a classifier loads with a warning, and a random head."""
    write_vit(tmp_path)
    config = ViTConfig.from_pretrained(tmp_path)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 2 weights of a ViTForImageClassification, such as 'classifier.bias'"):
        build_reward({"type": "classifier", "model": str(tmp_path)})


def test_pickled_weights_are_not_read(tmp_path):
    write_vit(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded.*safetensors"):
        build_reward({"type": "classifier", "model": str(tmp_path)})


@pytest.mark.parametrize("name", ["clip_score", "pickscore"])
def test_a_model_of_another_kind(name, folders):
    block = {"type": name, "model": folders["vit"]}
    with pytest.raises(ModelError, match="no tokenizer|lacks 2 weights of a ViTModel"):
        build_reward(block if name == "clip_score" else {**block, "processor": folders["clip"]})


def test_siglip_has_a_scale_too(folders):
    """SigLIP's own: PickScore does not insist on CLIP."""
    assert build_reward({"type": "pickscore", "model": folders["siglip"], "processor": None}).range[1] > 0


def test_a_model_that_is_not_there(tmp_path):
    for type, more in (("clip_score", {}), ("classifier", {}), ("ocr", {}), ("aesthetic", {"head": "none"})):
        with pytest.raises(ModelError, match=r"^\$.rewards\[2\]: `(model|head)` "):
            build_reward({"type": type, "model": str(tmp_path), **more}, "$.rewards[2]")


def test_a_module_that_cannot_be_imported():
    for path, message in (
        ("no_such_module:Model", "cannot be imported"),
        ("builtins:dict", "is no subclass of torch.nn.Module.*but the class builtins.dict"),
    ):
        with pytest.raises(ModelError, match=message):
            build_reward({"type": "classifier", "model": path}, allow_imports=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"extra": torch.zeros(1)}), "holds 'extra'"),
        (lambda t: t.clear(), "holds nothing"),
        (lambda t: t.pop("layers.2.bias"), "layer 2 is not a weight"),
        (lambda t: t.pop("layers.4.weight") is None or t.pop("layers.4.bias"), "ends in 4 numbers"),
        (lambda t: t.pop("layers.2.weight") is None or t.pop("layers.2.bias"), "layer 4 takes 4 .* gives 16"),
        (lambda t: t.pop("layers.0.weight") is None or t.pop("layers.0.bias"), "takes 16 numbers, .* gives 8"),
    ],
)
def test_a_head_that_does_not_fit(change, message, folders, blocks, tmp_path):
    tensors = load_file(folders["head"])
    change(tensors)
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match=f"`head` .*{message}"):
        build_reward({**blocks["aesthetic"], "head": str(tmp_path / "head.safetensors")})


def test_a_pickled_head_is_not_read(blocks, tmp_path):
    torch.save({"layers.0.weight": torch.zeros(1, 8)}, tmp_path / "head.pth")
    with pytest.raises(ModelError, match="cannot be read.*docs/rewards.md"):
        build_reward({**blocks["aesthetic"], "head": str(tmp_path / "head.pth")})

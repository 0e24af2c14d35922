"""Where features come from: the picture's tokens in the blocks of tiny pipelines, and a vision model's patches."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import flowhooks
from flowhooks.adapters.adapter_file import read_tensors
from flowhooks.errors import ModelError
from flowhooks.hooks.feature_alignment.vision_encoder import VisionEncoder
from flowhooks.probe.streams import learn_streams
from tests.families import learnt
from tests.families.checks import pairs
from tests.hooks.aligned import PIPELINES, PROJECTED, document, outputs_of, trained, write_dinov2


@pytest.mark.parametrize("name", [*PIPELINES, "ernie-image"])
def test_the_pictures_tokens_are_found_in_every_block(name):
    """What reaches the last block's picture tokens, and nothing else, is what the prediction is made of."""
    model = learnt(name)
    streams = learn_streams(model)
    assert list(streams.found) == list(streams.names)
    last = streams.found[streams.names[-1]]
    batch, sigma = pairs(model), torch.full((2,), 0.5)
    tokens = math.prod(streams.grid(model.layout_of(batch.clean).extent))
    assert tokens == model.anatomy.tokens

    def shifted(block, args, output):
        held = last.of(output, tokens)
        with torch.no_grad():
            held += 10 * torch.randn(held.shape, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        plain = model.predict(batch.clean, sigma, batch.condition)
        handle = model.transformer.get_submodule(last.name).register_forward_hook(shifted)
        changed = model.predict(batch.clean, sigma, batch.condition)
        handle.remove()
    assert not torch.isclose(plain, changed, atol=1e-4).any(1).all()
    assert float((plain - changed).abs().mean()) > 0.01


def test_streams_of_equal_length_are_told_apart():
    """This one has as many tokens of text as of picture, in a tuple of two."""
    model = learnt("sd3")
    assert model.anatomy.text_tokens == ("apart", model.anatomy.tokens)
    assert [s.output for s in learn_streams(model).found.values()] == [1, 1]


def test_text_and_picture_in_one_stream():
    streams = learn_streams(learnt("flux2-klein"))
    assert {s.at for name, s in streams.found.items() if name.startswith("single_transformer_blocks")} == {"last"}


# A vision model as the teacher.


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    return write_dinov2(tmp_path_factory.mktemp("dinov2"))


def external(folder: Path, **more) -> dict:
    return {"type": "feature_alignment", "source": "external", "block_index": 0, "encoder": str(folder), **more}


@torch.no_grad()
def patches(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """``[n, 3, 3, D]`` of pictures ``[n, 3, H, W]`` in [-1, 1], as its authors would compute it."""
    from transformers import Dinov2Model

    network = Dinov2Model.from_pretrained(folder)
    small = F.interpolate((pixels * 0.5 + 0.5).clamp(0, 1), size=(42, 42), mode="bilinear", antialias=True)
    for channel, (mean, std) in enumerate(zip((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), strict=True)):
        small[:, channel] = (small[:, channel] - mean) / std
    return network(small).last_hidden_state[:, 1:].unflatten(1, (3, 3))


def reference(folder: Path, model, batch, weights) -> torch.Tensor:
    """Directions ``[B, N, D]`` on the student's grid; ``weights[f]`` are those of each pixel frame for latent frame
    f."""
    streams = learn_streams(model)
    frames, rows, columns = streams.grid(model.layout_of(batch.clean).extent)
    found = []
    for sample in batch.clean:
        pixels = model.decode(sample[None], **model.size)[0]
        pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels
        z = patches(folder, pixels.movedim(1, 0)).movedim(-1, 1)
        z = F.interpolate(z, size=(rows, columns), mode="bilinear").flatten(2).movedim(1, 2)
        z = z / z.norm(dim=-1, keepdim=True)
        for row in weights:
            found.append(sum(w * z[k] for k, w in row.items()) / sum(row.values()))
    return torch.stack(found).unflatten(0, (len(batch.clean), frames)).flatten(1, 2)


def expected_loss(session, model, batch, towards) -> float:
    """Of one step, by hand: project the student's block and take the cosine."""
    streams = learn_streams(model)
    student = streams.found[streams.names[0]]
    with outputs_of(model, student.name) as seen:
        session.step(batch)
    h = torch.cat([student.of(out, model.anatomy.tokens) for out in seen[student.name]])
    projected = session.assembly.modules()["feature_alignment.projector"](h)
    return float((1 - (F.normalize(projected, dim=-1) * towards).sum(-1)).detach().mean())


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image"])
def test_a_vision_model_on_the_clean_picture(name, dinov2):
    model = learnt(name)
    batch = pairs(model)
    with trained(model, external(dinov2, **PROJECTED, weight=1.0)) as session:
        towards = reference(dinov2, model, batch, [{0: 1.0}])
        expected = expected_loss(session, model, batch, towards)
        session.micro_step = 0
        result = session.step(batch)
        assert float(result.metrics["alignment_loss"]) == pytest.approx(expected, rel=1e-4)
        assert result.passes == 1
        (said,) = session.warnings({})
        assert "resampled from 3 x 3 to 4 x 4" in said
        assert session.warnings({}) == []
        result.loss.backward()
        assert not any("encoder" in key for key in session.parameters())
        assert session.state_dict()["hooks"]["feature_alignment"] == {"position": 0, "cut_off": {}}


@pytest.mark.parametrize(
    ("block", "weights"),
    [
        ({"source": "external"}, [{0: 1.0}, {4: 1.0}]),
        ({"source": "crepa", "adjacent_tau": 2.0}, [{0: 1.0, 4: math.exp(-0.5)}, {4: 1.0, 0: math.exp(-0.5)}]),
        ({"source": "crepa", "adjacent_distance": 0}, [{0: 1.0}, {4: 1.0}]),
    ],
)
def test_a_vision_model_on_the_frames_of_a_video(block, weights, dinov2):
    """Five frames of pixels, two of latents."""
    model = learnt("wan")
    batch = pairs(model)
    with trained(model, external(dinov2, **PROJECTED, weight=1.0, **block)) as session:
        towards = reference(dinov2, model, batch, weights)
        expected = expected_loss(session, model, batch, towards)
        session.micro_step = 0
        found = session.step(batch).metrics["alignment_loss"]
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_vision_model_resumes_and_leaves_nothing(dinov2):
    model = learnt("sd3")
    before = [id(m) for m in model.pipe.components.values()], list(model.transformer.state_dict())
    with trained(model, external(dinov2, **PROJECTED)) as session:
        session.step(pairs(model)).loss.backward()
    assert before == ([id(m) for m in model.pipe.components.values()], list(model.transformer.state_dict()))
    assert not any(m._forward_hooks for m in model.transformer.modules())


def test_without_a_preprocessor_config_the_models_own_size_counts(dinov2, tmp_path):
    for file in dinov2.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert VisionEncoder(str(tmp_path), torch.device("cpu")).grid == (4, 4)
    assert VisionEncoder(str(dinov2), torch.device("cpu")).grid == (3, 3)


def unusable(dinov2: Path, folder: Path) -> dict[str, Path]:
    """What is said -> a vision model that is broken in a way of its own."""
    from transformers import SwinConfig, SwinModel, ViTConfig, ViTModel

    weights, _ = read_tensors(dinov2 / "model.safetensors")
    lacking, broken, unread, fixed, coarse = (
        folder / name for name in ("lacking", "broken", "unread", "fixed", "swin")
    )
    for copy in (lacking, broken, unread):
        shutil.copytree(dinov2, copy)
    kept = {key: tensor for key, tensor in weights.items() if ".layer.1." not in key}
    save_file(kept, lacking / "model.safetensors", {"format": "pt"})
    (broken / "model.safetensors").write_bytes(b"nothing of the kind")
    (unread / "preprocessor_config.json").write_text("{")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(**sizes, image_size=56, patch_size=14)).save_pretrained(fixed)
    shutil.copy(dinov2 / "preprocessor_config.json", fixed)
    windows = SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4)
    SwinModel(windows).save_pretrained(coarse)
    return {
        "lacks .* weights of a Dinov2Model, such as 'encoder.layer.1": lacking,
        "cannot be loaded: .*header": broken,
        "cannot be loaded: .*not a valid JSON": unread,
        "cannot see images of 42 pixels": fixed,
        "expected 64 patches or more": coarse,
    }


def test_teachers_that_cannot_be_used(dinov2, tmp_path):
    model = learnt("sd3")
    (tmp_path / "config.json").write_bytes((dinov2 / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    for block, message in (
        (external(tmp_path), "cannot be loaded.*safetensors"),
        (external(tmp_path / "nowhere"), "cannot be loaded"),
        (external(dinov2, source="crepa"), "neighbouring frames"),
        (external(dinov2, projector_depth=0), "12 channels.*`projector_depth`"),
    ):
        with pytest.raises(ModelError, match=message), flowhooks.attach(model, document(block)):
            pass
    for name, encoder in unusable(dinov2, tmp_path).items():
        with pytest.raises(ModelError, match=name), flowhooks.attach(model, document(external(encoder))):
            pass
    model.pipe.vae = None
    with pytest.raises(ModelError, match="no `vae`"), flowhooks.attach(model, document(external(dinov2))):
        pass

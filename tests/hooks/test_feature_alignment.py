"""Feature alignment: the maths against plain arithmetic, the plumbing on tiny pipelines of four kinds."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flowhooks
from flowhooks.adapters.files import read_tensors
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError, ModelError
from flowhooks.hooks import FeatureAlignment
from flowhooks.hooks.alignment import (
    Schedule,
    SimilarityCutOff,
    agreement,
    frame_places,
    projector,
    resampled,
    unit,
    with_neighbours,
)
from flowhooks.modules_file import MODULES, save_modules
from flowhooks.probe.streams import learn_streams
from flowhooks.testing.matrix import learnt, pairs

PIPELINES = ["sd3", "flux", "qwen-image", "wan"]
LAYERSYNC = {"type": "feature_alignment", "block_index": 0, "teacher_block_index": 1}
PROJECTED = {"projector_depth": 2, "projector_width": 16}


def document(block: dict, **more) -> dict:
    return {"adapter": {"rank": 2}, "hooks": [block], **more}


@contextmanager
def trained(model, block: dict, **more):
    """A session whose every weight has a value that shows."""
    torch.manual_seed(0)
    with flowhooks.attach(model, document(block, **more)) as session:
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        yield session


def aligned(session, batch) -> torch.Tensor:
    """``alignment_loss`` of a step, with its graph."""
    found, gather = {}, session.assembly.penalties
    session.assembly.penalties = lambda step: found.update(gather(step)) or found
    session.step(batch)
    return found["alignment_loss"]


@contextmanager
def outputs_of(model, *names: str):
    """What blocks return, call after call."""
    seen: dict[str, list] = {name: [] for name in names}
    handles = [
        model.transformer.get_submodule(name).register_forward_hook(lambda m, a, out, n=name: seen[n].append(out))
        for name in names
    ]
    yield seen
    for handle in handles:
        handle.remove()


# The maths.


def test_the_cosine_is_over_channels():
    generator = torch.Generator().manual_seed(0)
    h, z = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    for b in range(2):
        cosines = [
            sum(float(x * y) for x, y in zip(h[b, n], z[b, n], strict=True))
            / math.sqrt(sum(float(x) ** 2 for x in h[b, n]) * sum(float(y) ** 2 for y in z[b, n]))
            for n in range(3)
        ]
        assert float(agreement(h, unit(z))[b]) == pytest.approx(sum(cosines) / 3, rel=1e-5)


def test_neighbours_are_a_weighted_mean_of_cosines():
    generator = torch.Generator().manual_seed(1)
    h, z = torch.randn(1, 4, 2, 6, generator=generator), torch.randn(1, 4, 2, 6, generator=generator)
    towards = with_neighbours(unit(z), distance=1, tau=0.5).flatten(1, 2)
    total = 0.0
    for f in range(4):
        near = [k for k in range(4) if abs(k - f) <= 1]
        weights = [math.exp(-abs(k - f) / 0.5) for k in near]
        cosines = [float(F.cosine_similarity(h[0, f], z[0, k], dim=-1).mean()) for k in near]
        total += sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights)
    assert float(agreement(h.flatten(1, 2), towards)) == pytest.approx(total / 4, rel=1e-5)


def test_frames_do_not_mix_and_a_plane_stays_one_when_resampled():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    planes = torch.stack([rows, columns, rows + 10]).reshape(1, 3, 4, 6)
    features = torch.stack([planes.flatten(1), -planes.flatten(1)], -1)
    halved = resampled(features, (3, 4, 6), (3, 2, 3))
    expected = torch.stack([plane.reshape(2, 2, 3, 2).mean((1, 3)) for plane in planes[0]]).flatten()
    torch.testing.assert_close(halved[0, :, 0], expected)
    torch.testing.assert_close(halved[0, :, 1], -expected)
    assert resampled(features, (3, 4, 6), (3, 4, 6)) is features
    with pytest.raises(ValueError, match="3 frames"):
        resampled(features, (3, 4, 6), (2, 4, 6))


def test_frames_that_stand_for_latent_ones():
    assert frame_places(9, 3) == [0, 4, 8] and frame_places(5, 2) == [0, 4] and frame_places(5, 1) == [0]


def test_projectors():
    layers = list(projector(4, 6, width=8, depth=3))
    assert [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)] == [(4, 8), (8, 8), (8, 6)]
    assert [type(m) for m in layers] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    assert isinstance(projector(4, 4, width=8, depth=0), nn.Identity)


def schedule(**changes) -> Schedule:
    plain = {"weight": 0.8, "scheduler": "constant", "warmup_steps": 0, "decay_steps": 0}
    return Schedule(**{**plain, "weight_end": 0.0, "cutoff_step": 0, **changes})


def test_schedules():
    assert [schedule().at(n) for n in (0, 1000)] == [0.8, 0.8]
    warm = schedule(warmup_steps=4, cutoff_step=10)
    assert [warm.at(n) for n in (0, 1, 4, 9, 10, 11)] == [0, 0.2, 0.8, 0.8, 0, 0]
    linear = schedule(scheduler="linear", warmup_steps=2, decay_steps=4, weight_end=0.4)
    assert [linear.at(n) for n in (1, 2, 4, 6, 9)] == pytest.approx([0.4, 0.8, 0.6, 0.4, 0.4])
    cosine = schedule(scheduler="cosine", decay_steps=4)
    expected = [0.8, 0.8 * (1 + math.cos(math.pi / 4)) / 2, 0.4, 0, 0]
    assert [cosine.at(n) for n in (0, 1, 2, 4, 5)] == pytest.approx(expected)


def test_the_cut_off_holds_once_it_was_reached_and_resumes():
    cut = SimilarityCutOff(0.5, 0.5)
    for score, factor in ((0.2, 1), (0.9, 0), (0.0, 0)):
        cut.update(torch.tensor(score))
        assert float(cut.factor(torch.ones(()))) == factor
    other = SimilarityCutOff(0.5, 0.5)
    other.load_state_dict(cut.state_dict())
    assert float(other.factor(torch.ones(()))) == 0 and float(other.average) == float(cut.average)


# Where the picture's tokens are.


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pictures_tokens_are_found_in_every_block(name):
    """What reaches the last block's picture tokens, and nothing else, is what the prediction is made of."""
    model = learnt(name)
    streams = learn_streams(model)
    assert list(streams.found) == list(streams.names)
    last = streams.found[streams.names[-1]]
    batch, sigma = pairs(model), torch.full((2,), 0.5)
    tokens = math.prod(streams.grid(model.layout_of(batch.clean).vae_shape))
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


# Taken in passing.


@pytest.mark.parametrize("name", PIPELINES)
def test_the_loss_of_layersync_is_that_of_the_blocks_outputs(name):
    model = learnt(name)
    batch = pairs(model)
    with trained(model, {**LAYERSYNC, "weight": 0.2}) as session:
        streams = learn_streams(model)
        student, teacher = (streams.found[n] for n in streams.names[:2])
        with outputs_of(model, student.name, teacher.name) as seen:
            loss = aligned(session, batch)
        assert session.step(batch, log=False).passes == 1
    tokens = model.anatomy.tokens
    h, z = (torch.cat([s.of(out, tokens) for out in seen[s.name]]) for s in (student, teacher))
    assert float(loss.detach()) == pytest.approx(
        0.2 * float((1 - F.cosine_similarity(h, z, dim=-1).detach()).mean()), rel=1e-4
    )


def test_samples_keep_their_rows_when_prompts_share_no_forward():
    """Rows 0 and 2 go through the network together, row 1 after them; masks show which row is which."""
    model = learnt("qwen-image")
    batch = pairs(model)
    clean = torch.cat([batch.clean, batch.clean[:1] + 1])
    condition = batch.condition.join([batch.condition[:1]])
    assert [rows for rows, _ in condition.groups()] == [[0, 2], [1]]
    document = {"adapter": {"rank": 2}, "hooks": [LAYERSYNC, {"type": "mask_reducer"}]}
    with flowhooks.attach(model, document) as session:
        streams = learn_streams(model)
        for row, (call, place) in enumerate([(0, 0), (1, 0), (0, 1)]):
            mask = torch.zeros(3, 1, 8, 8)
            mask[row] = 1
            with outputs_of(model, *streams.names) as seen:
                found = session.evaluate(flowhooks.Batch(clean=clean, condition=condition, mask=mask)).metrics
            h, z = (seen[name][call][1][place] for name in streams.names)
            expected = float((1 - F.cosine_similarity(h, z, dim=-1)).mean())
            assert float(found["crepa_loss"]) == pytest.approx(expected, rel=1e-4), row


@pytest.mark.parametrize("name", PIPELINES)
def test_gradients_reach_adapter_and_projector_but_not_through_the_teacher(name):
    model = learnt(name)
    with trained(model, {**LAYERSYNC, **PROJECTED}) as session:
        streams = learn_streams(model)
        aligned(session, pairs(model)).backward()
        student, teacher = streams.names[:2]
        for key, p in session.parameters().items():
            if f"{teacher}." in key:
                assert p.grad is None or not p.grad.any(), key
            if key.startswith("feature_alignment."):
                assert p.grad is not None and p.grad.any(), key
        assert any(
            p.grad is not None and p.grad.any() for key, p in session.parameters().items() if f"{student}." in key
        )


@pytest.mark.parametrize("source", ["layersync", "backbone"])
@pytest.mark.parametrize("name", PIPELINES)
def test_gradient_checkpointing_changes_nothing(name, source):
    found = []
    for checkpointing in (False, True):
        model = learnt(name)
        model.transformer.train()
        if checkpointing:
            model.transformer.enable_gradient_checkpointing()
        with trained(model, {**LAYERSYNC, **PROJECTED, "source": source}) as session:
            loss = session.step(pairs(model)).loss
            loss.backward()
            gradients = {name: p.grad for name, p in session.parameters().items() if p.grad is not None}
            found.append({"loss": loss.detach(), **gradients})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-7)


def test_the_frozen_base_teaches_and_its_pass_is_shared():
    model = learnt("sd3")
    batch = pairs(model)
    block = {**LAYERSYNC, "source": "backbone", "projector_depth": 0, "block_index": "transformer_blocks.1"}
    with flowhooks.attach(model, document(block)) as session:
        # A fresh adapter is the base: every cosine is 1.
        assert float(session.evaluate(batch).metrics["crepa_loss"]) == pytest.approx(0, abs=1e-6)
    shared = {"adapter": {"rank": 2}, "hooks": [block, {"type": "flow_dpo"}]}
    with flowhooks.attach(model, shared) as session:
        assert session.step(batch).passes == 2


def test_metrics_and_masks():
    model = learnt("sd3")
    batch = pairs(model)
    mask = torch.ones(2, 1, 8, 8)
    mask[1] = 0
    kept = flowhooks.Batch(clean=batch.clean, condition=batch.condition, mask=mask)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [LAYERSYNC, {"type": "mask_reducer"}]}) as session:
        result = session.evaluate(kept).metrics
        assert float(result["crepa_weight"]) == 0.5
        assert float(result["alignment_loss"]) == pytest.approx(0.5 * float(result["crepa_loss"]))
        assert float(result["crepa_alignment_score"]) == pytest.approx(1 - float(result["crepa_loss"]), abs=1e-6)
        streams = learn_streams(model)
        with outputs_of(model, *streams.names) as seen:
            again = session.evaluate(kept).metrics["crepa_loss"]
        h, z = (seen[name][0][-1] for name in streams.names)
        assert float(again) == pytest.approx(float((1 - F.cosine_similarity(h[0], z[0], dim=-1)).mean()), rel=1e-4)


def test_held_out_data_is_weighed_as_the_step_before():
    model = learnt("sd3")
    batch = pairs(model)
    with flowhooks.attach(model, document({**LAYERSYNC, "warmup_steps": 4})) as session:
        assert "crepa_loss" not in session.step(batch).metrics
        session.step(batch)
        session.step(batch)
        assert float(session.evaluate(batch).metrics["crepa_weight"]) == 0.25
        state = session.state_dict()
    with flowhooks.attach(model, document({**LAYERSYNC, "warmup_steps": 4})) as session:
        session.load_state_dict(state)
        assert float(session.evaluate(batch).metrics["crepa_weight"]) == 0.25


def test_the_projector_is_in_no_exported_file(tmp_path):
    model = learnt("sd3")
    with trained(model, {**LAYERSYNC, **PROJECTED}) as session:
        assert any(name.startswith("feature_alignment.projector.") for name in session.parameters())
        session.adapter.save(tmp_path, {})
        assert save_modules(tmp_path, session.assembly, model, {}) is None
    assert not (tmp_path / MODULES).exists()
    tensors, _ = read_tensors(tmp_path / "pytorch_lora_weights.safetensors")
    assert tensors and not any("projector" in key for key in tensors)


# A vision model as the teacher.


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> Path:
    """A tiny one: a class token and patches of 14 pixels, 4 x 4 of them by its config, 3 x 3 by its processor's."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    told = {
        "crop_size": {"height": 42, "width": 42},
        "size": {"shortest_edge": 50},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


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
    frames, rows, columns = streams.grid(model.layout_of(batch.clean).vae_shape)
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
    from flowhooks.hooks.vision_encoder import VisionEncoder

    for file in dinov2.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert VisionEncoder(str(tmp_path), torch.device("cpu")).grid == (4, 4)
    assert VisionEncoder(str(dinov2), torch.device("cpu")).grid == (3, 3)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_index": 2}, "`block_index` is 2, but the network has 2 blocks, 0 to 1"),
        ({"teacher_block_index": 7}, "`teacher_block_index` is 7"),
        ({"block_index": 1}, "`teacher_block_index` must be deeper"),
        ({"block_index": "blocks.0"}, "`block_index` is 'blocks.0'.*transformer_blocks.0 to transformer_blocks.1"),
    ],
)
def test_blocks_that_cannot_be_used(changes, message):
    model = learnt("sd3")
    before = [len(m._forward_hooks) for m in model.transformer.modules()]
    with pytest.raises(ModelError, match=message), flowhooks.attach(model, document({**LAYERSYNC, **changes})):
        pass
    assert before == [len(m._forward_hooks) for m in model.transformer.modules()]


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
    model.pipe.vae = None
    with pytest.raises(ModelError, match="no `vae`"), flowhooks.attach(model, document(external(dinov2))):
        pass


def test_a_base_that_is_trained_is_no_reference():
    block = {**LAYERSYNC, "source": "backbone"}
    whole = document(block, adapter=None, training={"trainable": "transformer"})
    with pytest.raises(ConfigError, match="needs 'role:reference'"), flowhooks.attach(learnt("sd3"), whole):
        pass


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"source": "self_flow"}, "source"),
        ({"weight": -1.0}, "weight"),
        ({"scheduler": "linear"}, "decay_steps"),
        ({"scheduler": "sine"}, "scheduler"),
        ({"similarity_threshold": 0.0}, "similarity_threshold"),
        ({"projector_depth": -1}, "projector_depth"),
        ({"adjacent_tau": 0.0}, "adjacent_tau"),
    ],
)
def test_bad_options_are_refused(options, name):
    block = {**LAYERSYNC, **options}
    written = {key: value for key, value in block.items() if value is not None}
    with pytest.raises(ConfigError, match=name):
        resolve_run(document(written), Path("run.json"))
    with pytest.raises(ValueError, match=f"`{name}`"):
        FeatureAlignment(**{key: value for key, value in block.items() if key != "type"})


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ({"source": "external", "block_index": 0}, "encoder"),
        ({"source": "backbone", "block_index": 0}, "teacher_block_index"),
        ({"block_index": 0}, "teacher_block_index"),
        ({"weight": 0.2, "teacher_block_index": 1}, "block_index"),
    ],
)
def test_a_teacher_that_nobody_named(block, name):
    with pytest.raises(ConfigError, match=rf"hooks\[0\].{name}: is missing"):
        resolve_run(document({"type": "feature_alignment", **block}), Path("run.json"))
    with (
        pytest.raises(ModelError, match=f"`{name}` is missing"),
        flowhooks.attach(learnt("sd3"), [FeatureAlignment(**block)], adapter={"rank": 2}),
    ):
        pass


def test_one_alignment_a_run():
    twice = {"adapter": {"rank": 2}, "hooks": [LAYERSYNC, {**LAYERSYNC, "source": "backbone"}]}
    with pytest.raises(ConfigError, match="alignment_loss"), flowhooks.attach(learnt("sd3"), twice):
        pass


def test_a_weight_of_zero_attaches_nothing():
    model = learnt("sd3")
    with flowhooks.attach(model, document({**LAYERSYNC, **PROJECTED, "weight": 0})) as session:
        assert not any(key.startswith("feature_alignment") for key in session.parameters())
        assert "alignment_loss" not in session.step(pairs(model)).metrics

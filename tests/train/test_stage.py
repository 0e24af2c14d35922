"""Which components are on the device at which moment, and which are in memory at all.

The device of these tests is ``cpu:0``, and the host ``cpu``: torch computes on both alike, and every move is seen.
"""

from __future__ import annotations

import gc
import json
import weakref
from contextlib import nullcontext

import pytest
import torch
from PIL import Image, ImageChops

import flowhooks
from flowhooks.cli import main
from flowhooks.errors import ModelError
from flowhooks.pipeline import load_pipeline
from flowhooks.probe import probe
from flowhooks.probe.offloading import BlockOffload
from flowhooks.probe.runs import find_networks
from flowhooks.stage import ENCODERS, VAE, Stage
from flowhooks.train import setup, train
from flowhooks.train.setup import prepared
from tests.families import PIPELINES, learnt, tiny
from tests.families.checks import pairs
from tests.train.runs import document, weights

DEVICE = torch.device("cpu", 0)
LOOK = {"prompts": ["a photo of one", "two"], "num_inference_steps": 1, "height": 16, "width": 16, "every_steps": 1}
DRAWN = {"data": None, "hooks": [], "validation": {"height": 16, "width": 16}}
GRPO = {
    "prompts": ["one", "two"],
    "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
    "group_size": 2,
    "num_inference_steps": 2,
    "visits": 1,
}


def storages(part):
    """Where the weights of a component lie."""
    return list({each._cdata: each for each in (p.untyped_storage() for p in part.parameters())}.values())


class Watcher:
    """Follows every component that moves, and every one that computes, on its own.

    ``moments`` are the sets of components that were on the device after a move, and ``held`` their bytes; ``computed``
    has, for each one that computed, those that were there then; ``dropped`` where the weights of text encoders lay.
    """

    def __init__(self):
        self.names, self.here, self.moments, self.computed, self.text = {}, set(), [], [], []
        self.bytes, self.held, self.dropped = {}, [], []

    def watch(self, pipe):
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                self.names[part] = name
                self.bytes[name] = sum(each.nbytes() for each in storages(part))
                # A layer, since the whole is also called where something else answers in its place.
                for layer in part.children():
                    layer.register_forward_hook(
                        lambda *_, name=name: self.computed.append((name, frozenset(self.here)))
                    )
                if name.startswith("text_encoder"):
                    self.text += [weakref.ref(each) for each in part.parameters()]
        return pipe

    def moved(self, part, device):
        if part in self.names:
            (self.here.add if device == DEVICE else self.here.discard)(self.names[part])
            self.moments.append(frozenset(self.here))
            self.held.append(sum(self.bytes[name] for name in self.here))

    def dropping(self, stage):
        for name, part in stage.parts[ENCODERS].items():
            if name.startswith("text_encoder"):
                self.dropped += [(weakref.ref(each), each.nbytes()) for each in storages(part)]

    def bytes_of(self, kind):
        return sum(number for name, number in self.bytes.items() if name.startswith(kind))

    def together(self):
        """The kinds of components that ever were on the device together."""
        return {
            frozenset("text" if name.startswith("text_encoder") else name for name in each) for each in self.moments
        }


def followed(monkeypatch):
    """What follows every module that moves from here on."""
    watcher = Watcher()
    to = torch.nn.Module.to

    def watched(module, *args, **kwargs):
        if args and isinstance(args[0], (str, torch.device)):
            watcher.moved(module, torch.device(args[0]))
        return to(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    return watcher


@pytest.fixture
def watcher(monkeypatch):
    watcher = followed(monkeypatch)
    monkeypatch.setattr(setup, "load_pipeline", lambda section: watcher.watch(load_pipeline(section)))
    monkeypatch.setattr(setup, "Stage", lambda pipe, device: Stage(pipe, DEVICE))
    drop = Stage.drop_text_encoders
    monkeypatch.setattr(Stage, "drop_text_encoders", lambda stage: (watcher.dropping(stage), drop(stage))[1])
    return watcher


ALONE = {frozenset(), frozenset({"text"}), frozenset({VAE}), frozenset({"transformer"})}


def test_text_encoders_vae_and_network_are_never_on_the_device_together(new_run, watcher, tmp_path):
    run = new_run(cache_dir=str(tmp_path / "cache"), adapter={"rank": 2})
    with prepared(run, None, False) as job:
        assert watcher.here == {"transformer"}
        gc.collect()
        assert watcher.text and not [each for each in watcher.text if each() is not None]
        # Their bytes, not only their names: whatever else used these storages has let them go.
        assert sum(number for _, number in watcher.dropped) == watcher.bytes_of("text_encoder") > 0
        assert not [storage for storage, _ in watcher.dropped if storage() is not None]
        until = len(watcher.computed)
        next(job.computed(next(job.batches()), log=True)).loss.backward()
        assert set(watcher.computed[until:]) == {("transformer", frozenset({"transformer"}))}
    assert watcher.together() == ALONE
    phases = [watcher.bytes_of(each) for each in ("transformer", VAE, "text_encoder")]
    assert max(watcher.held) == max(phases) < sum(phases)
    assert {name for name, _ in watcher.computed} == {"text_encoder", "text_encoder_2", VAE, "transformer"}
    assert all(name in there for name, there in watcher.computed)


def test_validation_prompts_are_encoded_once_and_draw_the_same_images(new_run, watcher):
    once = {"validation": LOOK, "training": {"max_train_steps": 1}}
    dropped = train(new_run("dropped", **once), progress=False).output_dir
    # Only while the images are decoded, once the network is done.
    assert watcher.together() == ALONE | {frozenset({"transformer", VAE})}
    kept = train(new_run("kept", **once, model={"keep_text_encoders": True}), progress=False).output_dir
    for step in (0, 1):
        a, b = (Image.open(folder / "validation" / f"step_{step:06d}.png") for folder in (dropped, kept))
        assert ImageChops.difference(a, b).getbbox() is None


def test_text_encoders_that_are_kept_push_the_network_off_and_it_returns(new_run, watcher):
    run = new_run(model={"keep_text_encoders": True})
    with prepared(run, None, False) as job:
        assert all(each() is not None for each in watcher.text)
        since = len(watcher.moments)
        job.session.model.encode_prompts(["nobody", "knows", "these"])
        assert watcher.moments[since:][-1] == {"transformer"}
        moves = [each for each in watcher.moments[since:] if "transformer" in each]
        assert len(moves) == 1, "the network returns once, after the last prompt"
    assert watcher.together() == ALONE


def test_blocks_stay_on_the_host_when_their_network_comes_and_goes(new_run, watcher, monkeypatch):
    """The network leaves for prompts that are encoded late, draws images, and trains to the same weights."""
    asked, moved, made = {"keep_text_encoders": True, "gradient_checkpointing": True}, set(), []
    to, init = torch.nn.Module.to, BlockOffload.__init__

    def followed(module, *args, **kwargs):
        moved.update(id(each) for each in module.parameters())
        return to(module, *args, **kwargs)

    def noted(offload, *args, **kwargs):
        init(offload, *args, **kwargs)
        made.append(offload)

    monkeypatch.setattr(torch.nn.Module, "to", followed)
    monkeypatch.setattr(BlockOffload, "__init__", noted)
    outputs = []
    for offload in ("none", "blocks"):
        moved.clear()
        run = new_run(offload, model={**asked, "offload": offload}, validation=LOOK, training={"max_train_steps": 2})
        with prepared(run, None, False) as job:
            assert watcher.here == {"transformer"}
            job.session.model.encode_prompts(["nobody knows this"])
            assert watcher.here == {"transformer"}
            network = job.session.model.transformer
            assert moved & {id(each) for each in network.parameters()}
        outputs.append(train(run, progress=False).output_dir)
    found = [weights(each / "checkpoint-2") for each in outputs]
    assert all(torch.equal(each, found[1][name]) for name, each in found[0].items())
    # One in each of the two pipelines.
    assert len(made) == 2
    for offload in made:
        assert offload.blocks == (2, 2) and not moved & {id(each) for each in offload.weights}
        assert all(each.device.type == "cpu" for each in offload.network.parameters())
    images = (each / "validation" / "step_000002.png" for each in outputs)
    assert ImageChops.difference(*map(Image.open, images)).getbbox() is None


def test_a_dropped_text_encoder_that_is_asked_says_what_to_set(new_run):
    with prepared(new_run(), None, False) as job, pytest.raises(ModelError, match="`model.keep_text_encoders` to true"):
        job.session.model.encode_prompts(["nobody knows this"])


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"keep_text_encoders": True}}, "`model.keep_text_encoders` is true"),
        ({"adapter": None, "training": {"trainable": "transformer"}, "hooks": []}, "the whole pipeline is written"),
        ({"hooks": [{"type": "tests.train.toys:Learning"}]}, "is code of your own"),
        (
            {"method": {"flow_grpo": {k: v for k, v in GRPO.items() if k != "prompts"}}, "hooks": []},
            "captions of the data",
        ),
    ],
)
def test_what_still_needs_the_text_encoders_keeps_them_and_says_so(
    new_run, model, data, watcher, sections, reason, tmp_path, capsys
):
    with prepared(new_run(**sections), None, False):
        gc.collect()
        assert watcher.text and all(each() is not None for each in watcher.text)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document(model, data, tmp_path / "told", **sections)), encoding="utf-8")
    for command in ("check", "explain"):
        assert main([command, str(file), "--allow-imports"]) == 0
        assert "stay in the host's memory: " in (told := capsys.readouterr().out) and reason in told


def test_check_and_explain_say_that_they_leave(model, data, tmp_path, capsys):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document(model, data, tmp_path / "told")), encoding="utf-8")
    for command in ("check", "explain"):
        assert main([command, str(file)]) == 0
        assert "encoded once and kept in the cache; the text encoders then leave memory" in capsys.readouterr().out


def test_a_reward_has_the_vae_beside_the_network_while_it_decodes(new_run, watcher):
    with prepared(new_run(**DRAWN, method={"flow_grpo": GRPO}), None, False) as job:
        gc.collect()
        assert not [each for each in watcher.text if each() is not None]
        since = len(watcher.moments), len(watcher.computed)
        for _ in range(2):
            for result in job.computed(None, log=True):
                result.loss.backward()
        assert set(watcher.moments[since[0] :]) == {frozenset({"transformer", VAE}), frozenset({"transformer"})}
        computed = watcher.computed[since[1] :]
        assert {there for name, there in computed if name == VAE} == {frozenset({"transformer", VAE})}
        assert {there for name, there in computed if name == "transformer"} == {frozenset({"transformer"})}


def traces(pipe):
    """The attributes and hooks of a pipeline and of every layer of its components."""
    found = {"pipeline": (sorted(vars(pipe)), 0)}
    for name, part in pipe.components.items():
        for inner, layer in part.named_modules() if isinstance(part, torch.nn.Module) else ():
            found[f"{name}.{inner}"] = sorted(vars(layer)), len(layer._forward_pre_hooks)
    return found


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan", "wan-two-experts"])
def test_a_pipeline_is_learnt_in_turns_and_left_as_it_was(name, watcher):
    pipe, arguments = watcher.watch(tiny(name)), PIPELINES[name].arguments
    plain = probe(pipe, arguments=arguments)
    noisy, sigma = torch.randn(1, *plain.sample_shape), torch.tensor([0.95])
    with torch.no_grad():
        mine = plain.predict(noisy, sigma, plain.encode_prompts(["one"])), plain.decode(noisy, **plain.size)
    watcher.computed.clear()
    before = traces(pipe)
    stage = Stage(pipe, DEVICE)
    with stage.open():
        model = probe(pipe, arguments=arguments)
        with torch.no_grad():
            theirs = model.predict(noisy, sigma, model.encode_prompts(["one"])), model.decode(noisy, **model.size)
        assert all(map(torch.equal, mine, theirs))
        assert model.device == DEVICE
        stage.settle(model.component)
        assert watcher.here == {model.component}
    assert [name for name, trace in traces(pipe).items() if trace != before[name]] == []
    assert watcher.together() <= {*ALONE, *(frozenset({each}) for each in find_networks(pipe))}
    assert all(each in there for each, there in watcher.computed)


@pytest.mark.parametrize("adapter", [{"type": "lora"}, {"type": "lycoris", "algo": "lokr"}])
def test_an_adapter_on_the_stage_trains_alike_and_comes_off_without_a_trace(adapter):
    run = {"adapter": {**adapter, "rank": 2, "alpha": 2}, "hooks": [{"type": "flow_dpo", "norm_type": "mean"}]}
    found = []
    for staged in (False, True):
        model = learnt("sd3")
        stage = Stage(model.pipe, DEVICE)
        with stage.open() if staged else nullcontext():
            if staged:
                stage.settle(model.component)
            before = traces(model.pipe)
            torch.manual_seed(0)
            with flowhooks.attach(model, run, seed=3) as session:
                session.step(pairs(model)).loss.backward()
                found.append({name: each.grad for name, each in session.parameters().items()})
            assert [name for name, trace in traces(model.pipe).items() if trace != before[name]] == []
    assert found[0].keys() == found[1].keys() and all(
        torch.equal(each, found[1][key]) for key, each in found[0].items()
    )


def test_a_prompt_that_is_only_looked_at_brings_no_network():
    pipe = tiny("sd3")
    stage = Stage(pipe, DEVICE)
    with stage.open():
        model = probe(pipe, arguments=PIPELINES["sd3"].arguments)
        stage.come(VAE)
        model.encode_prompts(["one", "two"])
        assert stage.here == {ENCODERS}

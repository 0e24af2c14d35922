"""Encoded prompts on disk: the same to the bit as in memory, shared by builders, made again when damaged or changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import copy

import pytest
import torch

from flowhooks.data import PromptCache, prompts
from flowhooks.data.store import Store
from flowhooks.errors import DataError, FlowhooksWarning
from flowhooks.probe.values import tensors_in
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.prompts import Prompt
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.steps import Sampler
from tests.families import learnt
from tests.sampling.test_rollout import GUIDED

TEXTS = ["one", "a photo of two"]


@pytest.fixture
def computed():
    """A function that counts the calls of a pipeline's text encoders in a list."""
    handles = []

    def count(pipe):
        calls = []
        for name, part in pipe.components.items():
            if name.startswith("text_encoder") and part is not None:
                handles.append(part.register_forward_hook(lambda *_: calls.append(1)))
        return calls

    yield count
    for handle in handles:
        handle.remove()


def sampled(model, keeper, arguments, texts=TEXTS):
    """The last states of the prompts, each sampled alone."""
    player = prepared(model, keeper, arguments, texts)
    return [player.draw([text], [5], sampler_of(arguments), []).final for text in texts]


def prepared(model, keeper, arguments, texts=TEXTS):
    """What samples these prompts, all of them encoded."""
    player = PipelineSampler(model, EncodedPrompts(model.pipe, keeper))
    player.prepare([Prompt(text) for text in texts], sampler_of(arguments))
    return player


def sampler_of(arguments):
    return Sampler(steps=2, arguments=arguments)


def cached(model, folder, **more):
    return PromptCache(model, folder, progress=False, **more)


@pytest.mark.parametrize("name", ["sd3", "qwen-image", "z-image"])
def test_samples_are_those_of_prompts_in_memory_to_the_bit(name, tmp_path, computed):
    model = learnt(name)
    calls = computed(model.pipe)
    expected = sampled(model, None, GUIDED[name])
    number = len(calls)
    calls.clear()
    first = sampled(model, cached(model, tmp_path), GUIDED[name])
    assert len(calls) == number, "each prompt is encoded once, a negative one that they share too"
    calls.clear()
    second = sampled(model, cached(model, tmp_path), GUIDED[name])
    assert number and not calls
    for found in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_an_embedding_depends_on_makes_it_anew(tmp_path, computed):
    model = learnt("sd3")
    calls = computed(model.pipe)

    def asked(model=model, texts=TEXTS, arguments=None):
        calls.clear()
        prepared(model, cached(model, tmp_path), arguments or GUIDED["sd3"], texts)
        return len(calls)

    both = asked()
    assert both and asked() == 0 and asked(texts=TEXTS[::-1]) == 0
    assert 0 < asked(texts=["one", "another"]) < both
    assert asked(arguments={**GUIDED["sd3"], "negative_prompt": "b"})
    longer = copy(model)
    longer.arguments = {"max_sequence_length": 5}
    assert asked(longer) == both and asked(longer) == 0
    weight = next(model.pipe.text_encoder.parameters()).data
    before = weight.clone()
    weight += 0.01
    assert asked() == both
    weight.copy_(before)
    assert asked() == 0


def test_a_second_set_of_arguments_asks_only_for_what_it_adds(tmp_path, computed):
    model = learnt("flux")
    calls = computed(model.pipe)
    player = prepared(model, cached(model, tmp_path), {"guidance_scale": 3.5})
    number = len(calls)
    player.prepare([Prompt(text) for text in TEXTS], sampler_of({"guidance_scale": 3.5}), {"guidance_scale": 1.0})
    assert len(calls) == number > 0, "the scale is embedded, so the same embeddings are kept under both"


def test_only_the_latest_prompts_are_in_memory(tmp_path, monkeypatch):
    model = learnt("sd3")
    texts = [f"number {i}" for i in range(35)]
    monkeypatch.setattr(prompts, "IN_MEMORY_BYTES", 0)
    player = prepared(model, cached(model, tmp_path), GUIDED["sd3"], texts)
    assert len(list((tmp_path / "prompts").iterdir())) == 2
    alone = prepared(model, None, GUIDED["sd3"], texts[:1]).encoded.bytes
    for some in (texts[:1], texts[1:3], texts[34:]):
        player.draw(some, range(len(some)), sampler_of(GUIDED["sd3"]), [])
        assert player.encoded.bytes == len(some) * alone > 0


@pytest.mark.parametrize("later", [False, True], ids=["at the start", "during the run"])
def test_a_damaged_shard_is_made_again(tmp_path, monkeypatch, later):
    model = learnt("sd3")
    expected = sampled(model, cached(model, tmp_path), GUIDED["sd3"])
    (path,) = (tmp_path / "prompts").iterdir()
    data = path.read_bytes()
    flipped = data[:-7] + bytes([data[-7] ^ 2]) + data[-6:]
    if later:
        monkeypatch.setattr(prompts, "IN_MEMORY_BYTES", 0)
        player = prepared(model, cached(model, tmp_path), GUIDED["sd3"])
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="was damaged during the run .*`--resume latest`"):
            player.draw(TEXTS, [5, 6], sampler_of(GUIDED["sd3"]), [])
        assert not path.exists()
        found = sampled(model, cached(model, tmp_path), GUIDED["sd3"])
    else:
        path.write_bytes(flipped)
        with pytest.warns(FlowhooksWarning, match=f"{path} is damaged .*; it is made again"):
            found = sampled(model, cached(model, tmp_path), GUIDED["sd3"])
    assert path.read_bytes() == data
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_whole_cache_is_only_read(tmp_path, monkeypatch):
    model = learnt("sd3")
    prepared(model, cached(model, tmp_path), GUIDED["sd3"])
    for name in ("claim", "sweep", "write"):
        monkeypatch.setattr(Store, name, None)
    sampled(model, cached(model, tmp_path), GUIDED["sd3"])


def test_a_rebuilt_cache_holds_the_same(tmp_path, computed):
    model = learnt("sd3")
    calls = computed(model.pipe)
    prepared(model, cached(model, tmp_path), GUIDED["sd3"])
    before = {path: path.read_bytes() for path in (tmp_path / "prompts").iterdir()}
    number = len(calls)
    prepared(model, cached(model, tmp_path, rebuild=True), GUIDED["sd3"])
    assert len(calls) == 2 * number > 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_builders_share_the_work(tmp_path):
    """Each prompt is encoded by one of two that build at once, and read by both."""
    model = learnt("sd3")
    texts = [f"number {i}" for i in range(70)]
    made: list[str] = []

    def encode(text):
        made.append(text)
        return {"call": torch.full((1, 4), float(text.split()[1]))}

    def build(_):
        read = cached(model, tmp_path).find(texts, {}, encode)
        return torch.cat([tensors_in(read(text))[0] for text in texts])

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(build, range(2))
    assert sorted(made) == sorted(texts)
    assert torch.equal(one, two) and one[:, 0].tolist() == list(range(70))


def test_a_prompt_that_becomes_nan_is_named(tmp_path):
    model = learnt("sd3")
    with pytest.raises(DataError, match="the text encoders turn the prompt 'one' into NaN or infinity"):
        cached(model, tmp_path).find(["one"], {}, lambda _: {"call": torch.tensor([float("nan")])})


@pytest.mark.parametrize("output", [{"a set"}, None], ids=["output", "argument"])
def test_what_cannot_be_on_disk_stays_in_memory(tmp_path, output):
    class Own:
        _execution_device = torch.device("cpu")

        def encode_prompt(self, prompt, style):
            calls.append(prompt)
            return output

    calls: list[str] = []
    pipe, style = Own(), object()
    encoded = EncodedPrompts(pipe, cached(learnt("sd3"), tmp_path))

    def ask(prompt):
        with encoded.used([prompt]):
            assert pipe.encode_prompt(prompt, style) == output

    encoded.prepare(["one"], {}, ask)
    number = len(calls)
    ask("one")
    assert number and len(calls) == number and not list(tmp_path.glob("prompts/*"))

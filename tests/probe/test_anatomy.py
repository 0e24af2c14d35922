"""What is found inside the networks of every family."""

from __future__ import annotations

import math

import pytest

from flowhooks.probe.anatomy import learn_anatomy
from tests.families import learnt
from tests.probe.test_families import LEARNT

#: Name -> (where text is, how many tokens), where they are not those of an argument.
TEXT = {
    "ernie-image": ("after", 2),  # its blocks keep tokens first, samples second
    "z-image": ("after", 32),  # pictures and text are padded to 32 tokens
    "lumina2": ("before", 27),
    "krea2": ("before", 16),
    "ideogram4": ("before", 24),
    "aura-flow": ("apart", 16),  # 8 of text, 8 registers
    "sd3": ("apart", 16),
}


@pytest.mark.parametrize("name", LEARNT)
def test_tokens_hold_the_sample(name):
    """Each token holds a whole patch of every channel."""
    model = learnt(name)
    anatomy = learn_anatomy(model)
    numbers, rest = divmod(math.prod(model.sample_shape), anatomy.tokens)
    channels = model.layout(**model.size).vae_shape[0]
    assert rest == 0 and numbers % channels == 0
    patch = numbers // channels
    assert math.isqrt(patch) ** 2 == patch, "patches are square, one frame deep, in all of these"
    assert anatomy.text_tokens[1] > 0 and anatomy.blocks and anatomy.time_embedder
    if name in TEXT:
        assert anatomy.text_tokens == TEXT[name]


def test_a_list_of_projections_is_no_list_of_blocks():
    assert sorted(learn_anatomy(learnt("bria-fibo")).blocks) == [
        "single_transformer_blocks",
        "transformer_blocks",
    ]

"""A LyCORIS file acts as strongly as the library's own loader has it act, whatever its alpha, rank and scalars."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import load_file, save_file

from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.merge import merge_adapter
from flowhooks.adapters.names import LYCORIS_FILE
from flowhooks.errors import AdapterError
from tests.adapters.helpers import predict, section, transformer
from tests.adapters.strength_files import LAYERS

RANK, ALPHA = 2, 6.0
#: Name -> options of the library's network, and of its layers one by one.
KINDS = {
    **{algo: ({"algo": algo}, {}) for algo in ("locon", "loha", "lokr")},
    **{f"{algo}, scalar": ({"algo": algo, "use_scalar": True}, {}) for algo in ("locon", "loha", "lokr")},
    **{
        f"{algo}, rank-stabilised": ({"algo": algo}, dict.fromkeys(LAYERS, {"algo": algo, "rs_lora": True}))
        for algo in ("locon", "loha", "lokr")
    },
    "layers of their own": ({"algo": "locon"}, {LAYERS[0]: {"algo": "locon", "dim": 3, "alpha": 0.5}}),
    "alphas of their own": ({"algo": "locon"}, {LAYERS[0]: {"algo": "locon", "alpha": 0.5}}),
    # Its scale is 1 whatever alpha says.
    "full factors": ({"algo": "lokr", "full_matrix": True}, {}),
}
#: What an adapter section cannot say: refused as a start, in these words.
NO_START = {
    "layers of their own": "does not fit",
    "alphas of their own": r"alpha` is 0\.5, but this adapter was built with 6",
    "full factors": "does not fit",
}


@pytest.fixture
def preset():
    """LyCORIS keeps what it selects on the class."""
    found = {name: getattr(LycorisNetwork, name) for name in dir(LycorisNetwork) if name.isupper()}
    yield LycorisNetwork.apply_preset
    for name, value in found.items():
        setattr(LycorisNetwork, name, value)


def trained(kind, file, preset):
    """The model with a network by the library on `LAYERS`, its values random, saved as the library saves."""
    options, layers = KINDS[kind]
    names = {re.escape(layer): layers.get(layer, {}) for layer in LAYERS}
    own = {pattern: layer for pattern, layer in names.items() if layer}
    preset({"target_module": [], "target_name": list(names), "name_algo_map": own})
    model = transformer()
    network = create_lycoris(model, 1.0, linear_dim=RANK, linear_alpha=ALPHA, **options)
    network.apply_to()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 + 0.3 * torch.randn(parameter.shape, generator=generator))
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in network.state_dict().items()}, file)
    # The model's layers call a network that nobody else holds.
    model.network = network
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_as_the_library_trained_it(kind, preset, tmp_path):
    file = tmp_path / LYCORIS_FILE
    expected = predict(trained(kind, file, preset))
    assert not torch.allclose(expected, predict(transformer()), atol=1e-2)
    alphas = {float(value) for key, value in load_file(file).items() if key.endswith(".alpha")}
    if kind.endswith("rank-stabilised"):
        assert list(alphas) == [pytest.approx(ALPHA * math.sqrt(RANK))]
    ways = {"load_adapter": load_adapter}
    start = partial(start_from, algo=KINDS[kind][0]["algo"], alpha=max(alphas))
    if kind in NO_START:
        with pytest.raises(AdapterError, match=NO_START[kind]):
            start(transformer(), file)
    else:
        ways["init_from"] = start
    for way, load in ways.items():
        model = transformer()
        load(model, file)
        torch.testing.assert_close(predict(model), expected, rtol=1e-4, atol=1e-4, msg=way)
    model = transformer()
    with FrozenAdapter(model, file).alone():
        torch.testing.assert_close(predict(model), expected, rtol=1e-4, atol=1e-4)
    merged = transformer()
    merge_adapter(load_adapter(merged, file))
    torch.testing.assert_close(predict(merged), expected, rtol=1e-4, atol=1e-4)


def start_from(model, file, *, algo, alpha):
    options = {"rank": RANK, "alpha": alpha, "target_modules": list(LAYERS), "init_from": str(file)}
    return build_adapter(model, section(f"lycoris-{algo}", **options))

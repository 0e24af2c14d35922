"""Which layers are found, and what is said when none are."""

from __future__ import annotations

import pytest
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, SanaTransformer2DModel, WanTransformer3DModel
from torch import nn

from flowhooks.adapters import build_adapter
from flowhooks.adapters.targets import find_targets
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, section, transformer


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 4, 8),
    )


def qwen() -> nn.Module:
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )


def wan() -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1
    )


def sana() -> nn.Module:
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )


def test_sd3_attention_projections():
    first = {f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")}
    first |= {f"transformer_blocks.0.attn.add_{name}_proj" for name in "qkv"}
    first |= {f"transformer_blocks.0.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    last = {f"transformer_blocks.1.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
    # The last block's text query is thrown away by the model: it would never get a gradient.
    last |= {f"transformer_blocks.1.attn.add_{name}_proj" for name in "kv"}
    assert set(find_targets(transformer(), None)) == first | last


@pytest.mark.parametrize("build", [flux, qwen, wan, sana])
def test_other_families_need_no_names(build):
    targets = find_targets(build(), None)
    assert {"to_q", "to_k", "to_v"} <= {name.rsplit(".", 1)[-1] for name in targets}
    assert all("attn" in name for name in targets)
    assert any(name.endswith("to_out.0") for name in targets)


def test_a_list_is_a_suffix_match():
    assert find_targets(transformer(), ["attn2.to_q", "transformer_blocks.1.ff.net.2"]) == (
        "transformer_blocks.0.attn2.to_q",
        "transformer_blocks.1.ff.net.2",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_adapts_exactly_the_targets(kind):
    adapter = build_adapter(transformer(), section(kind))
    assert adapter.targets == find_targets(transformer(), None)
    lycoris_names = {f"lycoris_{target}".replace(".", "_") for target in adapter.targets}
    groups = {
        key.split(".")[0]
        if kind.startswith("lycoris")
        else key.rsplit(".lo" if "lora_" in key or "lokr_" in key else ".ha", 1)[0]
        for key in adapter.state_dict()
    }
    assert groups == (lycoris_names if kind.startswith("lycoris") else set(adapter.targets))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_ends_another_is_not_confused_with_it(kind):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = nn.Linear(8, 8)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()
            self.outer = nn.ModuleDict({"inner": Inner()})

    model = Outer()
    adapter = build_adapter(model, section(kind))
    assert adapter.targets == ("inner.to_q", "outer.inner.to_q")
    adapter.detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["to_qq"], "'to_qq'.*layers named.*to_q,"),
        (["to_q", "typo"], "'typo'"),
        ([], "empty list"),
        (["attn"], "`transformer_blocks.0.attn`, a Attention"),
    ],
)
def test_no_match_names_what_exists(kind, names, message):
    with pytest.raises(AdapterError, match=message):
        build_adapter(transformer(), section(kind, target_modules=names))


def test_a_model_without_attention():
    with pytest.raises(AdapterError, match="layers named 0, 1"):
        build_adapter(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), section("lora"))

"""Wan's pipelines that begin with a picture: 2.1 sees it, 2.2 has two experts, 2.2 5B a time for each token."""

from __future__ import annotations

from typing import Any

from flowhooks.testing.wan import wan_pipeline, wan_transformer

WIDTH = 16


def wan21_i2v() -> Any:
    """A WanImageToVideoPipeline of 2.1: the picture in the channels, and as CLIP sees it; a last one where given."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    eye = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return _pipeline(
        transformer=_channels(image_dim=WIDTH), image_encoder=CLIPVisionModel(config).eval(), image_processor=eye
    )


def wan_flf2v() -> Any:
    """The same for a first and a last picture: its network tells the two apart by their place."""
    pipe = wan21_i2v()
    pipe.transformer = _channels(image_dim=WIDTH, pos_embed_seq_len=2 * 5)
    return pipe


def wan22_i2v() -> Any:
    """A WanImageToVideoPipeline of 2.2's A14B: two experts, the picture in the channels."""
    return _pipeline(transformer=_channels(), transformer_2=_channels(), boundary_ratio=0.875)


def wan22_5b_i2v() -> Any:
    """A WanImageToVideoPipeline of 2.2's 5B: the picture in place of the first frame, whose time is 0."""
    return _pipeline(transformer=wan_transformer(), expand_timesteps=True)


def chronoedit() -> Any:
    """A ChronoEditPipeline, which edits a picture as a video of two latent frames from it; built like Wan 2.1's."""
    pipe = wan21_i2v()
    parts = {"image_encoder": pipe.image_encoder, "image_processor": pipe.image_processor}
    network = _channels(name="ChronoEditTransformer3DModel", image_dim=WIDTH)
    return _pipeline("ChronoEditPipeline", transformer=network, **parts)


def skyreels_v2_i2v() -> Any:
    """A SkyReelsV2ImageToVideoPipeline, which is built like Wan 2.1's."""
    pipe = wan21_i2v()
    parts = {"image_encoder": pipe.image_encoder, "image_processor": pipe.image_processor}
    network = _channels(name="SkyReelsV2Transformer3DModel", image_dim=WIDTH)
    return _pipeline("SkyReelsV2ImageToVideoPipeline", transformer=network, **parts)


def _pipeline(name: str = "WanImageToVideoPipeline", **parts: Any) -> Any:
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return wan_pipeline(
        getattr(diffusers, name), scheduler, **{"image_encoder": None, "image_processor": None, **parts}
    )


def _channels(**options: Any) -> Any:
    # The sample, four numbers that say which frames are given, and the given picture.
    return wan_transformer(**{"in_channels": 4 + 4 + 4, **options})

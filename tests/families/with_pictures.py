"""Rows of pipelines that can be given pictures, beside those in :mod:`tests.families`."""

from __future__ import annotations

from collections.abc import Mapping

from flowhooks.testing.tiny import Tiny

#: A short prompt template for HunyuanVideo, in which the picture comes after three tokens.
_TURN = "<|start_header_id|>a<|end_header_id|>"
SHORT = {
    "max_sequence_length": 16,
    "prompt_template": {
        "template": f"{_TURN}<image>a<|eot_id|>{_TURN}{{}}<|eot_id|>{_TURN}",
        "crop_start": 9,
        "image_emb_start": 3,
        "image_emb_end": 7,
        "image_emb_len": 4,
    },
}

_QWEN_IMAGE_21 = {"height": 64, "width": 64, "output_resolution": 64}

ROWS: Mapping[str, Tiny] = {
    "qwen-image-21": Tiny("tests.families.qwen_image21:qwen_image21", _QWEN_IMAGE_21),
    "qwen-image-21-edit": Tiny("tests.families.qwen_image21:qwen_image21", _QWEN_IMAGE_21, ("image",)),
    "bria-fibo-edit": Tiny(
        "tests.families.bria:bria_fibo_edit", {"height": 32, "width": 32, "max_sequence_length": 16}, ("image",)
    ),
    "longcat-image-edit": Tiny(
        "tests.families.longcat_image:longcat_image_edit", {"height": 64, "width": 64}, ("image",)
    ),
    "hunyuan-video-i2v": Tiny(
        "tests.families.hunyuan_video:hunyuan_video_i2v",
        {"height": 32, "width": 32, "num_frames": 9, **SHORT},
        ("image",),
    ),
    "hunyuan-video-i2v-replaced": Tiny(
        "tests.families.hunyuan_video:hunyuan_video_i2v_replaced",
        {"height": 32, "width": 32, "num_frames": 9, **SHORT},
        ("image",),
    ),
    "hunyuan-video15-i2v": Tiny(
        "tests.families.hunyuan_video:hunyuan_video15_i2v", {"height": 64, "width": 64, "num_frames": 5}, ("image",)
    ),
    "hunyuan-skyreels-i2v": Tiny(
        "tests.families.hunyuan_video:hunyuan_skyreels_i2v",
        {"height": 32, "width": 32, "num_frames": 5, "true_cfg_scale": 1.0},
        ("image",),
    ),
    "cogview4-control": Tiny(
        "tests.families.cogview4:cogview4_control",
        {"height": 16, "width": 16, "max_sequence_length": 16},
        ("control_image",),
    ),
    "chronoedit": Tiny(
        "tests.families.wan_i2v:chronoedit",
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
        ("image",),
    ),
    "kandinsky5-i2i": Tiny(
        "tests.families.kandinsky5_image:kandinsky5_i2i",
        {"height": 128, "width": 128, "max_sequence_length": 64},
        ("image",),
    ),
    "kandinsky5-i2v": Tiny(
        "tests.families.kandinsky5_video:kandinsky5_i2v", {"height": 32, "width": 32, "num_frames": 17}, ("image",)
    ),
}

#: Rows of pipelines that could be given more than their prompt, and are measured with that alone.
WITHOUT_PICTURES: Mapping[str, Tiny] = {
    "ltx2-in-context": Tiny(
        "tests.families.ltx:ltx2_in_context",
        {
            "height": 32,
            "width": 32,
            "num_frames": 3,
            "max_sequence_length": 16,
            "spatio_temporal_guidance_blocks": [1],
        },
    ),
    "joy-image-edit": Tiny("tests.families.joy_image:joy_image_edit", {"height": 64, "width": 64}),
}

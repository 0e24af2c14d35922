"""Tiny pipelines of every family that the probe is tested on: one file a family, beside those that ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from flowhooks.testing import PIPELINES as SHIPPED
from flowhooks.testing.tiny import Tiny, build
from tests.copies import copier
from tests.families import modular, older, sound, with_pictures

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel

CLASSIC: Mapping[str, Tiny] = {
    **SHIPPED,
    "flux2": Tiny("tests.families.flux2:flux2", {"height": 16, "width": 16, "max_sequence_length": 48}),
    "flux2-klein": Tiny("tests.families.flux2:flux2_klein", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "flux2-klein-edit": Tiny(
        "tests.families.flux2:flux2_klein", {"height": 16, "width": 16, "max_sequence_length": 24}, ("image",)
    ),
    "qwen-image-edit": Tiny("tests.families.qwen_edit:qwen_image_edit", {"height": 16, "width": 16}, ("image",)),
    "qwen-image-edit-plus": Tiny(
        "tests.families.qwen_edit:qwen_image_edit_plus", {"height": 16, "width": 16}, ("image",)
    ),
    **{
        name: Tiny(
            f"tests.families.wan_i2v:{name.replace('-', '_')}",
            {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
            references,
        )
        for name, references in {
            "wan21-i2v": ("image",),
            "wan-flf2v": ("image", "last_image"),
            "wan22-i2v": ("image",),
            "wan22-5b-i2v": ("image",),
        }.items()
    },
    "flux2-edit": Tiny(
        "tests.families.flux2:flux2", {"height": 16, "width": 16, "max_sequence_length": 48}, ("image",)
    ),
    "flux-control": Tiny(
        "tests.families.flux_pictures:flux_control",
        {"height": 16, "width": 16, "max_sequence_length": 8},
        ("control_image",),
    ),
    "flux-fill": Tiny(
        "tests.families.flux_pictures:flux_fill",
        {"height": 16, "width": 16, "max_sequence_length": 8},
        ("image", "mask_image"),
    ),
    **{
        name: Tiny(
            f"tests.families.ltx_pictures:{name.replace('-', '_')}",
            {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
            ("image",),
        )
        for name in ("ltx-i2v", "ltx-condition")
    },
    "ltx2-i2v": Tiny(
        "tests.families.ltx_pictures:ltx2_i2v",
        {
            "height": 32,
            "width": 32,
            "num_frames": 3,
            "max_sequence_length": 16,
            "spatio_temporal_guidance_blocks": [1],
        },
        ("image",),
    ),
    "sana-video-i2v": Tiny(
        "tests.families.sana_video:sana_video_i2v",
        {
            "height": 32,
            "width": 32,
            "frames": 5,
            "max_sequence_length": 16,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        },
        ("image",),
    ),
    "skyreels-v2-i2v": Tiny(
        "tests.families.wan_i2v:skyreels_v2_i2v",
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
        ("image",),
    ),
    "qwen-image": Tiny("tests.families.qwen_image:qwen_image", {"height": 16, "width": 16}),
    "z-image": Tiny("tests.families.z_image:z_image", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "lumina2": Tiny("tests.families.lumina2:lumina2", {"height": 32, "width": 32, "max_sequence_length": 48}),
    "aura-flow": Tiny("tests.families.aura_flow:aura_flow", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "sana": Tiny(
        "tests.families.sana:sana",
        {
            "height": 32,
            "width": 32,
            "max_sequence_length": 8,
            # Its own is a thousand tokens.
            "complex_human_instruction": ["a photo of"],
            "use_resolution_binning": False,
        },
    ),
    "sana-sprint": Tiny(
        "tests.families.sana:sana_sprint",
        {"height": 32, "width": 32, "max_sequence_length": 8, "use_resolution_binning": False},
    ),
    "hunyuan-image": Tiny("tests.families.hunyuan_image:hunyuan_image", {"height": 16, "width": 16}),
    "hunyuan-image-distilled": Tiny(
        "tests.families.hunyuan_image:hunyuan_image_distilled", {"height": 16, "width": 16}
    ),
    "hidream-image": Tiny("tests.families.hidream_image:hidream_image", {"max_sequence_length": 8}),
    "hidream-image-full": Tiny("tests.families.hidream_image:hidream_image_full", {"max_sequence_length": 8}),
    "hidream-image-dev": Tiny("tests.families.hidream_image:hidream_image_dev", {"max_sequence_length": 8}),
    "cogview4": Tiny("tests.families.cogview4:cogview4", {"height": 16, "width": 16, "max_sequence_length": 16}),
    "bria": Tiny("tests.families.bria:bria", {"height": 16, "width": 16, "max_sequence_length": 8}),
    "bria-fibo": Tiny("tests.families.bria:bria_fibo", {"height": 32, "width": 32, "max_sequence_length": 16}),
    "longcat-image": Tiny(
        "tests.families.longcat_image:longcat_image", {"height": 16, "width": 16, "enable_prompt_rewrite": False}
    ),
    "krea2": Tiny("tests.families.krea2:krea2", {"height": 16, "width": 16, "max_sequence_length": 16}),
    "krea2-turbo": Tiny(
        "tests.families.krea2:krea2_turbo",
        {"height": 16, "width": 16, "max_sequence_length": 16, "guidance_scale": 0.0},
    ),
    "ovis-image": Tiny("tests.families.ovis_image:ovis_image", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "lumina": Tiny("tests.families.lumina:lumina", {"height": 32, "width": 32}),
    "ernie-image": Tiny("tests.families.ernie_image:ernie_image", {"height": 16, "width": 16}),
    "ideogram4": Tiny(
        "tests.families.ideogram4:ideogram4",
        {"height": 16, "width": 16, "max_sequence_length": 24, "guidance_scale": 7.0, "guidance_schedule": None},
    ),
    "kandinsky5-image": Tiny(
        "tests.families.kandinsky5_image:kandinsky5_image", {"height": 128, "width": 128, "max_sequence_length": 16}
    ),
    "prx": Tiny(
        "tests.families.prx:prx",
        {"height": 16, "width": 16, "tokenizer_max_length": 16, "use_resolution_binning": False},
    ),
    "prx-pixel": Tiny("tests.families.prx:prx_pixel", {"height": 16, "width": 16, "use_resolution_binning": False}),
    "nucleus-image": Tiny("tests.families.nucleus_image:nucleus_image", {"height": 16, "width": 16}),
    "stable-diffusion-xl": Tiny("tests.families.stable_diffusion:stable_diffusion_xl", {"height": 16, "width": 16}),
    "cosmos2-image": Tiny(
        "tests.families.cosmos:cosmos2_image", {"height": 32, "width": 32, "max_sequence_length": 16}
    ),
    "ltx": Tiny("tests.families.ltx:ltx", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}),
    "ltx2": Tiny(
        "tests.families.ltx:ltx2",
        {
            "height": 32,
            "width": 32,
            "num_frames": 3,
            "max_sequence_length": 16,
            "spatio_temporal_guidance_blocks": [1],
        },
    ),
    "hunyuan-video": Tiny("tests.families.hunyuan_video:hunyuan_video", {"height": 32, "width": 32, "num_frames": 5}),
    "hunyuan-video15": Tiny(
        "tests.families.hunyuan_video:hunyuan_video15", {"height": 32, "width": 32, "num_frames": 5}
    ),
    "mochi": Tiny(
        "tests.families.mochi:mochi", {"height": 32, "width": 32, "num_frames": 7, "max_sequence_length": 16}
    ),
    "sana-video": Tiny(
        "tests.families.sana_video:sana_video",
        {
            "height": 32,
            "width": 32,
            "frames": 5,
            "max_sequence_length": 16,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        },
    ),
    "kandinsky5-video": Tiny(
        "tests.families.kandinsky5_video:kandinsky5_video", {"height": 32, "width": 32, "num_frames": 5}
    ),
    "motif-video": Tiny(
        "tests.families.motif_video:motif_video",
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16},
    ),
    "easyanimate": Tiny(
        "tests.families.easyanimate:easyanimate", {"height": 32, "width": 32, "num_frames": 5, "guidance_scale": 1.0}
    ),
    "anyflow": Tiny(
        "tests.families.anyflow:anyflow", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "anyflow-far": Tiny(
        "tests.families.anyflow:anyflow_far",
        {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "chunk_partition": [1, 1]},
    ),
    "cosmos": Tiny(
        "tests.families.cosmos:cosmos", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    ),
    "cosmos25": Tiny(
        "tests.families.cosmos:cosmos25", {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 128}
    ),
    "cosmos3": Tiny("tests.families.cosmos:cosmos3", {"height": 32, "width": 32, "num_frames": 5}),
    **with_pictures.ROWS,
}


#: Those of :data:`flowhooks.testing.PIPELINES` and of this package that tests run over.
PIPELINES: Mapping[str, Tiny] = CLASSIC
#: What the table of pipelines has beside these. Their networks are those of classic ones.
MODULAR: Mapping[str, Tiny] = modular.rows(CLASSIC)
EVERY: Mapping[str, Tiny] = {**PIPELINES, **MODULAR, **older.ROWS, **sound.ROWS, **with_pictures.WITHOUT_PICTURES}


#: name -> what the pipeline's class sets by itself to suit its release and no argument changes: lengths of texts and
#: sizes of images, which would cost more time than the networks.
SET_BY_THE_CLASS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        ("hunyuan-image", "hunyuan-image-distilled"), {"tokenizer_max_length": 24, "tokenizer_2_max_length": 16}
    ),
    **dict.fromkeys(("hidream-image", "hidream-image-full", "hidream-image-dev"), {"default_sample_size": 32}),
    **dict.fromkeys(
        ("hunyuan-video15", "hunyuan-video15-i2v"),
        {"tokenizer_max_length": 48, "tokenizer_2_max_length": 16, "vision_num_semantic_tokens": 4},
    ),
    "longcat-image-edit": {"tokenizer_max_length": 16},
    # An eighth of the seven sizes that there are.
    **dict.fromkeys(
        ("kandinsky5-image", "kandinsky5-i2i"),
        {"resolutions": [(128, 128), (80, 176), (176, 80), (96, 160), (160, 96), (112, 144), (144, 112)]},
    ),
}


def tiny(name: str, *, seed: int = 0) -> Any:
    """A tiny pipeline by name, one of :data:`EVERY`; see :func:`flowhooks.testing.tiny.build`."""
    return shortened(name, build(EVERY[name], seed=seed))


def shortened(name: str, pipe: Any) -> Any:
    """The pipeline with :data:`SET_BY_THE_CLASS`, which a pipeline read from a folder has not."""
    for attribute, value in SET_BY_THE_CLASS.get(name, {}).items():
        getattr(pipe, attribute)
        setattr(pipe, attribute, value)
    return pipe


def pictured(sizes: Sequence[tuple[int, int]], seed: int = 0) -> Any:
    """References of these widths and heights as a pipeline takes them: one, or a list of several."""
    from flowhooks.probe.references import as_argument, smooth

    return as_argument([smooth(*size, seed=100 * seed + i) for i, size in enumerate(sizes)])


def learnt(
    name: str, *, arguments: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None, **sizes: int
) -> FlowModel:
    """The probe's model of a new tiny pipeline, which a test may leave as it likes.

    A process builds and probes each but once: a test gets a copy of the pipeline together with what was learned about
    it, its network's anatomy included. A test that changes how pipelines are built or probed calls
    :func:`flowhooks.probe.probe` itself.

    Args:
        arguments: of every call of the pipeline; default: those of :data:`PIPELINES`.
        dtype: of the pipeline's weights.
        sizes: ``height``, ``width`` and ``frames`` of the probe's run.
    """
    # It imports all of Diffusers, which most tests do without.
    from flowhooks.probe import probe

    told = EVERY[name].arguments if arguments is None else arguments
    key = repr((name, sorted(told.items()), dtype, sorted(sizes.items())))
    if key not in _LEARNT:
        pipe = tiny(name)
        references = EVERY[name].references
        model = probe(pipe if dtype is None else pipe.to(dtype), arguments=told, references=references, **sizes)
        model.anatomy  # noqa: B018
        _LEARNT[key] = copier(model)
    return _LEARNT[key]()


#: What makes the copies of :func:`learnt`.
_LEARNT: dict[str, Callable[[], FlowModel]] = {}

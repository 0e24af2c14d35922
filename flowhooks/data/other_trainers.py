"""List how each key of another trainer's data set file is read: taken over, without an effect here, or an error.

:mod:`flowhooks.data.translation` reads such files by this table, and docs/from_other_trainers.md prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Block = dict[str, Any]
NAME = "SimpleTuner"
SAME, IDLE, OTHER = "taken over", "no effect", "error"


@dataclass(frozen=True)
class Keys:
    """Says how some keys of the other trainer are read.

    Args:
        keys: names of the keys there.
        fate: SAME, IDLE or OTHER.
        here: for SAME the key they are read as, for IDLE why they have no effect, for OTHER what to write instead.
        values: where only these values of the keys are meant, which are ours too; empty for all values.
    """

    keys: tuple[str, ...]
    fate: str
    here: str
    values: tuple[str, ...] = ()


#: docs/from_other_trainers.md prints it.
TABLE = (
    Keys(
        ("crop",),
        SAME,
        '`true`: a part of the size of `resolution` is cut out of the image as it is, `"crop_scale": "original"`; '
        '`false`: the image is shrunk and keeps its aspect, `"aspect": "own"`',
    ),
    Keys(("crop_style",), SAME, "`crop`: `center`, `random` or `corner`; `face` is an error"),
    Keys(
        ("crop_aspect",),
        SAME,
        "`aspect`: `square`, also where it is missing, is `crop`; `preserve` is `own`, `closest` is `bucket`, and "
        "`random` is `random`",
    ),
    Keys(("crop_aspect_buckets",), SAME, "`aspects`, for `closest` and `random`"),
    Keys(
        ("minimum_image_size",),
        SAME,
        'with `"small_images": "leave_out"`; images between it and `resolution` are enlarged, `"allow_upscale": true`',
    ),
    Keys(
        ("maximum_image_size", "target_downsample_size"),
        SAME,
        "the same, where both are there and `crop` is true; else they have no effect",
    ),
    Keys(("dataset_type",), SAME, '`"image"`, with `num_frames`, which must be written', ("video",)),
    Keys(
        ("video",),
        SAME,
        "`num_frames`; `is_i2v` is `\"reference\": \"first_frame\"`; shorter videos are an error, so `min_frames` "
        "up to `num_frames` has no effect; the other keys are errors",
    ),
    Keys(("prepend_instance_prompt",), SAME, '`"caption_template": "<instance_prompt> {caption}"`'),
    Keys(("only_instance_prompt",), SAME, '`"caption_strategy": "instanceprompt"`'),
    Keys(("caption_strategy",), SAME, '`"column"`', ("csv", "huggingface")),
    Keys(("csv_file", "dataset_name"), SAME, "`instance_data_dir`"),
    Keys(("csv_caption_column",), SAME, "`caption_column`"),
    Keys(("huggingface",), SAME, "its `caption_column` and `image_column`; the other keys are errors"),
    Keys(
        ("cache_dir", "cache_dir_vae", "cache_file_suffix", "csv_cache_dir", "hash_filenames", "compress_cache"),
        IDLE,
        "one cache, at `cache_dir` of the run, finds its entries by content",
    ),
    Keys(
        ("vae_cache_clear_each_epoch", "preserve_data_backend_cache", "write_batch_size", "read_batch_size"),
        IDLE,
        "the cache needs no settings",
    ),
    Keys(
        ("metadata_backend", "skip_file_discovery", "scan_for_errors"),
        IDLE,
        "every file is looked at each time; `parquet` is an error",
    ),
    Keys(("text_embeds", "image_embeds", "default"), IDLE, "embeddings are in the same cache"),
    Keys(
        ("dataset_type",),
        IDLE,
        "the whole block: it holds a cache, and no data",
        ("text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache"),
    ),
    Keys(("delete_problematic_images", "delete_unwanted_images"), IDLE, "nothing of yours is deleted"),
    Keys(("parquet",), OTHER, '`"type": "parquet"` or `"csv"`, the table as `instance_data_dir`, and `caption_column`'),
    Keys(("metadata_backend", "caption_strategy"), OTHER, "as for `parquet`", ("parquet",)),
    Keys(("type",), OTHER, '`"type": "local"` and `"instance_data_dir": "s3://bucket/folder"`', ("aws",)),
    Keys(
        ("aws_bucket_name", "aws_data_prefix", "aws_endpoint_url", "aws_region_name"),
        OTHER,
        '`"instance_data_dir": "s3://bucket/folder"`; the rest comes from the environment',
    ),
    Keys(
        ("aws_access_key_id", "aws_secret_access_key"),
        OTHER,
        "remove it: a secret has no place in this file, and is read from the environment (`AWS_ACCESS_KEY_ID`, "
        "`AWS_SECRET_ACCESS_KEY`)",
    ),
    Keys(("dataset_type",), OTHER, "leave the set out; `validation.holdout` of the run keeps samples back", ("eval",)),
    Keys(
        ("conditioning_type",),
        OTHER,
        "`reference_image`, an image that the pipeline is given; no control network is trained",
        ("controlnet",),
    ),
    Keys(("minimum_aspect_ratio", "maximum_aspect_ratio"), OTHER, "take those images out of the folder"),
    Keys(("max_num_samples",), OTHER, "take images out of the folder; `max_samples` is for `huggingface`"),
    Keys(("caption_filter_list",), OTHER, "edit the captions"),
    Keys(
        ("is_regularisation_data", "is_regularization_data"),
        OTHER,
        "leave the set out; no loss treats sets differently",
    ),
    Keys(("conditioning",), OTHER, "make that set first, with `flowhooks pairs`, and link it with `conditioning_data`"),
    Keys(("start_epoch", "end_epoch"), OTHER, "`start_step` and `end_step`, in optimiser steps"),
)  # fmt: skip

#: Keys of the table that are ours too, so no sign of such a file.
OURS = {"crop", "minimum_image_size", "maximum_image_size", "target_downsample_size"}
#: What is meant by all values of a key, and by one value of a key that is ours.
ROW_OF_KEY = {key: row for row in TABLE if not row.values for key in row.keys}
ROW_OF_VALUE = {(key, value): row for row in TABLE for key in row.keys for value in row.values}


def table() -> str:
    """Return :data:`TABLE` in Markdown."""
    lines = ["| key there | | here |", "|---|---|---|"]
    for row in TABLE:
        names = [f"`{key}`" for key in row.keys]
        values = f" {', '.join(f'`{value}`' for value in row.values)}" if row.values else ""
        lines.append(f"| {', '.join(names)}{values} | {row.fate} | {row.here} |")
    return "\n".join(lines) + "\n"


def is_foreign(block: Any) -> bool:
    """Return whether a block has a key or a value that only the other trainer writes."""
    if not isinstance(block, dict):
        return False
    named = {(key, value) for key, value in block.items() if isinstance(value, str)}
    return isinstance(block.get("crop"), bool) or bool(
        block.keys() & ROW_OF_KEY.keys() - OURS or named & ROW_OF_VALUE.keys()
    )

"""Read data set files in the dialect of another trainer: which keys are used, which have no effect here, which are
errors.

A block is taken to be in that dialect when it has a key of :data:`TABLE` that is none of ours, or writes ``crop`` as
true or false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowhooks.documents.document import json_path
from flowhooks.errors import Problem

Block = dict[str, Any]
SAME, IDLE, OTHER = "taken over", "no effect", "error"


@dataclass(frozen=True)
class Keys:
    """Says how some keys of the other trainer are read.

    Args:
        keys: names of the keys there.
        fate: SAME, IDLE or OTHER.
        here: for SAME the key they are read as, for IDLE why they have no effect, for OTHER what to write instead.
    """

    keys: tuple[str, ...]
    fate: str
    here: str


#: docs/config.md prints it.
TABLE = (
    Keys(
        ("crop",),
        SAME,
        '`false` is `"aspect": "bucket"`; `true` is `"aspect": "crop"` unless a key below says otherwise',
    ),
    Keys(("crop_style",), SAME, "`crop`: `center`, `random` or `corner`"),
    Keys(("crop_aspect",), SAME, "`aspect`: `square` is `crop`, `preserve` is `bucket`"),
    Keys(
        ("minimum_image_size",),
        SAME,
        'with `"small_images": "leave_out"`, and `allow_upscale` for images between it and `resolution`',
    ),
    Keys(
        ("maximum_image_size", "target_downsample_size"),
        SAME,
        "nothing where `target_downsample_size` is `resolution`, to which images are shrunk anyway; else an error",
    ),
    Keys(
        ("cache_dir", "cache_dir_vae", "cache_file_suffix", "hash_filenames", "preserve_data_backend_cache"),
        IDLE,
        "one cache, at `cache_dir` of the run, finds its entries by content",
    ),
    Keys(("vae_cache_clear_each_epoch", "write_batch_size", "read_batch_size"), IDLE, "the cache needs no settings"),
    Keys(("metadata_backend", "skip_file_discovery"), IDLE, "the files are read each time; `parquet` is an error"),
    Keys(("text_embeds", "image_embeds", "default"), IDLE, "and so whole blocks of `text_embeds` and `image_embeds`"),
    Keys(("delete_problematic_images", "delete_unwanted_images"), IDLE, "nothing of yours is deleted"),
    Keys(("parquet",), OTHER, '`"type": "parquet"` or `"csv"`, the table as `instance_data_dir`, and `caption_column`'),
    Keys(("prepend_instance_prompt",), OTHER, '`"caption_template": "your words, {caption}"`'),
    Keys(("only_instance_prompt",), OTHER, '`"caption_strategy": "instanceprompt"`'),
    Keys(("video",), OTHER, "`num_frames` and `frame_selection`"),
    Keys(("crop_aspect_buckets",), OTHER, '`"aspect": "bucket"`, whose shapes are the usual eleven'),
    Keys(("minimum_aspect_ratio", "maximum_aspect_ratio"), OTHER, "take those images out of the folder"),
    Keys(("caption_filter_list",), OTHER, "edit the captions"),
    Keys(
        ("is_regularisation_data", "is_regularization_data"),
        OTHER,
        "leave the set out; no loss treats sets differently",
    ),
    Keys(("conditioning",), OTHER, "make that set first, with `flowhooks pairs`, and link it with `conditioning_data`"),
    Keys(("start_epoch", "end_epoch"), OTHER, "`start_step` and `end_step`, in optimiser steps"),
)  # fmt: skip

#: Blocks of these types hold no data.
_EMBEDS = ("text_embeds", "image_embeds")
_STYLES = ("center", "random", "corner")
_ASPECTS = {"square": "crop", "preserve": "bucket"}
# Also a key of ours, so not a sign of the dialect; `default` alone is not one either.
_OURS = {"crop", "minimum_image_size"}
_FATE = {key: row.fate for row in TABLE for key in row.keys}
_HERE = {key: row.here for row in TABLE for key in row.keys}


def table() -> str:
    """Return :data:`TABLE` in Markdown."""
    lines = ["| key there | | here |", "|---|---|---|"]
    lines += [f"| {', '.join(f'`{key}`' for key in row.keys)} | {row.fate} | {row.here} |" for row in TABLE]
    return "\n".join(lines) + "\n"


@dataclass
class Translation:
    """Holds a file translated into our keys.

    Args:
        document: the translated content; the content as given, if it had our keys already.
        idle: keys that had no effect, each once, and left-out blocks.
        taken: keys that were translated, each once.
        problems: keys without an equivalent here.
    """

    document: Any
    idle: list[str]
    taken: list[str]
    problems: list[Problem]

    @property
    def warning(self) -> str | None:
        """Return one sentence on the keys that were translated or ignored; None where there are none."""
        parts = []
        if self.taken:
            parts.append(f"taken over: {', '.join(self.taken)}")
        if self.idle:
            parts.append(f"without an effect here: {', '.join(self.idle)}")
        return f"keys of another trainer; {'; '.join(parts)}; docs/config.md says how each is read" if parts else None


def translate(document: Any, file: str, root: str) -> Translation:
    """Translate blocks in that dialect; everything else stays as it is, for the schema to judge."""
    found = Translation(document, [], [], [])
    blocks, at = (document, root) if isinstance(document, list) else (None, root)
    if isinstance(document, dict):
        blocks, at = document.get("datasets"), f"{root}.datasets"
    if not isinstance(blocks, list):
        return found
    read = [_block(block, json_path([i], at), file, found) for i, block in enumerate(blocks)]
    found.idle, found.taken = list(dict.fromkeys(found.idle)), list(dict.fromkeys(found.taken))
    found.document = read if isinstance(document, list) else {**document, "datasets": read}
    return found


def _block(block: Any, where: str, file: str, found: Translation) -> Any:
    if not isinstance(block, dict):
        return block
    kind = block.get("dataset_type")
    if kind in _EMBEDS:
        found.idle.append(f"the block {block.get('id')!r} of {kind}")
        # A disabled set keeps its index, so that the sets after it keep theirs.
        return {"id": block.get("id"), "instance_data_dir": str(block.get("cache_dir") or kind), "disabled": True}
    foreign = isinstance(block.get("crop"), bool) or any(key in _FATE and key not in _OURS for key in block)
    if not foreign:
        return block
    kept = {key: value for key, value in block.items() if key not in _FATE or key in _OURS}
    for key in block:
        if _FATE.get(key) == IDLE and block[key] != "parquet":
            found.idle.append(f"`{key}`")
        elif _FATE.get(key) == OTHER or key in _FATE and block[key] == "parquet":
            advice = _HERE["parquet" if block[key] == "parquet" else key]
            found.problems.append(Problem(f"is a key of another trainer; here: {advice}", file, f"{where}.{key}"))
    _cut(block, kept, where, file, found)
    _sizes(block, kept, where, file, found)
    return kept


def _cut(block: Block, kept: Block, where: str, file: str, found: Translation) -> None:
    crop, style, aspect = block.get("crop"), block.get("crop_style"), block.get("crop_aspect")
    if isinstance(crop, bool):
        del kept["crop"]
        found.taken.append("`crop`")
        if not crop:
            kept.setdefault("aspect", "bucket")
            found.idle += [f"`{key}`" for key in ("crop_style", "crop_aspect") if key in block]
            return
    if style is not None:
        if style in _STYLES:
            kept.setdefault("crop", style)
            found.taken.append("`crop_style`")
        else:
            words = f'{style!r} is no way to cut here; write "crop": one of {", ".join(map(repr, _STYLES))}'
            found.problems.append(Problem(words, file, f"{where}.crop_style"))
    if aspect is not None:
        if isinstance(aspect, str) and aspect in _ASPECTS:
            kept.setdefault("aspect", _ASPECTS[aspect])
            found.taken.append("`crop_aspect`")
        else:
            words = f'{aspect!r} draws a shape for each image; write "aspect": "bucket", for the nearest usual one'
            found.problems.append(Problem(words, file, f"{where}.crop_aspect"))
    elif crop is True:
        kept.setdefault("aspect", "crop")


def _sizes(block: Block, kept: Block, where: str, file: str, found: Translation) -> None:
    resolution = block.get("resolution")
    if block.get("minimum_image_size") is not None:
        kept.setdefault("small_images", "leave_out")
        kept.setdefault("allow_upscale", True)
        found.taken.append("`minimum_image_size`")
    target, largest = block.get("target_downsample_size"), block.get("maximum_image_size")
    if target is None and largest is None:
        return
    if target is not None and target == resolution:
        found.idle += [f"`{key}`" for key in ("maximum_image_size", "target_downsample_size") if key in block]
        return
    message = (
        "is what images are shrunk to before a part is cut out; here they are shrunk to `resolution`, so that as "
        "much as possible is kept; remove it and `maximum_image_size`, or shrink the images yourself"
    )
    key = "maximum_image_size" if target is None else "target_downsample_size"
    found.problems.append(Problem(message, file, f"{where}.{key}"))

"""Translate data set files of another trainer into our keys.

A file is taken to be one where a block has a key or a value that only the other trainer writes, by
:data:`flowhooks.data.other_trainers.TABLE`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flowhooks.data.other_trainers import IDLE, NAME, OTHER, ROW_OF_KEY, ROW_OF_VALUE, Block, is_foreign
from flowhooks.data.sizing import BUCKET, ORIGINAL, OWN, RANDOM
from flowhooks.documents.document import json_path
from flowhooks.errors import Problem

_STYLES = ("center", "random", "corner")
_ASPECTS = {"square": "crop", "preserve": OWN, "closest": BUCKET, "random": RANDOM}
#: Values under which a key asks for nothing.
_NOTHING: tuple[Any, ...] = (None, False, "", [], {})


@dataclass
class Translation:
    """Holds a file translated into our keys.

    Args:
        document: the translated content; the content as given, if it had our keys already.
        idle: keys that had no effect, each once, and left-out blocks.
        taken: keys that were translated, each once.
        problems: keys without an equivalent here.
        caches: positions of the blocks that hold no data; each is a disabled set in `document`.
        foreign: whether the file is one of the other trainer.
    """

    document: Any
    idle: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    caches: list[int] = field(default_factory=list)
    foreign: bool = False

    @property
    def warning(self) -> str | None:
        """Return one sentence on how the file was read; None where it has our keys."""
        if not self.foreign:
            return None
        parts = [f"read as a data set file of {NAME}"]
        if self.taken:
            parts.append(f"taken over: {', '.join(self.taken)}")
        if self.idle:
            parts.append(f"without an effect here: {', '.join(self.idle)}")
        return "; ".join([*parts, "`flowhooks convert` writes it in our words"])


def translate(document: Any, file: str, root: str) -> Translation:
    """Translate a document of the other trainer; every other one stays as it is, for the schema to judge."""
    found = Translation(document)
    blocks, at = (document, root) if isinstance(document, list) else (None, root)
    if isinstance(document, dict):
        blocks, at = document.get("datasets"), f"{root}.datasets"
    if not isinstance(blocks, list) or not any(map(is_foreign, blocks)):
        return found
    found.foreign = True
    read = []
    for i, block in enumerate(blocks):
        kind = block.get("dataset_type") if isinstance(block, dict) else None
        row = ROW_OF_VALUE.get(("dataset_type", kind)) if isinstance(kind, str) else None
        if row is not None and row.fate == IDLE:
            found.idle.append(f"the block {block.get('id')!r} of {kind}")
            found.caches.append(i)
            # A disabled set keeps its index, so that the sets after it keep theirs.
            read.append(
                {"id": block.get("id"), "instance_data_dir": str(block.get("cache_dir") or kind), "disabled": True}
            )
        else:
            read.append(_Block(block, json_path([i], at), file, found).read() if isinstance(block, dict) else block)
    found.idle, found.taken = list(dict.fromkeys(found.idle)), list(dict.fromkeys(found.taken))
    found.document = read if isinstance(document, list) else {**document, "datasets": read}
    return found


class _Block:
    """Translates one block."""

    def __init__(self, block: Block, where: str, file: str, found: Translation):
        self.block, self.where, self.file, self.found = block, where, file, found
        self.kept = {key: value for key, value in block.items() if key not in ROW_OF_KEY}
        self.trained = block.get("dataset_type", "image") != "conditioning"

    def read(self) -> Block:
        """Return the block in our keys."""
        for key, value in self.block.items():
            row = ROW_OF_VALUE.get((key, value)) if isinstance(value, str) else None
            row = row or ROW_OF_KEY.get(key)
            if row is None or row.fate not in (IDLE, OTHER):
                continue
            if row.fate == IDLE or any(value == each for each in _NOTHING) or (key == "start_epoch" and value == 1):
                self._idle(key)
            else:
                what = f"{value!r} is" if row.values else "is a key"
                here = ROW_OF_KEY["parquet"].here if value == "parquet" else row.here
                self._refuse(key, f"{what} of another trainer; here: {here}")
                # Once is enough: the schema would refuse the value too.
                self.kept.pop(key, None)
        self._cut()
        self._sizes()
        self._captions()
        self._sources()
        self._videos()
        return self.kept

    def _taken(self, *keys: str) -> None:
        self.found.taken += [f"`{key}`" for key in keys if key in self.block]

    def _idle(self, *keys: str) -> None:
        self.found.idle += [f"`{key}`" for key in keys if key in self.block]

    def _refuse(self, key: str, words: str) -> None:
        self.found.problems.append(Problem(words, self.file, f"{self.where}.{key}"))

    def _cut(self) -> None:
        block, crop = self.block, self.block.get("crop")
        style, aspect, shapes = (block.get(key) for key in ("crop_style", "crop_aspect", "crop_aspect_buckets"))
        if crop is not None and not isinstance(crop, bool):
            self.kept["crop"] = crop
        if crop is False:
            self._taken("crop")
            self.kept.setdefault("aspect", OWN)
            self._idle("crop_style", "crop_aspect", "crop_aspect_buckets")
            return
        if crop is True:
            self._taken("crop")
            self.kept.setdefault("crop_scale", ORIGINAL)
            self.kept.setdefault("aspect", "crop")
        if style in _STYLES:
            self.kept.setdefault("crop", style)
            self._taken("crop_style")
        elif style is not None:
            words = f'{style!r} is no way to cut here; write "crop": one of {", ".join(map(repr, _STYLES))}'
            self._refuse("crop_style", words)
        if isinstance(aspect, str) and aspect in _ASPECTS:
            if "aspect" not in block:
                self.kept["aspect"] = _ASPECTS[aspect]
            self._taken("crop_aspect")
        elif aspect is not None:
            self._refuse("crop_aspect", f"{aspect!r} is no shape here; write one of {', '.join(map(repr, _ASPECTS))}")
        if shapes is not None and aspect in ("closest", "random"):
            self.kept["aspects"] = shapes
            self._taken("crop_aspect_buckets")
        else:
            self._idle("crop_aspect_buckets")

    def _sizes(self) -> None:
        block = self.block
        if self.trained and block.get("resolution") is not None:
            # Without `minimum_image_size` the other trainer enlarges images that are smaller.
            self.kept.setdefault("allow_upscale", True)
        if block.get("minimum_image_size") is not None:
            self.kept["minimum_image_size"] = block["minimum_image_size"]
            self.kept.setdefault("small_images", "leave_out")
            self._taken("minimum_image_size")
        both = ("maximum_image_size", "target_downsample_size")
        if self.kept.get("crop_scale") == ORIGINAL and all(block.get(key) is not None for key in both):
            self.kept |= {key: block[key] for key in both}
            self._taken(*both)
        else:
            self._idle(*both)

    def _captions(self) -> None:
        block = self.block
        prompt = block.get("instance_prompt")
        for key in ("prepend_instance_prompt", "only_instance_prompt"):
            if not block.get(key) or not self.trained:
                self._idle(key)
            elif not isinstance(prompt, str) or not prompt.strip():
                self._refuse(key, "needs `instance_prompt`; write it")
            elif key == "only_instance_prompt":
                self.kept["caption_strategy"] = "instanceprompt"
                self._taken(key)
            elif block.get("only_instance_prompt") or block.get("caption_strategy") == "instanceprompt":
                self._idle(key)
            else:
                words = prompt.strip().replace("{", "{{").replace("}", "}}")
                self.kept.setdefault("caption_template", f"{words} {{caption}}")
                self._taken(key)
        if self.kept.get("caption_strategy", "") is None:
            del self.kept["caption_strategy"]
        if self.kept.get("caption_strategy") in ("csv", "huggingface"):
            self.kept["caption_strategy"] = "column"
            self._taken("caption_strategy")

    def _sources(self) -> None:
        names = {"csv_file": "instance_data_dir", "dataset_name": "instance_data_dir"}
        for key, here in {**names, "csv_caption_column": "caption_column"}.items():
            if self.block.get(key) is not None:
                self.kept[here] = self.block[key]
            self._taken(key)
        self._inner("huggingface", {"caption_column": "caption_column", "image_column": "image_column"})

    def _videos(self) -> None:
        if self.block.get("dataset_type") == "video":
            self.kept["dataset_type"] = "image"
            self._taken("dataset_type")
        video = self._inner("video", {"num_frames": "num_frames"}, ("min_frames", "is_i2v", "bucket_strategy"))
        if self.block.get("dataset_type") == "video" and "num_frames" not in self.kept and isinstance(video, dict):
            key = "video" if "video" in self.block else "dataset_type"
            self._refuse(key, "holds videos, and their number of frames is not written; write `num_frames`")
        if not video:
            return
        least, frames = video.get("min_frames"), self.kept.get("num_frames")
        if isinstance(least, int) and isinstance(frames, int) and least > frames:
            self._refuse(
                "video.min_frames", f"{least} is above `num_frames` {frames}; take shorter videos out of the folder"
            )
        if video.get("is_i2v") is True:
            self.kept.setdefault("reference", "first_frame")
        if video.get("bucket_strategy") not in (None, "aspect_ratio"):
            self._refuse("video.bucket_strategy", "groups by frames, and here all have `num_frames`; remove it")

    def _inner(self, key: str, names: dict[str, str], known: tuple[str, ...] = ()) -> Any:
        """Take over the keys within a key. Returns its value; an empty object where there is none, None where it is no
        object."""
        value = self.block.get(key)
        if value is None:
            self._idle(key)
            return {}
        if not isinstance(value, dict):
            self._refuse(key, f"is {value!r}; expected an object")
            return None
        self._taken(key)
        for name, inner in value.items():
            if name in names:
                self.kept.setdefault(names[name], inner)
            elif name not in known and inner is not None:
                self._refuse(f"{key}.{name}", f"is a key of another trainer; here: {ROW_OF_KEY[key].here}")
        return value

"""Runs on sound that are refused before weights load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile

from tests.acceptance.refusal_makers import Refusal, written
from tests.acceptance.user import User
from tests.families import tiny


def sounding(
    block: dict[str, Any] | None = None, *, rate: int = 800, channels: int = 1, **sections: Any
) -> Callable[[User], None]:
    """A pipeline of sound, and beside it clips of a quarter of a second."""

    def make(user: User) -> None:
        shutil.rmtree(user.mine / "model")
        tiny("longcat-audio").save_pretrained(user.mine / "model")
        clips(user, rate, channels)
        changed(user, block or {})
        user.write(**{"model": {"pipeline_arguments": {}}, "hooks": [], **sections})

    return make


def worded(texts: dict[str, str]) -> Callable[[User], None]:
    """Clips with a table, whose columns are texts of each clip's own."""

    def make(user: User) -> None:
        sounding({"type": "imagefolder", "duration": 0.16, "text_columns": texts})(user)
        (user.data / "sounds" / "metadata.csv").write_text("file_name,text,beats\na.wav,one,90\n", encoding="utf-8")

    return make


def clips(user: User, rate: int = 800, channels: int = 1) -> None:
    (user.data / "sounds").mkdir()
    soundfile.write(user.data / "sounds" / "a.wav", np.zeros((rate // 4, channels)), rate)
    (user.data / "sounds" / "a.txt").write_text("one", encoding="utf-8")


def changed(user: User, block: dict[str, Any]) -> None:
    """The data set file names the clips only."""
    audio = {"id": "sounds", "dataset_type": "audio", "instance_data_dir": "sounds", **block}
    (user.data / "data.json").write_text(json.dumps([audio]), encoding="utf-8")


def heard_by_sd3(user: User) -> None:
    clips(user)
    changed(user, {})
    user.write(hooks=[])


SOUND: dict[str, Refusal] = {
    "sound for a pipeline of images": Refusal(
        make=heard_by_sd3, words=("$[0].dataset_type: ", "is 'audio', and the pipeline makes images")
    ),
    "images for a pipeline of sound": Refusal(
        make=sounding({"dataset_type": "image", "instance_data_dir": "win"}),
        words=("$[0].dataset_type: ", "is 'image', and LongCatAudioDiTPipeline makes sound"),
    ),
    "a length of validation images": Refusal(
        make=written(validation={"duration": 2}),
        words=("$.validation.duration: ", "is the length of sound, and the pipeline makes images"),
    ),
    "images of the validation of sound": Refusal(
        make=sounding(
            {"duration": 0.16},
            validation={
                "prompts": ["one"],
                "height": 16,
                "images": ["data/win/one.png"],
                "num_inference_steps": [1, 2],
            },
        ),
        words=("$.validation.num_inference_steps: ", "sound is not; set one number"),
    ),
    "texts that no prompt has": Refusal(
        make=written(validation={"prompts": ["one"], "texts": [{"lyrics": "la"}, None]}),
        words=("$.validation.texts: ", "has length 2, and `prompts` 1"),
    ),
    "texts that the pipeline does not take": Refusal(
        make=written(validation={"prompts": ["one"], "texts": [{"lyrics": "la"}]}),
        words=("$.validation.texts[0].lyrics: ", "it takes none beside the prompt"),
    ),
    "images to judge sound by": Refusal(
        make=sounding(
            {"duration": 0.16},
            hooks=[
                {"type": "on_policy_rollout", "prompts": ["one"], "group_size": 2},
                {"type": "flow_grpo", "rewards": [{"type": "ocr", "model": "m"}]},
            ],
        ),
        words=("$.hooks[1]: ", "has the reward 'ocr', which judges images"),
    ),
    "images to learn features of sound from": Refusal(
        make=sounding(
            {"duration": 0.16},
            hooks=[{"type": "feature_alignment", "source": "crepa", "block_index": 0, "encoder": "data"}],
        ),
        words=("$.hooks[0]: ", "takes features of images with `source` 'crepa'"),
    ),
    "sound of another rate": Refusal(
        make=sounding(rate=1600, channels=2),
        words=("$[0].channels: ", "files are read as stereo", "set it to 'mono'"),
    ),
    "a text beside the prompt that the pipeline does not take": Refusal(
        make=worded({"tempo": "beats"}),
        words=("$[0].text_columns.tempo: ", "is no text that the pipeline takes; it takes none beside the prompt"),
    ),
    "a length that is rounded": Refusal(
        make=sounding({"duration": 0.2025}),
        words=("$[0].duration: ", "0.2025 s are 162 samples", "multiples of 8; set it to 0.2"),
    ),
}

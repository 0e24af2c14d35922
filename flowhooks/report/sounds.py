"""Take what a run's validation let be heard, small enough for a page."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowhooks.manifest import VALIDATION
from flowhooks.reading import read_bytes

#: On a page: the most bytes of sound of one run, before they are text.
MOST = 8 * 2**20
_CLIP = re.compile(r"step_(\d{1,12})_prompt_(\d{1,6})_(\d{1,6})\.wav")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Holds one clip.

    Args:
        step: of the validation.
        prompt: its words; empty where the run's settings do not say.
        seed: of its noise; None where the run's settings do not say.
        url: ``data:`` URL of its WAV file.
    """

    step: int
    prompt: str
    seed: int | None
    url: str


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Holds the clips of a run's first and last validation, prompt by prompt.

    Args:
        clips: rising by prompt, seed and step.
        left_out: number of clips of these two that were too large for a page.
        of: number of validations with sound.
        damaged: names of files that cannot be read.
    """

    clips: tuple[Clip, ...] = ()
    left_out: int = 0
    of: int = 0
    damaged: tuple[str, ...] = ()


def read_sounds(folder: Path, validation: Mapping[str, Any]) -> Sounds:
    """Read the clips of a run's folder, as far as :data:`MOST` bytes.

    Args:
        validation: the section of its settings.
    """
    found = sorted(_clips(folder / VALIDATION))
    steps = sorted({step for _, _, step, _ in found})
    prompts, seed = validation.get("prompts"), validation.get("seed", 0)
    clips, damaged, left_out, room = [], [], 0, MOST
    for prompt, number, step, file in found:
        if step not in (steps[0], steps[-1]):
            continue
        try:
            content = read_bytes(file, MOST)
        except ValueError:  # larger than all of it
            left_out += 1
            continue
        except OSError:
            damaged.append(file.name)
            continue
        if not (content[:4] == b"RIFF" and content[8:12] == b"WAVE"):
            damaged.append(file.name)
        elif len(content) > room:
            left_out += 1
        else:
            room -= len(content)
            known = isinstance(prompts, list) and prompt < len(prompts)
            clips.append(
                Clip(
                    step=step,
                    prompt=str(prompts[prompt]) if isinstance(prompts, list) and known else "",
                    seed=seed + number if isinstance(seed, int) else None,
                    url=f"data:audio/wav;base64,{base64.b64encode(content).decode()}",
                )
            )
    return Sounds(clips=tuple(clips), left_out=left_out, of=len(steps), damaged=tuple(damaged))


def _clips(folder: Path) -> list[tuple[int, int, int, Path]]:
    """Return (prompt, number, step, file) of each clip."""
    files = folder.iterdir() if folder.is_dir() else ()
    named = [(_CLIP.fullmatch(file.name), file) for file in files if file.is_file() and not file.is_symlink()]
    return [(int(m[2]), int(m[3]), int(m[1]), file) for m, file in named if m]

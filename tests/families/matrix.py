"""What works on which pipeline, found by doing it: ``python -m tests.families.matrix`` writes ``docs/pipelines.md``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowhooks.errors import FlowhooksError
from flowhooks.naming import refused_pipelines
from tests.families import EVERY, checks, interval_checks, modular, tiny
from tests.families.modular import differences

COLUMNS: Mapping[str, Callable[[str], None]] = {
    "probe": checks.check_probe,
    "Flow-DPO step": checks.check_flow_dpo,
    "LoRA in stock Diffusers": checks.check_lora,
    "time conditioning": interval_checks.check_time_conditioning,
    "few-step sampling": interval_checks.check_few_steps,
    "per-token times": checks.check_token_times,
    "gradient checkpointing": checks.check_checkpointing,
    "detached": checks.check_detach,
    "resumed": checks.check_resume,
    "replayed": checks.check_replay,
    "bf16": checks.check_bf16,
    "with images": checks.check_images,
}


#: (name, column) -> whose doing it is, where the error alone does not tell.
CAUSES: Mapping[tuple[str, str], str] = {
    ("chroma", "gradient checkpointing"): "Diffusers: checkpointed single blocks do not get the attention mask",
    ("kandinsky5-image", "bf16"): "Diffusers: it embeds the time in fp32 whatever the weights are",
    ("kandinsky5-i2i", "bf16"): "the same",
    ("kandinsky5-i2v", "bf16"): "the same",
    ("kandinsky5-video", "bf16"): "the same",
    **dict.fromkeys(
        (
            (f"{kind}{name}", "per-token times")
            for kind in ("", "modular-")
            for name in ("qwen-image-21", "qwen-image-21-edit", "qwen-image-21-turbo")
        ),
        "Diffusers: its network adds a time of 0 for text to the times of the batch",
    ),
    ("modular-krea2", "time conditioning"): "by 4e-7, as in the classic pipeline with as many layers of text",
    ("modular-krea2-turbo", "time conditioning"): "by 4e-7, as in the classic pipeline with as many layers of text",
    (
        "joy-image-edit",
        "with images",
    ): "with one, its samples hold the image beside what it makes, and its VAE gets both",
    ("ltx2-in-context", "with images"): "it follows clips with strengths, and data sets give images alone",
    ("modular-z-image", "bf16"): "Diffusers: its blocks round the time before they take its complement",
}


#: Families that other documents name -> what is to be said of them, where the table has no row.
WITHOUT_A_ROW: Mapping[str, str] = {
    "omnigen": "OmniGenPipeline puts a guided and an unguided sample into every call of its network, whatever the "
    "guidance scale, and the probe reads pipelines whose guidance can be switched off",
    "z_image_omni": "the probe refuses ZImageOmniPipeline: its network gets the sample and the images beside it "
    "in one list per sample",
    "modular ideogram4": "the probe refuses Ideogram4ModularPipeline: its blocks want a `guidance_schedule` with a "
    "number for each step, and the probe asks for several numbers of steps",
    "modular ltx2": "the probe refuses LTX2ModularPipeline: with its guider off, its blocks go on calling the network "
    "four times a step, for guidance by perturbed attention and by sound; use LTX2Pipeline",
    "modular stable-diffusion-xl": "the probe refuses StableDiffusionXLModularPipeline: with its guider off, its "
    "blocks call the U-Net three times a step; use StableDiffusionXLPipeline",
    "wan_s2v": "Diffusers has no class of it",
    "longcat_video": "Diffusers has no class of it (its LongCat classes make images and sound)",
}


#: Classes of Diffusers that match flows and have no row, beside those of ``flowhooks.naming.refused_pipelines`` -> why.
CLASSES_WITHOUT_A_ROW: Mapping[tuple[str, ...], str] = {
    (
        "ChromaImg2ImgPipeline",
        "FluxImg2ImgPipeline",
        "QwenImageImg2ImgPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
        "WanVideoToVideoPipeline",
        "ZImageImg2ImgPipeline",
    ): "what they are given is only where their loop starts, and their network gets what that of the pipeline for text "
    "gets; train that one, whose LoRA they load",
    (
        "ChromaInpaintPipeline",
        "FluxInpaintPipeline",
        "QwenImageInpaintPipeline",
        "StableDiffusion3InpaintPipeline",
        "ZImageInpaintPipeline",
        "FluxKontextInpaintPipeline",
        "Flux2KleinInpaintPipeline",
        "QwenImageEditInpaintPipeline",
        "FluxControlImg2ImgPipeline",
        "FluxControlInpaintPipeline",
    ): "they put the image back outside of a mask after each step, or start from it, and their network gets what that "
    "of the pipeline without a mask gets; train that one, whose LoRA they load",
    (
        "FluxControlNetPipeline",
        "FluxControlNetImg2ImgPipeline",
        "FluxControlNetInpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageControlNetInpaintPipeline",
        "ZImageControlNetPipeline",
        "ZImageControlNetInpaintPipeline",
        "HunyuanDiTControlNetPipeline",
        "SanaControlNetPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetPAGPipeline",
        "Cosmos2_5_TransferPipeline",
    ): "`check` and the probe refuse them: what a ControlNet adds to the network changes with the noisy sample at "
    "every step, so it is no condition that could be kept; train the pipeline without it, whose LoRA they load",
    (
        "SanaPAGPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusionSAGPipeline",
    ): "they are the pipelines without these letters under another guidance, which training switches off; train those",
    (
        "CosmosVideoToWorldPipeline",
        "Cosmos2VideoToWorldPipeline",
    ): "their samples are x0 + sigma e up to sigma 80, as in EDM, as those of `cosmos` and `cosmos2-image`",
    (
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ): "they step copies of their scheduler, one for each frame, as `skyreels-v2-diffusion-forcing`",
    (
        "Cosmos3OmniModularPipeline",
        "Cosmos3DistilledModularPipeline",
    ): "they make one sample a call, as `cosmos3`",
    ("DreamLitePipeline",): "it puts guided and unguided samples into every call of its network, whatever the scale",
    (
        "WanVACEPipeline",
        "Wan22VaceModularPipeline",
    ): "they follow a video of each sample's own, and data sets give images for that",
    ("EchoModularPipeline",): "it denoises sound beside the video, from memories of images and sounds",
    (
        "Flux3DistilledModularPipeline",
        "Flux2KleinBaseModularPipeline",
        "Krea2TurboModularPipeline",
        "Wan22ModularPipeline",
        "Wan22Image2VideoModularPipeline",
    ): "other names of what has a row: their blocks are those of the same model with other defaults",
    (
        "BriaFibo2Pipeline",
        "DreamLiteMobilePipeline",
        "Kandinsky6TI2VAPipeline",
        "MiniMaxMusic3ModularPipeline",
    ): "not measured: no tiny pipeline of them is built here, and `flowhooks probe` on a released one tells",
    (
        "HunyuanImageRefinerPipeline",
    ): "the probe refuses it: its VAE gets half of a sample's numbers only, and its network an image that new noise is "
    "added to in each call",
    (
        "JoyImageEditPlusPipeline",
    ): "the probe refuses it: it takes no single image, only a list of them for each sample, and its samples hold "
    "those images beside what it makes",
    (
        "LTX2HDRPipeline",
    ): "the probe refuses it: it changes a video after its VAE, to one of linear light with the colours last; train "
    "LTX2Pipeline",
    ("LTX25ModularPipeline",): "its blocks up to its decoder are those of LTX2ModularPipeline, which the probe refuses",
    (
        "StableAudio3AudioToAudioPipeline",
    ): "the clip that it is given is only where its loop starts, and its network gets what that of `stable-audio-3` "
    "gets; train that one",
    (
        "StableAudio3InpaintPipeline",
    ): "its network follows a masked clip of each sample's own, and data sets give no clips for that",
}


@dataclass(frozen=True)
class Row:
    """One pipeline: column -> None when it holds, else the reason."""

    name: str
    pipeline: str
    cells: Mapping[str, str | None]


def examine(name: str) -> Row:
    """Try every column on one pipeline; after a failed probe the others are not tried."""
    cells: dict[str, str | None] = {}
    for column, check in COLUMNS.items():
        if cells.get("probe"):
            cells[column] = "not probed"
            continue
        try:
            check(name)
            cells[column] = None
        except (
            FlowhooksError,
            AssertionError,
            ValueError,
            RuntimeError,
            TypeError,
            AttributeError,
            NotImplementedError,
        ) as error:
            cells[column] = _reason(error, CAUSES.get((name, column)))
    return Row(name, type(tiny(name)).__name__, cells)


def _reason(error: Exception, cause: str | None) -> str:
    """The first line of an error, whole sentences of it, and whose doing it is."""
    line = str(error).splitlines()[0]
    if len(line) > 200:
        line = line[:200].rpartition(". ")[0] or line[:200].rpartition(" (")[0] or line[:200]
    return f"{line} ({cause})" if cause else line


#: Where a modular pipeline differs from the classic one of the same parts -> whose doing it is.
OTHERWISE: Mapping[str, str] = {
    "flux2": "Diffusers: their system messages differ in one line break",
    "flux2-edit": "Diffusers: their system messages differ in one line break",
    **dict.fromkeys(
        ("wan21-i2v", "wan22-i2v"), "Diffusers: its blocks scale an image by Pillow's filter before the pipeline's own"
    ),
    "hunyuan-video15-i2v": (
        "Diffusers: its blocks crop the image for the VAE alone, and its image encoder sees all of it"
    ),
}


#: What the rows of :mod:`tests.families.older` and of U-Nets mean.
OLDER = (
    "`stable-diffusion`, `stable-diffusion-xl`, `kolors`, `pixart`, `pixart-sigma` and `hunyuan-dit` predict noise "
    "along DDPM's schedule as they were released. The rows are of their classes under a `UniPCMultistepScheduler` or "
    "`DPMSolverMultistepScheduler` with `use_flow_sigmas` and `prediction_type='flow_prediction'`, as rectified flows "
    "of them have; `check` refuses them under others."
)


def twin_lines(names: Sequence[str]) -> dict[str, str]:
    """What is said of each of these modular pipelines against its classic twin, by its name in the table."""
    lines = {}
    for name in names:
        found = differences(name)
        cause = f" ({OTHERWISE[name]})" if name in OTHERWISE else ""
        twin = modular.TWIN_OF.get(name, name)
        same = f"as `{twin}`, to the last bit" if not found else f"otherwise than `{twin}`: {'; '.join(found)}{cause}"
        lines[f"modular-{name}"] = f"* `modular-{name}`: {same}."
    return lines


def markdown(rows: Sequence[Row], twins: Sequence[str]) -> str:
    """The page: a table of yes and no, and the reasons under it."""
    lines = [
        "# Pipelines",
        "",
        "Made by `python -m tests.families.matrix` from a run on tiny pipelines of the real classes; never by hand.",
        "",
        "Of " + f"{len(rows)} rows: " + ", ".join(f"{column} {_count(rows, column)}" for column in COLUMNS) + ".",
        "",
        f"| name | pipeline | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---|' * len(COLUMNS)}",
    ]
    reasons: list[str] = []
    for row in rows:
        cells = []
        for column in COLUMNS:
            reason = row.cells[column]
            if reason is None:
                cells.append("yes")
                continue
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"no ({reasons.index(reason) + 1})")
        lines.append(f"| `{row.name}` | {row.pipeline} | {' | '.join(cells)} |")
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""]
    lines += [OLDER, ""]
    lines += [
        "What a modular pipeline's network gets and predicts at the same latents, prompt and size:",
        "",
        *twins,
        "",
    ]
    lines += ["Not in the table:", "", *(f"* `{name}`: {why}." for name, why in WITHOUT_A_ROW.items())]
    lines += [f"* {', '.join(f'`{name}`' for name in names)}: {why}." for names, why in _without_a_row().items()]
    lines += [""]
    return "\n".join(lines)


def _without_a_row() -> dict[tuple[str, ...], str]:
    """Every class without a row, those of one reason together."""
    found = dict(CLASSES_WITHOUT_A_ROW)
    for why in dict.fromkeys(refused_pipelines().values()):
        found[tuple(name for name, own in refused_pipelines().items() if own == why)] = why
    return found


def _count(rows: Sequence[Row], column: str) -> int:
    return sum(row.cells[column] is None for row in rows)


def known_rows(page: str) -> dict[str, Row]:
    """The rows of a page that this module wrote with the same columns; none of any other page."""
    head = f"| name | pipeline | {' | '.join(COLUMNS)} |"
    if head not in page:
        return {}
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    rows = {}
    for line in page[page.index(head) :].splitlines()[2:]:
        if not line.startswith("| "):
            break
        name, pipeline, *cells = line.strip("| ").split(" | ")
        found = [None if cell == "yes" else reasons[cell.strip("no ()")] for cell in cells]
        rows[name.strip("`")] = Row(name.strip("`"), pipeline, dict(zip(COLUMNS, found, strict=True)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pipelines to examine; the page keeps its other rows (default: all)")
    parser.add_argument("--output", type=Path, default=Path("docs/pipelines.md"))
    arguments = parser.parse_args()
    page = arguments.output.read_text(encoding="utf-8") if arguments.output.exists() else ""
    rows = known_rows(page) if arguments.names else {}
    known = re.findall(r"^\* `(modular-.*?)`: .*\.$", page, re.MULTILINE) if arguments.names else []
    written = {name: re.search(rf"^\* `{name}`: .*\.$", page, re.MULTILINE)[0] for name in known}
    lines = {**written, **twin_lines([n for n in modular.BLOCKS if f"modular-{n}" in (arguments.names or EVERY)])}
    twins = [lines[f"modular-{name}"] for name in modular.BLOCKS if f"modular-{name}" in lines]
    for name in arguments.names or EVERY:
        rows[name] = row = examine(name)
        print(name, {column: reason or "yes" for column, reason in row.cells.items()}, flush=True)
        if arguments.names:
            arguments.output.write_text(_page(rows, twins), encoding="utf-8")
    arguments.output.write_text(_page(rows, twins), encoding="utf-8")


def _page(rows: Mapping[str, Row], twins: Sequence[str]) -> str:
    return markdown([rows[name] for name in EVERY if name in rows], twins)


if __name__ == "__main__":
    main()

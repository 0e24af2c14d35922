"""List the rewards that flowhooks ships: their specs, in which each option is written once. Free of torch; a class is
imported when a reward is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from flowhooks.documents.imports import imported
from flowhooks.documents.spec import Spec, option
from flowhooks.documents.suggest import hint, listed
from flowhooks.errors import ConfigError, Problem

#: JSON Schema of the weight of a reward, for the user's own classes too.
WEIGHT: Mapping[str, Any] = {
    "description": "Factor in the weighted sum of rewards; below 0 it is a penalty, at 0 it is only measured.",
    "type": "number",
    "minimum": -1_000_000,
    "maximum": 1_000_000,
    "default": 1.0,
}


class RewardSpec(Spec):
    """Declares the options of a shipped reward; its class, named by ``path``, inherits them."""

    kind: ClassVar[str] = "reward"
    #: ``package.module:Class``.
    path: ClassVar[str] = ""
    #: Keys of ``papers.bib``, for the citation of the model card.
    papers: ClassVar[tuple[str, ...]] = ()
    #: Whether it compares images with their references.
    compares: ClassVar[bool] = False
    #: Whether its values have a gradient with respect to the pixels.
    differentiable: ClassVar[bool] = True
    #: Whether another program computes it.
    remote: ClassVar[bool] = False

    @classmethod
    def cites(cls, block: Mapping[str, Any]) -> tuple[str, ...]:
        """Return which of its papers are behind a block."""
        return cls.papers

    @classmethod
    def least_references(cls, options: Mapping[str, Any]) -> int:
        """Return how many references each sample must have for a block with these options."""
        return 0

    @classmethod
    def together(cls, options: Mapping[str, Any]) -> bool:
        """Return whether a block with these options judges the images of one prompt together."""
        return False

    @classmethod
    def made_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of a block: the options, and the weight, which the reward's class does not see."""
        schema = super().made_schema()
        selected, *own = schema["properties"].items()
        return {**schema, "properties": dict([selected, ("weight", WEIGHT), *own])}


def _model(text: str, **more: Any) -> Any:
    return option(text, format="path", minLength=1, **more)


def _column(text: str, default: str) -> Any:
    return option(text, default=default, minLength=1)


def _name(default: str) -> Any:
    return option("Name in logs and errors; two rewards of a run must differ.", default=default, minLength=1)


def _max_frames() -> Any:
    return option(
        "Frames of a video that are judged, evenly spread; the reward is their mean.",
        default=8,
        minimum=1,
        maximum=1_000_000_000,
    )


class ModelRewardSpec(RewardSpec):
    """Options of all rewards that compute with a network."""

    dtype: Literal["fp32", "bf16", "fp16"] = option(
        "Precision of the model; images are prepared in fp32.", default="fp32"
    )
    max_frames: int = _max_frames()


class ClassifierSpec(ModelRewardSpec, type="classifier", title="Classifier"):
    """Log-probability or probability of a label under an image classifier; differentiable."""

    path = "flowhooks.rewards.classifier:Classifier"
    model: str = _model(
        "Folder or Hub id for `AutoModelForImageClassification`, safetensors only; or `package.module:name` of a class "
        "or function that gives a torch module from pixels `[N, 3, H, W]` in [0, 1] to logits."
    )
    label: str | int | None = option(
        "Label wanted of every image, by name or number; `null` reads it from `label_column` of the prompts.",
        default=None,
        minimum=0,
        maximum=1_000_000_000,
    )
    label_column: str = _column("Column of the prompt file that holds the label.", "label")
    target: Literal["log_probability", "probability"] = option(
        "`log_probability` is at most 0 and has a gradient where the probability is near 0 or 1. `probability` is in "
        "[0, 1], and its gradient fades there.",
        default="log_probability",
    )
    name: str = _name("classifier")


class ClipScoreSpec(ModelRewardSpec, type="clip_score", title="CLIP score"):
    """Cosine of image and prompt under CLIP or SigLIP; differentiable."""

    path = "flowhooks.rewards.dual_encoder:ClipScore"
    papers = ("hessel2021clipscore", "zhai2023sigmoid")
    model: str = _model("Folder or Hub id of a CLIP or a SigLIP, which transformers loads, safetensors only.")
    scale: float = option(
        "Factor of the cosine: 1 for the cosine itself, 2.5 as in the paper, 100 for percent. Nothing is cut off at 0.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    name: str = _name("clip_score")


class PickScoreSpec(ModelRewardSpec, type="pickscore", title="PickScore"):
    """Which image people prefer for a prompt, by a CLIP tuned on their choices; differentiable."""

    path = "flowhooks.rewards.dual_encoder:PickScore"
    papers = ("kirstain2023pick",)
    model: str = _model(
        "Folder or Hub id of the model, which transformers loads, safetensors only.",
        default="yuvalkirstain/PickScore_v1",
    )
    processor: str | None = _model(
        "Folder or Hub id of its preprocessor and tokenizer, by default as on the model's page; `null` takes the "
        "model's own.",
        default="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    )
    name: str = _name("pickscore")


class AestheticSpec(ModelRewardSpec, type="aesthetic", title="Aesthetic"):
    """How much people like an image, by LAION's head on the embedding of CLIP; differentiable."""

    path = "flowhooks.rewards.aesthetic:Aesthetic"
    head: str = _model("Safetensors file of the head, with `layers.<i>.weight` and `layers.<i>.bias`.")
    model: str = _model(
        "Folder or Hub id of the CLIP that the head was trained on, safetensors only.",
        default="openai/clip-vit-large-patch14",
    )
    name: str = _name("aesthetic")


class TextAccuracySpec(ModelRewardSpec, type="ocr", title="OCR accuracy"):
    """How much of the text that an image should show can be read in it; not differentiable."""

    path = "flowhooks.rewards.ocr:TextAccuracy"
    papers = ("li2021trocr",)
    differentiable = False
    model: str = _model("Folder or Hub id of a `VisionEncoderDecoderModel`, such as a TrOCR, safetensors only.")
    text_column: str = _column("Column of the prompt file that holds the text.", "text")
    ignore_case: bool = option("Compare without regard to upper and lower case.", default=False)
    ignore_spaces: bool = option("Compare without white space.", default=False)
    max_new_tokens: int = option(
        "The reader stops after this many tokens.", default=64, minimum=1, maximum=1_000_000_000
    )
    name: str = _name("ocr")


class ReferenceSimilaritySpec(RewardSpec, type="reference_similarity", title="Reference similarity"):
    """How much of its reference an image has kept, everywhere or outside the mask of its sample; differentiable."""

    path = "flowhooks.rewards.reference_similarity:ReferenceSimilarity"
    compares = True
    measure: Literal["ssim", "l1", "l2"] = option(
        "`ssim`: structural similarity, in [-1, 1]. `l1` and `l2`: 1 less the mean absolute, or squared, difference of "
        "pixels, in [0, 1].",
        default="ssim",
    )
    outside_mask: bool = option(
        "Compare only where the mask of the sample is 0: what the edit should leave alone. Needs masks in the data.",
        default=False,
    )
    reference: int = option(
        "Which of several references of a sample, by its place from 0.", default=0, minimum=0, maximum=1_000
    )
    name: str = _name("reference_similarity")
    max_frames: int = _max_frames()

    @classmethod
    def least_references(cls, options: Mapping[str, Any]) -> int:
        return int(options["reference"]) + 1


class ServedSpec(RewardSpec):
    """Options of all rewards that a server computes, which is asked over HTTP."""

    differentiable = False
    remote = True

    url: str = option(
        "Address that images are sent to, `http://` or `https://`. It holds no user name and no password.",
        schema={"pattern": r"^https?://[^/?#@\s]+([/?#]\S*)?$", "examples": ["http://127.0.0.1:8000/"]},
    )
    token_env: str | None = option(
        "Environment variable with the token of the header `Authorization: Bearer`; `null` sends none.",
        default=None,
        schema={"pattern": r"^[A-Za-z_][A-Za-z0-9_]*$", "examples": ["REWARD_TOKEN"]},
    )
    batch_size: int = option("Images of a request.", default=16, minimum=1, maximum=65_536)
    timeout: float = option(
        "Seconds to wait for a connection, and then for an answer.", default=60.0, exclusiveMinimum=0, maximum=86_400
    )
    retries: int = option(
        "Further attempts where no connection, no answer in time, or a status of 408, 429 or 500 and above came back.",
        default=5,
        minimum=0,
        maximum=1_000,
    )
    retry_wait: float = option(
        "Seconds before the first of these, twice as long before each next one, at most a minute.",
        default=1.0,
        minimum=0,
        maximum=60,
    )
    max_frames: int = option(
        "Frames of a video that are sent, evenly spread.", default=8, minimum=1, maximum=1_000_000_000
    )


class HttpSpec(ServedSpec, type="http", title="Reward over HTTP"):
    """Numbers that a server of your own gives images; not differentiable."""

    path = "flowhooks.rewards.http:HttpReward"
    papers = ("wang2025prefgrpo",)
    judges: Literal["image", "group", "pairs"] = option(
        "What the server judges: each `image`; the images of a prompt together, as a `group`; or `pairs` of these: "
        "the share of wins is the score of an image.",
        default="image",
    )
    both_orders: bool = option("Ask for each pair in both orders, where it judges `pairs`.", default=True)
    numbers: Mapping[str, Any] | None = option(
        "Weights of the server's named numbers in this reward; `null` where it gives one.",
        default=None,
        schema={
            "minProperties": 1,
            "propertyNames": {"minLength": 1},
            "additionalProperties": {"type": "number", "minimum": -1_000_000, "maximum": 1_000_000},
        },
    )
    references: bool = option("Send the references of each sample too; each needs one or more.", default=False)
    mask: bool = option(
        "Send the mask of each sample too. Needs masks in the data; each sample needs a reference.", default=False
    )
    name: str = _name("http")

    @classmethod
    def cites(cls, block: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.papers if block.get("judges") == "pairs" else ()

    @classmethod
    def least_references(cls, options: Mapping[str, Any]) -> int:
        return int(options["references"] or options["mask"])

    @classmethod
    def together(cls, options: Mapping[str, Any]) -> bool:
        return options["judges"] != "image"


class GenEvalSpec(ServedSpec, type="geneval", title="GenEval"):
    """Whether an image shows the objects that its prompt's record lists, in number, colour and position, by the boxes
    of a detector of your own; not differentiable."""

    path = "flowhooks.rewards.geneval:GenEval"
    papers = ("ghosh2023geneval",)
    result: Literal["correct", "share"] = option(
        "`correct`: 1 where all is as the record says, else 0, as in GenEval. `share`: share of its entries that are.",
        default="correct",
    )
    threshold: float = option(
        "Objects count if the detector is surer than this.", default=0.3, minimum=0, exclusiveMaximum=1
    )
    counting_threshold: float = option(
        "The same for records whose `tag` is `counting`.", default=0.9, minimum=0, exclusiveMaximum=1
    )
    max_objects: int = option("Objects of a class that count, the surest first.", default=16, minimum=1, maximum=65_536)
    max_overlap: float = option(
        "Of two objects of a class with a larger intersection over union only the surer counts; at 1 both do.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1,
    )
    position_threshold: float = option(
        "An object is beside another if its centre is further off than this share of both sizes.",
        default=0.1,
        minimum=0,
        maximum=1,
    )
    name: str = _name("geneval")


#: Type -> spec of every shipped reward.
REWARDS: Mapping[str, type[RewardSpec]] = {
    spec.type: spec
    for spec in (
        ClassifierSpec,
        ClipScoreSpec,
        PickScoreSpec,
        AestheticSpec,
        TextAccuracySpec,
        ReferenceSimilaritySpec,
        HttpSpec,
        GenEvalSpec,
    )
}


def masked_by(blocks: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return what these blocks of rewards need of the data: ``data:mask`` where one reads masks."""
    read = any(
        block.get("outside_mask") or (block.get("type") == HttpSpec.type and block.get("mask")) for block in blocks
    )
    return {"data:mask"} if read else set()


def reward_class(type: str, where: str) -> Any:
    """Import the class of a reward, shipped or third-party.

    Raises:
        ConfigError: no such reward; it cannot be imported, or is no class whose objects can be called and moved.
    """
    path = REWARDS[type].path if type in REWARDS else type
    if ":" not in path:
        message = f"{type!r} is not a reward; known: {listed(REWARDS)}; or an import path 'package.module:Class'"
        raise ConfigError(Problem(message + hint(type, REWARDS), path=where))
    try:
        return imported(path, _judges, "reward: a class with `to` and `__call__`, see docs/rewards.md")
    except ImportError as error:
        raise ConfigError(Problem(f"cannot import the reward {type!r}: {error}", path=where)) from error


def _judges(found: Any) -> bool:
    """Return whether a class has the two methods of a reward; the rest may be set when an object is built."""
    if not inspect.isclass(found):
        return False
    return all(any(name in vars(base) for base in found.__mro__[:-1]) for name in ("to", "__call__"))

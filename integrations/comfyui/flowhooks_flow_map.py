"""A node for ComfyUI that samples flow maps: it reads what ``flowhooks export --format flow-map`` writes.

A flow map predicts the average velocity over a whole step, so its network must be told where the step ends. The node
puts the file's LoRA on a copy of the model, and blends in every call of the network the embedding of the step's end
into that of its start, ``(1 - g) E(t) + g E2(d)``; d is the end, or the length of the step, as the file says
(arXiv 2605.13724). Nothing is written into the model itself: the blend is a hook that is there during a call alone.

This file imports nothing of flowhooks, and ComfyUI only when a node runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

HEADER, VERSION, PREFIX = "flowhooks.flow_map", 1, "second_time."
#: A block's number in a name.
_BLOCK = re.compile(r"\.\d+\.")
#: Key of what the node adds to a model, and to the options of a run of a sampler.
KEY = "flowhooks_flow_map"
#: Family in a file -> ComfyUI's classes of models that it is for.
MODELS = {
    "sd3": ("SD3",),
    "flux": ("Flux",),
    "flux2": ("Flux2",),
    "qwen-image": ("QwenImage",),
    "z-image": ("Lumina2",),
    "wan": ("WAN21", "WAN21_Vace", "WAN22"),
}


class FlowMapError(Exception):
    """A file, a model or a sampler does not fit the others; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class FlowMapFile:
    """Holds a flow map.

    Args:
        path: the file's path.
        family: key of `MODELS`.
        base: name of the model that it was trained on.
        gate: weight g of the second embedding, in [0, 1].
        mode: what d is: ``r``, the sigma where the step ends, or ``t-r``, the step's length in sigma.
        scale, offset: the second embedding is that of ``scale * d + offset``.
        outline: original name of layers, with # for a block's number -> how many the base has, and how many outputs
            and inputs these have together.
        layers: original names of the two layers of the network's embedder of the time.
        second: ``weight`` and, where it has one, ``bias`` of the two layers of the second embedder.
        lora: the tensors of the LoRA, or of its kin, by their names.
    """

    path: Path
    family: str
    base: str
    gate: float
    mode: str
    scale: float
    offset: float
    outline: Mapping[str, Sequence[int]]
    layers: tuple[str, str]
    second: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    lora: Mapping[str, Tensor]

    @property
    def embedder(self) -> str:
        """Return the name of the module that holds both layers."""
        return self.layers[0].rpartition(".")[0]


def read_flow_map(path: str | Path) -> FlowMapFile:
    """Read a file that ``flowhooks export --format flow-map`` wrote.

    Raises:
        FlowMapError: it is another file, of another version, or incomplete.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            header = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise FlowMapError(f"{path} cannot be read as safetensors: {error}") from error
    if HEADER not in header:
        raise FlowMapError(
            f"{path.name} holds no flow map (its header has no `{HEADER}`). Write it by "
            "`flowhooks export RUN --format flow-map`; load a plain LoRA by ComfyUI's own node"
        )
    about = _described(path, header[HEADER])
    names = sorted({key.removeprefix(PREFIX).rpartition(".")[0] for key in tensors if key.startswith(PREFIX)})
    second = [
        {part: tensors[key] for part in ("weight", "bias") if (key := f"{PREFIX}{name}.{part}") in tensors}
        for name in names
    ]
    if len(names) != 2 or not all("weight" in found for found in second):
        raise FlowMapError(f"{path.name} lacks its second embedder (two layers named `{PREFIX}...`); export it again")
    return FlowMapFile(
        path=path,
        layers=(names[0], names[1]),
        second=(second[0], second[1]),
        lora={key: tensor for key, tensor in tensors.items() if not key.startswith(PREFIX)},
        **about,
    )


def _described(path: Path, text: str) -> dict[str, Any]:
    """Return the fields that a header gives. Raises FlowMapError for one that is missing or means nothing."""
    try:
        about = json.loads(text)
        version = about["version"]
        found = {
            "family": str(about["family"]),
            "base": str(about["base"]),
            "mode": str(about["mode"]),
            "gate": float(about["gate"]),
            "scale": float(about["scale"]),
            "offset": float(about["offset"]),
            "outline": {str(name): [int(number) for number in sides] for name, sides in about["layers"].items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FlowMapError(f"{path.name}: its header `{HEADER}` is damaged ({error!r}); export it again") from error
    if version != VERSION:
        raise FlowMapError(
            f"{path.name} has version {version}, this node reads {VERSION}; take the node of that release"
        )
    if found["family"] not in MODELS:
        raise FlowMapError(f"{path.name} is for {found['family']!r}; this node knows {', '.join(MODELS)}")
    if found["mode"] not in ("r", "t-r") or not 0 <= found["gate"] <= 1:
        raise FlowMapError(f"{path.name}: mode {found['mode']!r}, gate {found['gate']}; expected r or t-r, and 0 to 1")
    return found


def _euler(sigmas: Sequence[float], options: Mapping[str, Any]) -> list[float]:
    if options.get("s_churn", 0) > 0:
        raise FlowMapError("`s_churn` above 0 moves the start of a step; a flow map needs it at 0")
    return list(sigmas[1:])


def _ancestral(sigmas: Sequence[float], options: Mapping[str, Any]) -> list[float]:
    """The step goes further down than the next sigma, and noise brings it back up."""
    eta = options.get("eta", 1.0)
    return [end * (1 + (end / start - 1) * eta) for start, end in zip(sigmas, sigmas[1:], strict=False)]


def _lcm(sigmas: Sequence[float], options: Mapping[str, Any]) -> list[float]:
    """Each step goes to the image at sigma 0, and noise brings it back up."""
    return [0.0 for _ in sigmas[1:]]


#: Name of a sampler's function in ComfyUI -> where its steps end. Those of others are not one call of the network from
#: the step's start to its end, so that no end would be right.
SAMPLERS: Mapping[str, Callable[[Sequence[float], Mapping[str, Any]], list[float]]] = {
    "sample_euler": _euler,
    "sample_euler_ancestral": _ancestral,
    "sample_lcm": _lcm,
}


@dataclass(kw_only=True)
class Steps:
    """Holds where the steps of one run of a sampler start and end, in sigma.

    Args:
        placed: the second embedder's layers on the device of the run, once they are there.
    """

    starts: Sequence[float]
    ends: Sequence[float]
    placed: list[dict[str, Tensor]] = field(default_factory=list)

    def end(self, sigma: float) -> float:
        """Return where the step ends that starts at ``sigma``.

        Raises:
            FlowMapError: no step starts there.
        """
        near = [k for k, start in enumerate(self.starts) if math.isclose(start, sigma, rel_tol=1e-5, abs_tol=1e-7)]
        if not near:
            starts = ", ".join(f"{start:.4g}" for start in self.starts)
            raise FlowMapError(
                f"the network was called at sigma {sigma:.6g}, where no step starts ({starts}), so the end of the step "
                "is not known; another node calls the network between the sampler's steps"
            )
        # Of two steps that start at one sigma the first has no length.
        return self.ends[near[-1]]


def steps_of(sampler: str, sigmas: Sequence[float], options: Mapping[str, Any]) -> Steps:
    """Return the steps of a sampler.

    Args:
        sampler: name of its function.
        sigmas: one more than steps, falling.
        options: the sampler's own.

    Raises:
        FlowMapError: its steps are not those of a flow map.
    """
    if sampler not in SAMPLERS:
        known = ", ".join(name.removeprefix("sample_") for name in SAMPLERS)
        raise FlowMapError(
            f"sampler {sampler.removeprefix('sample_')!r} calls the network within a step, or combines several calls, "
            f"and a flow map must know where each call's step ends. Choose {known} or ddim"
        )
    if any(end > start for start, end in zip(sigmas, sigmas[1:], strict=False)):
        raise FlowMapError("the sigmas rise; a flow map goes from noise to the image only")
    return Steps(starts=list(sigmas[:-1]), ends=SAMPLERS[sampler](sigmas, options))


def sinusoids(angle: float, like: Tensor) -> Tensor:
    """Return cosines and sines ``[F]`` of ``angle`` times falling frequencies, as the networks make them.

    Args:
        like: ``[..., F]``, whose type they get.
    """
    half = like.shape[-1] // 2
    places = torch.arange(half, dtype=torch.float32, device=like.device)
    angles = angle * torch.exp(-math.log(10000) * places / half)
    return torch.cat([angles.cos(), angles.sin()]).to(like.dtype)


def embedded(inputs: Tensor, layers: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the second embedding ``[D]`` of sines and cosines ``[F]``, in single precision."""
    first, second = layers
    hidden = torch.nn.functional.linear(inputs.float(), first["weight"], first.get("bias"))
    return torch.nn.functional.linear(torch.nn.functional.silu(hidden), second["weight"], second.get("bias"))


class TellSteps:
    """Notes at the start of a sampler's run where its steps end. It wraps ``sampler_sample``."""

    def __call__(self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *args: Any, **kwargs: Any) -> Any:
        sampler = executor.class_obj
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
        steps = steps_of(name, sigmas.tolist(), getattr(sampler, "extra_options", {}))
        # These options are a copy for this run.
        extra_args["model_options"]["transformer_options"][KEY] = steps
        return executor(guider, sigmas, extra_args, *args, **kwargs)


class BlendTimes:
    """Blends the second embedding into the network's during a call. It wraps ``apply_model``."""

    def __init__(self, flow_map: FlowMapFile):
        self.flow_map = flow_map

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] = {},  # noqa: B006 (as ComfyUI declares it)
        **kwargs: Any,
    ) -> Any:
        steps = transformer_options.get(KEY)
        if steps is None:
            raise FlowMapError(
                "the network of a flow map was called outside a sampler's run, so the end of the step is not known"
            )
        starts = t.flatten()
        if bool((starts != starts[0]).any()):
            raise FlowMapError("samples of one batch are at different sigmas; a flow map needs one for all")
        start = float(starts[0])
        end = steps.end(start)
        d = end if self.flow_map.mode == "r" else start - end
        angle = self.flow_map.scale * d + self.flow_map.offset
        network = executor.class_obj.diffusion_model
        embedder = getattr(network, "_orig_mod", network).get_submodule(self.flow_map.embedder)

        def blend(module: Any, args: tuple, output: Tensor) -> Tensor:
            inputs = args[0]
            each = inputs.reshape(-1, inputs.shape[-1])
            if len(each) != len(t) and bool((each != each[0]).any()):
                raise FlowMapError(
                    "parts of one sample have different times, as when a video starts from an image that is given; "
                    "flow maps are known for one time only"
                )
            if not steps.placed or steps.placed[0]["weight"].device != output.device:
                steps.placed = [
                    {part: tensor.to(output.device, torch.float32) for part, tensor in layer.items()}
                    for layer in self.flow_map.second
                ]
            second = embedded(sinusoids(angle, inputs), steps.placed)
            # lerp returns its first argument exactly where both are equal.
            return torch.lerp(output.float(), second.expand_as(output), self.flow_map.gate).to(output.dtype)

        handle = embedder.register_forward_hook(blend)
        try:
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            handle.remove()


def refuse_other_model(flow_map: FlowMapFile, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a model is one that a flow map is for.

    Args:
        kind: name of ComfyUI's class of the model.
        shapes: original name of a weight, without ``diffusion_model.`` -> its shape.

    Raises:
        FlowMapError: it is another one.
    """
    wanted, name = MODELS[flow_map.family], flow_map.path.name
    if kind not in wanted:
        raise FlowMapError(
            f"{name} is a flow map for {flow_map.family}, trained on {flow_map.base!r}; this model is ComfyUI's "
            f"{kind}, not {' or '.join(wanted)}. Load {flow_map.base!r}, or a finetune of it"
        )
    own = outlined(shapes)
    for layer, sides in flow_map.outline.items():
        if list(sides) != own.get(layer, [0, 0, 0]):
            raise FlowMapError(
                f"{name} was trained on {flow_map.base!r}, which has {_sides(sides)} `{layer}`; this model has "
                f"{_sides(own.get(layer, [0, 0, 0]))}. Load {flow_map.base!r}, or a finetune of it"
            )
    for layer, found in zip(flow_map.layers, flow_map.second, strict=True):
        if shapes.get(f"{layer}.weight") != tuple(found["weight"].shape):
            raise FlowMapError(
                f"{name} was trained on {flow_map.base!r}, whose `{layer}` has {list(found['weight'].shape)} numbers; "
                f"this model has {list(shapes.get(f'{layer}.weight', []))}. Load {flow_map.base!r}, or a finetune of it"
            )


def outlined(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """Return the outline of a network, as `FlowMapFile` has it, from the shapes of its weights."""
    found: dict[str, list[int]] = {}
    for key, shape in shapes.items():
        if len(shape) > 1 and key.endswith(".weight"):
            total = found.setdefault(_BLOCK.sub(".#.", key.removesuffix(".weight")), [0, 0, 0])
            total[:] = [total[0] + 1, total[1] + shape[0], total[2] + shape[1]]
    return found


def _sides(sides: Sequence[int]) -> str:
    count, outputs, inputs = sides
    return f"{count} layers with {outputs} outputs and {inputs} inputs" if count else "no layer"


def apply_flow_map(model: Any, flow_map: FlowMapFile) -> Any:
    """Return a copy of a ComfyUI ``MODEL`` that samples as a flow map; the given one stays as it is.

    Raises:
        FlowMapError: it is another model than the flow map's, or has one already.
    """
    import comfy.lora
    import comfy.lora_convert
    import comfy.model_sampling
    from comfy.patcher_extension import WrappersMP

    weights = {
        key.removeprefix("diffusion_model."): tuple(getattr(weight, "tensor_shape", weight.shape))
        for key, weight in model.model.state_dict().items()
    }
    refuse_other_model(flow_map, type(model.model).__name__, weights)
    if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise FlowMapError("the model's sampling is not that of a flow model (another node changed it)")
    if model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        raise FlowMapError("this model has a flow map already; load one only")
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(flow_map.lora)), names)
    copy = model.clone()
    taken = {key if isinstance(key, str) else key[0] for key in copy.add_patches(patches, 1.0)}
    stems = {key.partition(mark)[0] for key in flow_map.lora for mark in _MARKS if mark in key}
    lost = sorted(stem for stem in stems if f"{stem}.weight" not in taken)
    if lost:
        raise FlowMapError(
            f"ComfyUI does not take {len(lost)} layers of {flow_map.path.name}, the first `{lost[0]}`; it was trained "
            f"on {flow_map.base!r}, load that model"
        )
    copy.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, TellSteps())
    copy.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, BlendTimes(flow_map))
    return copy


#: What follows a layer's name in the keys of LoRA, LoHa and LoKr.
_MARKS = (".lora_", ".hada_", ".lokr_", ".alpha")


class FlowMapLoader:
    """The node: a model and a file of ComfyUI's folder ``loras`` in, the model as a flow map out."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "loaders"
    DESCRIPTION = (
        "Lets a model sample as the flow map that was trained on it, in few steps. Use it with euler, ddim, "
        "euler_ancestral or lcm."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        import folder_paths

        return {"required": {"model": ("MODEL",), "flow_map": (folder_paths.get_filename_list("loras"),)}}

    def load(self, model: Any, flow_map: str) -> tuple[Any]:
        import folder_paths

        return (apply_flow_map(model, read_flow_map(folder_paths.get_full_path_or_raise("loras", flow_map))),)


NODE_CLASS_MAPPINGS = {"FlowhooksFlowMap": FlowMapLoader}
NODE_DISPLAY_NAME_MAPPINGS = {"FlowhooksFlowMap": "Load Flow Map (flowhooks)"}

"""What learning a pipeline of released widths costs: seconds, runs, prompt encodings, forwards, decodings.

``python -m benchmarks.probe_cost [NAME ...]`` builds each pipeline at random weights on the CPU, its networks of the
released width and configuration with one layer of each kind, and its text encoders with as few layers as the pipeline
reads; probes it; prints a table, and writes ``docs/evidence/probe_cost.json``. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from benchmarks.measure import machine
from benchmarks.memory_plan import write_folder
from benchmarks.released_sizes import RELEASED
from flowhooks.probe import probe
from flowhooks.probe.runs import find_networks
from flowhooks.quiet import quiet_libraries
from tests.families import tiny

PIXELS, TOKENS, FRAMES = 128, 128, 5
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "probe_cost.json"
#: What is counted -> its column.
COUNTED = {
    "__call__": "runs",
    "encode_prompt": "prompt encodings",
    "forward": "network forwards",
    "decode": "decodings",
}
_Z_IMAGE: Mapping[str, Mapping[str, Any]] = {
    "transformer": {
        "in_channels": 16,
        "dim": 3840,
        "n_refiner_layers": 1,
        "n_heads": 30,
        "n_kv_heads": 30,
        "cap_feat_dim": 2560,
        "axes_dims": (32, 48, 48),
        "axes_lens": (1536, 512, 512),
    },
    "text_encoder": RELEASED["flux2-klein"]["text_encoder"],
    "vae": RELEASED["flux"]["vae"],
}


@dataclass(frozen=True, kw_only=True)
class Wide:
    """A pipeline of a released model's widths.

    Args:
        name: the model's.
        pipeline: of the tiny pipelines.
        layers: settings by which each part has few layers; parts that are named with nothing else stay tiny.
        arguments: of every call, beside those that all pipelines get.
    """

    name: str
    pipeline: str
    layers: Mapping[str, Mapping[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """Return part -> settings, those of the released model with few layers."""
        released = {**RELEASED, "z-image": _Z_IMAGE}[self.pipeline]
        return {part: _deep(settings, self.layers.get(part, {})) for part, settings in released.items()}


_ONE_DECODER = {"num_hidden_layers": 1, "layer_types": ("full_attention",)}
WIDE = (
    Wide(
        name="SD3.5-medium",
        pipeline="sd3",
        layers={
            "transformer": {"num_layers": 1, "dual_attention_layers": (0,)},
            "text_encoder": {"num_hidden_layers": 2},
            "text_encoder_2": {"num_hidden_layers": 2},
        },
    ),
    Wide(
        name="FLUX.1",
        pipeline="flux",
        layers={
            "transformer": {"num_layers": 1, "num_single_layers": 1},
            "text_encoder": {"num_hidden_layers": 1},
            "text_encoder_2": {"num_layers": 1, "num_decoder_layers": 1},
        },
    ),
    Wide(
        name="FLUX.2-klein-4B",
        pipeline="flux2-klein",
        layers={
            "transformer": {"num_layers": 1, "num_single_layers": 1},
            "text_encoder": {"num_hidden_layers": 4, "layer_types": ("full_attention",) * 4},
        },
        # Of the released 36 layers the pipeline reads the 9th, the 18th and the 27th.
        arguments={"text_encoder_out_layers": (1, 2, 3)},
    ),
    Wide(
        name="Qwen-Image",
        pipeline="qwen-image",
        layers={
            "transformer": {"num_layers": 1},
            "text_encoder": {"text_config": _ONE_DECODER, "vision_config": {"depth": 1, "fullatt_block_indexes": (0,)}},
        },
    ),
    Wide(
        name="Z-Image",
        pipeline="z-image",
        layers={
            "transformer": {"n_layers": 1},
            # The pipeline reads the last layer but one.
            "text_encoder": {"num_hidden_layers": 2, "layer_types": ("full_attention",) * 2},
        },
    ),
    Wide(
        name="Wan 2.1 1.3B",
        pipeline="wan",
        layers={"transformer": {"num_layers": 1}, "text_encoder": {"num_layers": 1, "num_decoder_layers": 1}},
        arguments={"num_frames": FRAMES},
    ),
)


def _deep(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    inner = {k: _deep(settings.get(k, {}), v) for k, v in more.items() if isinstance(v, Mapping)}
    return {**settings, **more, **inner}


def build(wide: Wide) -> Any:
    """Build a pipeline at random weights; parts without released settings stay tiny."""
    pipe = tiny(wide.pipeline)
    with tempfile.TemporaryDirectory() as place:
        folder = write_folder(wide.pipeline, wide.parts, Path(place) / "pipeline")
        built = {part: _built(getattr(pipe, part), folder / part) for part in wide.parts}
    pipe.register_modules(**built)
    # A pipeline may count pixels a latent, or the length of a text, when it is made.
    made = type(pipe)(**{**pipe.components, **_plain(pipe)})
    made.set_progress_bar_config(disable=True)
    return made


def _plain(pipe: Any) -> dict[str, Any]:
    """Return the settings of a pipeline that are no components."""
    return {name: value for name, value in pipe.config.items() if name[0] != "_" and name not in pipe.components}


def _built(part: Any, folder: Path) -> Any:
    kind = type(part)
    with init_empty_weights(include_buffers=False):
        if hasattr(kind, "load_config"):
            network = kind.from_config(kind.load_config(folder))
        else:
            network = kind(type(part.config).from_pretrained(folder))
    network.eval()
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            # Wide enough apart that a wrong prediction shows, and small enough that none overflows.
            filled = torch.empty(weight.shape).uniform_(-0.03, 0.03)
            if name == "weight" and weight.dim() == 1:
                filled += 1
            setattr(module, name, torch.nn.Parameter(filled, requires_grad=False))
    if hasattr(network, "tie_weights"):
        network.tie_weights()
    return network


@contextmanager
def counting(pipe: Any, count: Counter[str]) -> Iterator[None]:
    """Count runs and prompt encodings of a pipeline, forwards that reach a block of its networks, and decodings."""
    blocks = [
        next(m for m in n.modules() if isinstance(m, torch.nn.ModuleList) and len(m))[0]
        for n in find_networks(pipe).values()
    ]
    kind, vae = type(pipe), type(pipe.vae)
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(lambda *_: count.update(["forward"])).remove)
        for owner, method in ((kind, "__call__"), (kind, "encode_prompt"), (vae, "decode")):
            restore = partial(setattr, owner, method, vars(owner)[method]) if method in vars(owner) else None
            stack.callback(restore or partial(delattr, owner, method))
            setattr(owner, method, _counted(getattr(owner, method), method, count))
        yield


def _counted(own: Callable[..., Any], name: str, count: Counter[str]) -> Callable[..., Any]:
    @wraps(own)
    def called(*args: Any, **kwargs: Any) -> Any:
        count[name] += 1
        return own(*args, **kwargs)

    return called


def measure(wide: Wide, pixels: int, tokens: int) -> dict[str, Any]:
    """Build a pipeline, probe it once, and return what it cost."""
    pipe = build(wide)
    weights = {
        name: sum(each.numel() for each in part.parameters())
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    count: Counter[str] = Counter()
    arguments = {"max_sequence_length": tokens, **wide.arguments}
    wall, processor = time.perf_counter(), time.process_time()
    with counting(pipe, count):
        probe(pipe, height=pixels, width=pixels, arguments=arguments)
    return {
        "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        **{column: count[method] for method, column in COUNTED.items()},
        "weights": weights,
        "peak_bytes_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(wide.pipeline for wide in WIDE)}")
    parser.add_argument("--pixels", type=int, default=PIXELS, help="of the images (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="max_sequence_length (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="rows that are not measured stay in it")
    arguments = parser.parse_args()
    known = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else {}
    rows = known.get("pipelines", {})
    print("| pipeline | processor seconds | seconds | " + " | ".join(COUNTED.values()) + " |")
    print("|" + "---|" * (3 + len(COUNTED)))
    for wide in WIDE:
        if arguments.names and wide.pipeline not in arguments.names:
            continue
        with quiet_libraries():
            row = {**measure(wide, arguments.pixels, arguments.tokens), "pixels": arguments.pixels}
        rows[wide.name] = {**row, "tokens": arguments.tokens}
        cells = [row["processor_seconds"], row["seconds"], *(row[column] for column in COUNTED.values())]
        print(f"| {wide.name} | " + " | ".join(map(str, cells)) + " |", flush=True)
        ordered = {each.name: rows[each.name] for each in WIDE if each.name in rows}
        what = "probe(pipe) once, in fp32, one layer of each kind of the network at the released width"
        facts = {"what": what, "pipelines": ordered, "machine": machine()}
        arguments.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        gc.collect()


if __name__ == "__main__":
    main()

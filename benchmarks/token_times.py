"""What a time per token costs on a FLUX of FLUX.1's proportions: time and memory over a plain forward.

``python -m benchmarks.token_times`` prints JSON. Memory is compared with embedding every token: the same network told
an embedding ``[B, N, D]``, so that every modulation is computed, and kept for backward, for each token. That shares no
code with the levels, and must predict the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import interleaved, machine, ratio
from flowhooks.probe import Condition, FlowModel, TokenSigma, probe
from flowhooks.quiet import quiet_libraries
from flowhooks.testing import tiny

#: Pixels on a side of a token: the tiny VAE's factor and FLUX's packing.
PIXELS = 4
LORA = LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


class EachToken(Tensor):
    """An embedding ``[B, N, D]`` where a network expects ``[B, D]``: when it makes room for tokens, they are there."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name, kwargs = function.__name__, kwargs or {}
        bare = [arg.as_subclass(Tensor) if isinstance(arg, EachToken) else arg for arg in args]
        if name in ("unsqueeze", "__getitem__"):
            return args[0]
        if name == "chunk":
            return tuple(part.as_subclass(EachToken) for part in bare[0].chunk(args[1], -1))
        result = function(*bare, **kwargs)
        meets_tokens = any(type(arg) is Tensor and arg.dim() == 3 for arg in args)
        return result if meets_tokens or not isinstance(result, Tensor) else result.as_subclass(EachToken)


@contextmanager
def every_token_embedded(network: nn.Module, told: TokenSigma, text: int) -> Iterator[None]:
    """In the block a FLUX ``network`` embeds the time of each token of one sample, ``text`` tokens before the
    image's. The modulation of text alone, whose tokens share a time, is computed once."""
    times = torch.cat([told.sigmas[0, :1].expand(text), told.each[0]])
    parts = {"norm1": slice(text, None), "norm1_context": slice(1), "norm": slice(None), "norm_out": slice(text, None)}

    def part(module: nn.Module, args: tuple, kwargs: dict[str, Any], *, tokens: slice) -> Any:
        def cut(value: Any) -> Any:
            if not isinstance(value, EachToken):
                return value
            return value.as_subclass(Tensor)[:, tokens].as_subclass(EachToken)

        return tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}

    with ExitStack() as stack:
        embedder = network.time_text_embed
        stack.callback(embedder.register_forward_pre_hook(lambda module, args: (times * 1000, *args[1:])).remove)
        stack.callback(
            embedder.register_forward_hook(lambda module, args, out: out.unsqueeze(0).as_subclass(EachToken)).remove
        )
        for name, module in network.named_modules():
            if (tokens := parts.get(name.rpartition(".")[2])) is not None and hasattr(module, "silu"):
                hook = module.register_forward_pre_hook(partial(part, tokens=tokens), with_kwargs=True)
                stack.callback(hook.remove)
        yield


def wide_flux(width: int, double: int, single: int) -> Any:
    """The tiny FLUX pipeline with a transformer of this width and these numbers of blocks."""
    from diffusers import FluxTransformer2DModel

    pipe = tiny("flux")
    torch.manual_seed(0)
    config = {
        **pipe.transformer.config,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": 128,
        "num_attention_heads": width // 128,
        "axes_dims_rope": (16, 56, 56),
    }
    pipe.transformer = FluxTransformer2DModel.from_config(config).eval()
    return pipe


class Setting:
    """One noisy sample, a quarter of its tokens at a second level, and three ways to predict."""

    def __init__(self, model: FlowModel, side: int):
        self.model = model
        layout = model.layout(PIXELS * side, PIXELS * side)
        generator = torch.Generator().manual_seed(1)
        self.noisy = torch.randn(1, *layout.sample_shape, generator=generator)
        index = (torch.rand(1, model.tokens(self.noisy).count, generator=generator) < 0.25).long()
        self.told = TokenSigma(sigmas=torch.tensor([[0.8, 0.3]]), index=index)
        self.condition: Condition = model.encode_prompts(["a photo of two"])
        self.text = self.condition.samples[0]["encoder_hidden_states"].shape[1]

    def plain(self) -> Tensor:
        return self.model.predict(self.noisy, self.told.sigmas[:, 0], self.condition)

    def levels(self) -> Tensor:
        return self.model.predict(self.noisy, self.told.sigmas[:, 0], self.condition, token_sigma=self.told)

    def every_token(self) -> Tensor:
        with every_token_embedded(self.model.transformer, self.told, self.text):
            return self.plain()

    @property
    def ways(self) -> dict[str, Callable[[], Tensor]]:
        return {"plain": self.plain, "levels": self.levels, "every_token": self.every_token}


def forward(predict: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        predict()


def backward(predict: Callable[[], Tensor]) -> None:
    """Gradients are added to those that are there, so that these take no part in what is measured."""
    predict().square().mean().backward()


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that torch's allocator held on the CPU during ``work``, over what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        watched.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = most = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def measured(setting: Setting, work: Callable[[Callable[[], Tensor]], None], rounds: int) -> dict[str, Any]:
    """Seconds are the processor's, so that neighbours on the machine count less."""
    runs = {name: partial(work, predict) for name, predict in setting.ways.items()}
    timed = {name: runs[name] for name in ("plain", "levels")}
    seconds = interleaved(timed, rounds=rounds, warmup=1, clock=time.process_time)
    peaks = {name: peak_bytes(run) for name, run in runs.items()}
    extra = {name: peaks[name] - peaks["plain"] for name in ("levels", "every_token")}
    return {
        "time_ratio": ratio(seconds["levels"], seconds["plain"]),
        "median_cpu_seconds": {name: round(statistics.median(taken), 3) for name, taken in seconds.items()},
        "plain_peak_bytes": peaks["plain"],
        "extra_peak_bytes": extra,
        "times_less_memory": round(extra["every_token"] / max(extra["levels"], 1), 1),
    }


def token_times(rounds: int, width: int, double: int, single: int, side: int, text: int) -> dict[str, Any]:
    pipe = wide_flux(width, double, single)
    small = {"height": 4 * PIXELS, "width": 4 * PIXELS}
    setting = Setting(probe(pipe, **small, arguments={"max_sequence_length": text}), side)
    network = pipe.transformer
    with torch.no_grad():
        predictions = {name: predict() for name, predict in setting.ways.items()}
    apart = {name: float((predictions[name] - predictions["levels"]).abs().max()) for name in ("plain", "every_token")}
    found = {"forward": measured(setting, forward, rounds)}
    found["forward_backward_all_weights"] = measured(setting, backward, rounds)
    network.requires_grad_(False).zero_grad()
    inject_adapter_in_model(LORA, network)
    found["forward_backward_lora"] = measured(setting, backward, rounds)
    return {
        "what": "predict with two mixed levels against plain predict: time, and memory over it beside that of "
        "embedding every token",
        "shape": {
            "width": width,
            "double_blocks": double,
            "single_blocks": single,
            "picture_tokens": setting.told.index.shape[1],
            "text_tokens": setting.text,
            "weights": sum(p.numel() for p in network.parameters()),
        },
        "predictions_apart_from_levels": apart,
        **found,
        "rounds": rounds,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 128")
    parser.add_argument("--blocks", type=int, nargs=2, default=[1, 2], help="double and single; FLUX.1 has 19 and 38")
    parser.add_argument("--side", type=int, default=32, help="image tokens on a side")
    parser.add_argument("--text", type=int, default=256, help="text tokens")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with quiet_libraries():
        found = token_times(arguments.rounds, arguments.width, *arguments.blocks, arguments.side, arguments.text)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

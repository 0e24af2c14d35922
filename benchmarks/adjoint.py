"""What truncating the adjoint saves: an update by the last K of N steps against all N, and the memory of each.

``python -m benchmarks.adjoint`` prints JSON. A backward is counted as two forwards: with lean co-states, N steps drawn
and K reached, an update takes ``N + 3 (K - 1) + 1 + 3 K``. Products of Jacobians want no gradient of weights and cost
less than that, so the same passes on the bare network are timed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

import flowhooks
from benchmarks.measure import interleaved, machine, ratio
from benchmarks.step import RUN, adapted, batch_of, clock_of, drawn_step, probed
from benchmarks.token_times import peak_bytes

SIZE = {"layers": 8, "heads": 8}
#: Memory is told by fewer blocks as well: every allocation is recorded.
SHALLOW = {"layers": 2, "heads": 8}


def counted(steps: int, reached: int) -> int:
    """Forwards of an update, a backward counted as two: the rollout, the base's velocities with K - 1 products of
    Jacobians, the policy's with K backwards."""
    return steps + 3 * (reached - 1) + 1 + 3 * reached


@contextmanager
def updating(
    steps: int, reached: int, batch_size: int, device: str, adjoint: str = "lean", size: Mapping[str, int] = SIZE
) -> Iterator[Callable[[], int]]:
    """An update of a model of this size, which returns how many forwards it made."""
    method = {
        "prompts": ["one"] * batch_size,
        "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
        "num_inference_steps": steps,
        "truncate": {"last_k": reached},
        "adjoint": adjoint,
        "early": "free",
    }
    run = {**RUN, "hooks": [], "method": {"adjoint_matching": method}, "training": {"train_batch_size": batch_size}}
    with flowhooks.attach(probed(device, **size), run) as session:
        optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-5)

        yield partial(drawn_step, session, optimizer)


def bare(steps: int, batch_size: int, device: str, size: Mapping[str, int] = SIZE) -> Callable[[int], None]:
    """The passes of an update that reaches so many steps, on the network and its adapter alone: no pipeline, no
    image, no reward."""
    model, layers, optimizer = adapted(device, **size)
    batch = batch_of(model, batch_size, device)
    ((_, prompt),) = batch.condition.groups()
    sigma = torch.full((batch_size,), 0.5, device=device)
    call = {"timestep": sigma * 1000, "return_dict": False, **prompt}

    def predict(state: Any) -> Any:
        return model.transformer(hidden_states=state, **call)[0]

    def update(reached: int) -> None:
        with torch.no_grad():
            for _ in range(steps):
                predict(batch.clean)
        for layer in layers:
            layer._disable_adapters = True
        with torch.no_grad():
            predict(batch.clean)
        for _ in range(reached - 1):
            leaf = batch.clean.clone().requires_grad_()
            torch.autograd.grad(predict(leaf), leaf, batch.rejected)
        for layer in layers:
            layer._disable_adapters = False
        for _ in range(reached):
            (predict(batch.clean) - batch.rejected).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def adjoint(rounds: int, steps: int, reached: int, batch_size: int, device: str) -> dict[str, Any]:
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], Any]] = {
            name: stack.enter_context(updating(steps, count, batch_size, device))
            for name, count in (("untruncated", steps), ("truncated", reached))
        }
        forwards = {name: update() for name, update in contenders.items()}
        alone = bare(steps, batch_size, device)
        contenders |= {"bare_untruncated": partial(alone, steps), "bare_truncated": partial(alone, reached)}
        seconds = interleaved(contenders, rounds=rounds, warmup=1, clock=clock_of(device))
    found = ratio(seconds["untruncated"], seconds["truncated"])
    predicted = counted(steps, steps) / counted(steps, reached)
    return {
        "what": f"an update of adjoint matching by all of {steps} steps against the last {reached}, from the rollout "
        "to the optimiser",
        "ratio": found,
        "predicted_ratio": round(predicted, 4),
        "share_of_prediction": round(found["median"] / predicted, 4),
        "bare_ratio": ratio(seconds["bare_untruncated"], seconds["bare_truncated"]),
        "median_seconds": {name: round(statistics.median(taken), 4) for name, taken in seconds.items()},
        "counted_with_backwards": {"untruncated": counted(steps, steps), "truncated": counted(steps, reached)},
        "forwards": forwards,
        "peak_bytes_over_the_model": {kind: peaks(steps, batch_size, device, kind) for kind in ("lean", "full")},
        "batch_size": batch_size,
        "rounds": rounds,
        "machine": machine(),
    }


def peaks(steps: int, batch_size: int, device: str, kind: str) -> dict[int, int]:
    """Steps reached -> the most bytes that an update held over what was there before it. Of the second update: what the
    first one builds for good is no part of it."""
    found = {}
    for count in (2, 3, steps // 2, steps):
        with updating(steps, count, batch_size, device, kind, SHALLOW) as update:
            update()
            if device == "cpu":
                found[count] = peak_bytes(update)
            else:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                update()
                found[count] = torch.cuda.max_memory_allocated() - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--reached", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = adjoint(arguments.rounds, arguments.steps, arguments.reached, arguments.batch_size, arguments.device)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

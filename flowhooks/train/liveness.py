"""Notice in the first steps of a run that a trained tensor gets no gradient; later steps cost nothing.

Notes stay on the device. They are fetched once, at a logged step or a checkpoint, where a run waits for the device
anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flowhooks.adapters.names import first_few
from flowhooks.errors import TrainingError
from flowhooks.kernel.session import Session
from flowhooks.probe.recorder import evaluating
from flowhooks.probe.values import map_tensors, tensors_in
from flowhooks.sharding import any_sharded, is_sharded, local, most_of_all, without_hooks
from flowhooks.train.agreement import gather

#: Least number of watched updates with finite gradients that are not all 0. In the first one no matrix A of a LoRA has
#: a gradient, as B is 0 then.
UPDATES = 8
#: Number of elements of a tensor that are kept, to see whether it moves; larger tensors are sampled.
_KEPT = 1 << 16
#: Largest number of layers that are changed one by one.
_TRIED = 24
_CAUSES = (
    "a hook that freezes or detaches what leads to the loss, a gate that keeps the adapter off, a loss or a weight of "
    "0, masks that are black everywhere"
)


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """Holds a message: ``stop`` ends the run, ``warning`` does not. After an ``open`` verdict the watch goes on."""

    stop: str = ""
    warning: str = ""
    open: bool = False


class Liveness:
    """Watches the first updates of a run, and judges them once.

    Args:
        session: holds what is trained.
        network: predicts.
        autocast: returns the context in which predictions are made.
        begins: whether the run begins at step 0.
    """

    def __init__(
        self,
        session: Session,
        network: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]],
        *,
        begins: bool = True,
    ):
        self.session, self.network, self.autocast = session, network, autocast
        self.begins = begins
        self.parameters: Mapping[str, nn.Parameter] = session.parameters()
        modules = session.assembly.modules().values()
        own = {id(each) for module in modules for each in module.parameters()}
        self._of_network = [id(each) not in own for each in self.parameters.values()]
        self._start = [_sample(each) for each in self.parameters.values()]
        self._reached: Tensor | None = None
        #: Of updates with finite gradients, and of those whose gradients were not all 0: on the device.
        self._finite: Tensor | float = 0.0
        self._live: Tensor | float = 0.0
        self._updates = 0
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._done = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the last training call of the network that is made in the block, until the verdict."""
        self._handle = self.network.register_forward_hook(self._keep, with_kwargs=True)
        try:
            yield
        finally:
            self._release()

    def note(self, rate: float) -> None:
        """Note which gradients of an update are not 0, without waiting for the device.

        Args:
            rate: learning rate of the update.
        """
        if self._done or not rate > 0:
            return
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        rows = [each if each.numel() else each.new_zeros(1) for each in map(local, gradients)]
        peaks = torch.stack([peak.float() for peak in torch._foreach_norm(rows, math.inf)])
        if any_sharded(gradients):
            # Each process has its rows; what follows from them, all of them do together.
            peaks = most_of_all(peaks)
        # A loss scaler skips updates that are not finite.
        finite = peaks.isfinite().all()
        reached = (peaks != 0) & finite
        self._reached = reached if self._reached is None else self._reached | reached
        self._finite, self._live = self._finite + finite.float(), self._live + reached.any().float()
        self._updates += 1

    def check(self, *, last: bool = False) -> str | None:
        """Judge the notes, once enough updates were noted. All processes call this together.

        Args:
            last: whether the run ends here.

        Returns:
            A warning, or None.

        Raises:
            TrainingError: something is certainly not trained; the message names it.
        """
        if self._done or (self._updates < UPDATES and not last):
            return None
        verdict = self._verdict(last)
        if not verdict.open:
            self._release()
        found = next((text for text in gather(verdict.stop) if text), "")
        if found:
            raise TrainingError(found)
        return verdict.warning or None

    def _verdict(self, last: bool) -> _Verdict:
        frozen = [name for name, p in self.parameters.items() if not p.requires_grad]
        if frozen:
            return _Verdict(
                stop=f"{self._of(frozen)} became frozen after the start (`requires_grad` is off), so nothing trains "
                "them; find the hook that freezes them"
            )
        if self._reached is None:
            if not self.begins:
                return _Verdict()
            return _Verdict(
                stop="the learning rate was 0 in every step of this run, so nothing was trained; lower "
                "`training.lr_warmup_steps` or raise `training.max_train_steps`"
            )
        finite, live = torch.stack([torch.as_tensor(self._finite), torch.as_tensor(self._live)]).tolist()
        if finite < UPDATES and not last:
            return _Verdict(open=True)
        reached = dict(zip(self.parameters, self._reached.tolist(), strict=True))
        names = [name for name, of in zip(self.parameters, self._of_network, strict=True) if of]
        if not any(reached[name] for name in names):
            return self._nothing_reached(names, enough=finite >= UPDATES)
        if live < UPDATES:
            # Where most rollouts have no advantage, B of a LoRA may only now have left 0, and A had no gradient yet.
            return _Verdict(open=True)
        moved = self._moved()
        if not any(moved):
            return _Verdict(
                stop=f"no weight moved in {self._updates:,} updates, though gradients came: "
                f"{self._of(list(self.parameters))} are as they were; raise `training.learning_rate`, or look at what "
                "the optimiser is given"
            )
        if (without := self._without_effect()) is not None:
            return without
        dead = [name for name, alive in reached.items() if not alive]
        stuck = [name for name, went in zip(self.parameters, moved, strict=True) if reached[name] and not went]
        return self._judged(dead, stuck)

    def _nothing_reached(self, names: Sequence[str], *, enough: bool) -> _Verdict:
        found = f"no gradient but 0 came to {self._of(names)} in {self._updates:,} updates"
        if self.session.source is not None and self._call is not None:
            sentence = f"{found}; so it is where all samples of a group get one reward, and else it is {_CAUSES}"
            return _Verdict(warning=sentence, open=True)
        sentence = f"{found}, so nothing is trained. Likely causes: {_CAUSES}"
        return _Verdict(stop=sentence) if enough else _Verdict(warning=sentence)

    def _judged(self, dead: Sequence[str], stuck: Sequence[str]) -> _Verdict:
        """Return the verdict on tensors without a gradient. Those on which a prediction depends are cut off from the
        loss; the others are unused."""
        # A module of a hook may be trained in some steps only.
        network = dict(zip(self.parameters, self._of_network, strict=True))
        cut = self._felt([name for name in dead if network[name]])
        if cut:
            return _Verdict(
                stop=f"no gradient but 0 came to {self._of(cut)} in {self._updates:,} updates, though the prediction "
                "depends on them: something on the way to the loss detaches or freezes them. Find that hook, or take "
                "these layers out of `adapter.target_modules`"
            )
        found = []
        if dead:
            found.append(
                f"no gradient but 0 came to {self._of(dead)} in the first {self._updates:,} updates; so it is with a "
                "layer whose output the network or the method does not use, an expert without tokens, a part that "
                "has its turn in other steps"
            )
        if stuck:
            found.append(
                f"{self._of(stuck)} did not move in the first {self._updates:,} updates: these were too small for the "
                "precision of the weights; raise `training.learning_rate`"
            )
        return _Verdict(warning="; ".join(found))

    def _without_effect(self) -> _Verdict | None:
        """Return a verdict that stops the run if a prediction is the same with the adapter and without it."""
        if self.session.adapter is None or self._call is None:
            return None
        now = self._predicted()
        with self.session.adapter.disabled():
            base = self._predicted()
        if not self._same(now, base):
            return None
        return _Verdict(
            stop=f"the adapter was trained for {self._updates:,} updates and a prediction is the same with it and "
            f"without it. Likely causes: a learning rate that is far too low, a strength (`adapter.alpha`) of 0, "
            f"{_CAUSES}"
        )

    def _felt(self, dead: Sequence[str]) -> list[str]:
        """Return those of these tensors on whose layer a prediction depends."""
        if not dead or self._call is None:
            return []
        base = self._predicted()
        # Where predictions are not repeated to the bit, a change says nothing.
        if not self._same(base, self._predicted()) or not self._changes(dead, base):
            return []
        layers: dict[str, list[str]] = {}
        for name in dead:
            layers.setdefault(self._layer(name), []).append(name)
        if len(layers) > _TRIED:
            return list(dead)
        return [name for names in layers.values() if self._changes(names, base) for name in names]

    def _layer(self, name: str) -> str:
        """Return the name of the layer that a trained tensor belongs to."""
        targets = self.session.adapter.targets if self.session.adapter is not None else ()
        forms = ((target, (target, target.replace(".", "_"))) for target in targets)
        found = [target for target, ways in forms if any(f"{way}." in f"{name}." for way in ways)]
        return max(found, key=len, default=name)

    def _changes(self, names: Iterable[str], base: Sequence[Tensor]) -> bool:
        parameters = [self.parameters[name] for name in names]
        kept = [local(each).detach().clone() if isinstance(each, DTensor) else each.data for each in parameters]
        try:
            torch.clear_autocast_cache()
            for each in parameters:
                if isinstance(each, DTensor):
                    local(each).add_(1)
                else:
                    each.data = each.data + 1
            return not self._same(base, self._predicted())
        finally:
            for each, data in zip(parameters, kept, strict=True):
                if isinstance(each, DTensor):
                    local(each).copy_(data)
                else:
                    each.data = data
            torch.clear_autocast_cache()

    @torch.no_grad()
    def _predicted(self) -> list[Tensor]:
        assert self._call is not None
        args, kwargs = self._call
        # Past the hooks of the network itself: a gate reads the state of a scheduler that has gone on since.
        with evaluating(self.network), self.autocast(), without_hooks(self.network):
            return [each.clone() for each in tensors_in(self.network.forward(*args, **kwargs))]

    def _same(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
        """Return whether two predictions are one, to the bit; on every process where all must call the network on."""
        same = all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        if not is_sharded(self.network):
            return same
        return not most_of_all(torch.tensor(float(not same), device=a[0].device))

    def _moved(self) -> list[bool]:
        still = [
            (_sample(each) == start).all() for each, start in zip(self.parameters.values(), self._start, strict=True)
        ]
        moved = (~torch.stack(still)).float()
        return (most_of_all(moved) if any_sharded(self.parameters.values()) else moved).bool().tolist()

    def _keep(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # Where an input has a gradient, that of the output may be the input's, and what is trained be off.
        if any(each.requires_grad for each in tensors_in(output)) and not any(
            each.requires_grad for each in tensors_in((args, kwargs))
        ):
            self._call = map_tensors((args, kwargs), Tensor.detach)

    def _release(self) -> None:
        self._done = True
        self._handle.remove()
        self._call, self._start = None, []

    def _of(self, names: Sequence[str]) -> str:
        return f"{len(names):,} of {len(self.parameters):,} trained tensors ({first_few(list(names))})"


def _sample(parameter: nn.Parameter) -> Tensor:
    flat = local(parameter).detach().reshape(-1)
    return flat[:: max(1, math.ceil(flat.numel() / _KEPT))].clone()

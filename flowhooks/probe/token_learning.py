"""Learn and verify times per token.

All runs have attention removed, so that each token sees only itself: tokens that then depend on the sample are the
image's, and a prediction with mixed times must be, token by token, that of the token's own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import StopForward
from flowhooks.probe.levels import ALL, BETWEEN, FIRST, LAST, NONE, Broadcast, ImageTokenSpan
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.tokens import TimeEntry, Tokens, TokenSigma, called_with_token_times, leveled
from flowhooks.probe.values import map_tensors
from flowhooks.probe.weight_names import Path, with_shared_names
from flowhooks.sharding import gathered
from flowhooks.splice import restore_attributes

if TYPE_CHECKING:
    from flowhooks.probe.layout import Layout
    from flowhooks.probe.model import FlowModel

#: Digits of a token's number are sent as powers of two, by which floating point scales exactly.
DIGITS = 8
#: Exceptions that a network may raise at levels that it does not expect.
REFUSALS = (ModelError, RuntimeError, TypeError, AttributeError, ValueError, IndexError, AssertionError)


class _Alone(TorchFunctionMode):
    """Replaces attention so that each token sees only itself."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        query, key, value = (*args, *(kwargs.get(n) for n in ("query", "key", "value")[len(args) :]))[:3]
        return query if query.shape[-1] == value.shape[-1] else value


@dataclass(eq=False)
class _Learner:
    """Watches the levels of two samples that differ in their numbers only.

    Args:
        behind: number of tokens of references that follow those of the image.
        count: number of image tokens, from the first broadcast with them.
    """

    behind: int = 0
    count: int = 0
    places: dict[tuple[Path, int], str | None] = field(default_factory=dict)

    def place(self, meeting: Broadcast) -> str | None:
        place = self._find(meeting)
        key = meeting.path, meeting.other.dim()
        if self.places.setdefault(key, place) != place:
            raise ModelError(f"one modulation serves text and image: {' '.join(meeting.path)}")
        return place

    def _find(self, meeting: Broadcast) -> str | None:
        if meeting.other.shape[meeting.batch] == 1:
            return None
        follows = follows_sample(meeting)
        count = int(follows.sum())
        self.count = self.count or count
        total = len(follows)
        if count == 0:
            # The embedding of another time may be added to all parts of a modulation.
            return None if total == 1 or meeting.expanded else NONE
        start = int(follows.float().argmax())
        if count != self.count or not bool(follows[start : start + count].all()):
            raise ModelError(
                f"of {total} tokens that are modulated at once {count} depend on the sample, and the image has "
                f"{self.count}; attention that is not torch's, or layers in which tokens see each other"
            )
        if count == total:
            return ALL
        after = total - start - count
        if start and after and after != self.behind:
            raise ModelError(
                f"the image's tokens stand between {start} and {after} others, of which those behind are not the "
                f"{self.behind} of its references, so their place at other sizes is unknown"
            )
        return FIRST if not start else BETWEEN if after else LAST


def follows_sample(meeting: Broadcast) -> Tensor:
    """Return for ``[tokens]`` of two samples whether most of a token's numbers differ by more than rounding."""
    axes = (meeting.batch, *meeting.tokens)
    first, second = meeting.other.detach().movedim(axes, tuple(range(len(axes)))).reshape(2, meeting.count, -1)
    rounding = 1e-4 if first.dtype == torch.float32 else 0.05
    differs = (first - second).abs() > rounding * (first.abs() + second.abs())
    return differs.float().mean(-1) > 0.25


def learn_tokens(model: FlowModel, layout: Layout) -> Tokens:
    """Learn and verify times per token at one resolution.

    Raises:
        ModelError: the network cannot be given a time per token, with the reason.
    """
    refused = f"{model.contract.pipeline}'s network cannot be given a time per token"
    with (
        without_side_effects(model.pipe, {model.component: model.transformer}),
        _uncheckpointed(model.transformer),
        # Gradients are taken from the inside of blocks.
        gathered(model.transformer),
        model.without_second_time(),
    ):
        try:
            return _Trial(model, layout).tokens()
        except ModelError as error:
            raise ModelError(f"{refused}: {error}") from error
        except REFUSALS as error:
            raise ModelError(f"{refused}: {type(error).__name__}: {error}") from error


class _Trial:
    """Holds two samples at two sigmas at one resolution, on which everything is tried."""

    def __init__(self, model: FlowModel, layout: Layout):
        self.model, self.layout = model, layout
        generator = torch.Generator().manual_seed(0)
        device = model.device
        self.noisy, self.other = (torch.randn(2, *layout.sample_shape, generator=generator).to(device) for _ in "ab")
        low, high = model.sigma_range
        self.sigmas = torch.tensor([low + part * (high - low) for part in (0.8, 0.3)], device=device).expand(2, 2)
        self.condition = model.example_condition_at(layout).take([0, 0])
        self.prompt = self.condition.to(device, model.dtype).groups()[0][1]
        #: Which numbers of a sample reach the network, bool ``[*sample_shape]``.
        self.seen = torch.ones(layout.sample_shape, dtype=torch.bool) if layout.seen is None else layout.seen

    def tokens(self) -> Tokens:
        if self._convolves():
            raise ModelError("the convolutions of its blocks mix the places of an image, so no token has its own time")
        failed: list[Exception] = []
        for name in self._entries():
            try:
                return self._through(TimeEntry(name=name, calls=self._calls(name)))
            except REFUSALS as error:
                failed.append(error)
        if failed:
            raise failed[0]
        raise ModelError("it has no module that maps only the time")

    def _convolves(self) -> bool:
        """Return whether a block has convolutions over places and channels, as a U-Net's have."""
        network = self.model.transformer
        return any(
            isinstance(layer, nn.Conv2d) and min(layer.kernel_size) > 1 and layer.groups == 1
            for name in self.model.anatomy.blocks
            for layer in network.get_submodule(name).modules()
        )

    def _entries(self) -> Iterator[str]:
        """Yield the time embedder; failing that, the first module whose input is the time only."""
        known = self.model.anatomy.time_embedder
        if known is not None:
            yield known
        first = self._first_timed()
        if first is not None and first != known:
            yield first

    @torch.no_grad()
    def _first_timed(self) -> str | None:
        from flowhooks.probe.anatomy import differ, watched

        early, late = self.sigmas[:1].unbind(1)
        condition = self.condition.take([0])
        reworded = map_tensors(condition.samples, lambda t: 0.9 * t if t.is_floating_point() else t)
        plain, retimed, *others = (
            watched(self.model, *state)
            for state in (
                (self.noisy[:1], early, condition),
                (self.noisy[:1], late, condition),
                (self.other[:1], early, condition),
                (self.noisy[:1], early, replace(condition, samples=reworded)),
            )
        )
        timed = (
            name
            for name, got in plain.items()
            if differ(got, retimed.get(name, [])) and not any(differ(got, other.get(name, [])) for other in others)
        )
        return next(timed, None)

    def _calls(self, name: str) -> int:
        calls: list[int] = []
        handle = self.model.transformer.get_submodule(name).register_forward_pre_hook(lambda *_: calls.append(1))
        with torch.no_grad():
            self.plain(self.noisy, 0)
        handle.remove()
        return len(calls)

    def _through(self, entry: TimeEntry) -> Tokens:
        learner = _Learner(behind=self.layout.behind)
        unknown = TokenSigma(sigmas=self.sigmas, index=torch.zeros(2, 1, dtype=torch.long, device=self.noisy.device))
        with _Alone():
            of_element = self._token_of_element(learner, unknown, entry)
        index = torch.arange(learner.count, device=self.noisy.device) % 2
        index = index.expand(2, -1)
        learner.places.clear()
        with torch.no_grad():
            with _Alone():
                self.leveled(TokenSigma(sigmas=self.sigmas, index=index), entry, learner.place)
            tokens = Tokens(
                count=learner.count,
                of_element=of_element,
                entry=entry,
                places=with_shared_names(learner.places),
                seen=self.layout.seen,
            )
            self._verify(tokens, index)
            if not self.model.anatomy.token_times:
                return tokens
            native = replace(tokens, entry=None, places={})
            self._verify(native, index)
            ours, theirs = (self.predict(self.noisy, each, index) for each in (tokens, native))
            self._compare(ours, theirs, "the network's own times per token and ours")
            return native

    def plain(self, noisy: Tensor, level: int) -> Tensor:
        sigma = self.sigmas[:, level]
        return self._called(noisy, lambda arguments: self.model.transformer(**arguments), sigma)

    def predict(self, noisy: Tensor, tokens: Tokens, index: Tensor, sigmas: Tensor | None = None) -> Tensor:
        token_sigma = TokenSigma(sigmas=self.sigmas if sigmas is None else sigmas, index=index)
        return self._called(
            noisy,
            lambda given: called_with_token_times(self.model, self.layout, tokens, given, token_sigma),
            token_sigma.sigmas[:, 0],
        )

    def leveled(
        self, token_sigma: TokenSigma, entry: TimeEntry, places: ImageTokenSpan, noisy: Tensor | None = None
    ) -> None:
        def call(arguments: Mapping[str, Any]) -> Any:
            with leveled(self.model, self.layout, arguments, token_sigma, entry, places):
                return self.model.transformer(**arguments)

        self._called(self.noisy if noisy is None else noisy, call, token_sigma.sigmas[:, 0])

    def _called(self, noisy: Tensor, call: Callable[[Mapping[str, Any]], Any], sigma: Tensor) -> Tensor:
        model, layout = self.model, self.layout
        arguments = {**model.fixed_arguments(layout, noisy, self.prompt), **model.times(layout, sigma, sigma)}
        return layout.from_network(call(arguments)).float()

    def _token_of_element(self, learner: _Learner, token_sigma: TokenSigma, entry: TimeEntry) -> Tensor:
        """Return the token of each number. Where tokens first enter, the network is linear enough: scaling the gradient
        of token i by a code of i scales the gradient of the sample's numbers alike."""
        met: list[Broadcast] = []

        def first(meeting: Broadcast) -> str | None:
            place = learner.place(meeting)
            if place not in (None, NONE):
                met.append(meeting)
                raise StopForward
            return place

        noisy = self.noisy.clone().requires_grad_(True)
        with torch.enable_grad():
            with suppress(StopForward):
                self.leveled(token_sigma, entry, first, noisy)
            if not met:
                raise ModelError("its time embedding is combined with no tokens of the image")
            (meeting,) = met
            start = int(follows_sample(meeting).float().argmax())
            other = meeting.other
            weights = torch.randn(other.shape, generator=torch.Generator().manual_seed(1)).to(other)

            def gradient(codes: Tensor) -> Tensor:
                spread = codes.new_ones(meeting.count)
                spread[start : start + learner.count] = codes
                sizes = [other.shape[a] if a in meeting.tokens else 1 for a in range(-other.dim(), 0)]
                (found,) = torch.autograd.grad(
                    other, noisy, weights * spread.reshape(sizes).to(other), retain_graph=True
                )
                return found[0].double()

            numbers = torch.arange(learner.count, device=noisy.device)
            plain = gradient(torch.ones_like(numbers, dtype=torch.float))
            seen = self.seen.to(plain.device)
            if not bool(plain[seen].all()):
                raise ModelError("some numbers of the sample that the network sees reach no token")
            found, place = torch.zeros_like(plain), 1
            while place < learner.count:
                scaled = gradient(torch.exp2((numbers // place % DIGITS).float()))
                found += place * torch.log2((scaled / plain).abs()).round().where(seen, 0)
                place *= DIGITS
        of_element = found.long()
        counts = torch.bincount(of_element[seen].clamp(min=0), minlength=learner.count)
        if len(counts) != learner.count or bool((counts != counts[0]).any()):
            raise ModelError("the sample's numbers are not distributed evenly among its tokens")
        return of_element

    def _verify(self, tokens: Tokens, index: Tensor) -> None:
        same = self.sigmas[:, :1].expand(2, 2)
        self._compare(
            self.predict(self.noisy, tokens, index, same), self.plain(self.noisy, 0), "equal levels and one time"
        )
        second = tokens.spread(index) == 1
        with _Alone():
            levels = [self.plain(self.noisy, level) for level in (0, 1)]
            mixed = self.predict(self.noisy, tokens, index)
            touched = self.plain(torch.where(second, self.other, self.noisy), 0)
            isolated = torch.allclose(touched[~second], levels[0][~second], atol=1e-4)
            if not isolated:
                # Convolutions and routers mix tokens too. Text does not reach the image here.
                mixed = self.predict(self.noisy, tokens, torch.ones_like(index))
                second = torch.ones_like(second)
            # Without attention's averages rounding grows, yet a token at the wrong level differs by more than this.
            apart = float((levels[1] - levels[0]).abs().mean())
            self._compare(
                mixed, torch.where(second, levels[1], levels[0]), "without attention, mixed times", apart / 100
            )

    def _compare(self, found: Tensor, expected: Tensor, what: str, least: float = 0.0) -> None:
        allowed = max(1e-4, min(1e-3, least)) if self.model.dtype == torch.float32 else 0.05
        away = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not away <= allowed:
            raise ModelError(f"{what} give predictions {away:.2g} apart, allowed {allowed:g}")


@contextmanager
def _uncheckpointed(network: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off inside the block."""
    modules = [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
    with restore_attributes(*modules):
        for module in modules:
            vars(module)["gradient_checkpointing"] = False
        yield

"""Replace the embedding of one time by a stand-in that holds those of several, and give each image token its own.

The levels of a sample are side by side on the batch axis, ``[B K, ...]``, so that operations on ``[B, ...]`` work on
them: activations, layers (adapters on them included), chunks, new axes, additions of prompt embeddings. Only where
they meet a tensor with an axis of tokens is one level picked for each. Modulation costs K rows, not N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.picking import plus_picked, times_picked
from flowhooks.probe.weight_names import Path, WeightNames

#: Where on the token axis of a modulated tensor the image tokens are; ``between`` is before those of references, which
#: end it, and behind others.
ALL, FIRST, LAST, BETWEEN, NONE = "all", "first", "last", "between", "none"
#: Functions that take weights beside their input.
LAYERS = frozenset({"linear", "layer_norm", "rms_norm"})
#: Functions that use only the dtype or the device of the other tensor.
CASTS = frozenset({"to", "type_as"})
#: Functions that only move axes, so that strides show where the batch axis went.
MOVES = frozenset(
    {
        *("unsqueeze", "squeeze", "chunk", "split", "tensor_split", "unbind", "__getitem__", "select", "narrow"),
        *("transpose", "t", "swapaxes", "permute", "movedim"),
    }
)
#: Functions by which networks combine levels and tokens.
IN_PASSING = {"add": plus_picked, "mul": times_picked, "__mul__": times_picked}
#: Functions that take sizes, that of the batch included.
SIZES = frozenset({"reshape", "view", "expand", "repeat", "flatten", "unflatten"})


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """Describes levels and the tensor that they are combined with; axes count from the end of the latter.

    Args:
        path: path of the levels.
        other: the tensor.
        batch: its batch axis, from the end.
        tokens: its axes of tokens, one after the other.
        expanded: whether the levels have as many rows there, not one.
    """

    path: Path
    other: Tensor
    batch: int
    tokens: tuple[int, ...]
    expanded: bool

    @property
    def count(self) -> int:
        return self.other.shape[self.tokens[0] : self.tokens[-1] + 1].numel()


class _Alignment(NamedTuple):
    """Describes how the axes of levels and of a tensor with tokens lie, counted from the end of the latter.

    Args:
        batch: its batch axis.
        tokens: its axes of tokens, one after the other.
        plain: whether the tensor is ``[B, *tokens, ...]`` and the levels have one row where it has tokens.
        expanded: whether the levels have as many rows as it has tokens.
    """

    batch: int
    tokens: tuple[int, ...]
    plain: bool
    expanded: bool


#: Says where on the token axis of a tensor the image tokens are; None where it has no token axis.
ImageTokenSpan = Callable[[Broadcast], str | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mix:
    """Holds what all levels of one forward share.

    Args:
        index: ``[B, N]``, the level of each image token.
        count: K, the number of levels.
        places: says where on the token axis the image tokens are.
        names: names of weights.
        behind: number of tokens of references behind those of the image.
    """

    index: Tensor
    count: int
    places: ImageTokenSpan
    names: WeightNames
    behind: int = 0
    _moves: dict[tuple[str, int, torch.Size], list[int]] = field(default_factory=dict)
    _spread: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _alignments: dict[Any, _Alignment | None] = field(default_factory=dict)

    def level_of(self, place: str, tokens: int) -> Tensor:
        """Return the level ``[B, tokens]`` of each token; tokens that are not the image's have level 0."""
        return self._once(self._spread, self._level_of, place, tokens)

    def row_of(self, place: str, tokens: int) -> Tensor:
        """Return ``[B, tokens]``, the row of each token's level among the rows of all samples."""
        return self._once(self._rows, self._row_of, place, tokens)

    def axes_of(self, moved: Callable[..., list[int]], step: str, axis: int, shape: torch.Size) -> list[int]:
        """Return where a step of ``moved`` puts the batch axis of a tensor, in each of its results."""
        return self._once(self._moves, moved, step, axis, shape)

    def alignment_of(self, shape: torch.Size, axis: int, other: torch.Size) -> _Alignment | None:
        """Return how rows with the batch at ``axis`` lie to a tensor with tokens; None without tokens."""
        return self._once(self._alignments, self._alignment_of, shape, axis, other)

    def _alignment_of(self, shape: torch.Size, axis: int, other: torch.Size) -> _Alignment | None:
        size, dims = self.index.shape[0], len(other)
        batch = axis - len(shape)
        if dims < 3 or dims < -batch or other[batch] not in (1, size):
            return None
        mine = [1] * (dims - len(shape)) + list(shape)
        axes = [a for a in range(-dims, -1) if a != batch]
        lacking = [a for a in axes if mine[a] == 1]
        if expanded := not lacking:
            lacking = [a for a in axes if mine[a] == other[a]]
        if not lacking or lacking != list(range(lacking[0], lacking[-1] + 1)):
            return None
        aligned = (other[0] * self.count, *[1] * len(lacking), *other[1 + len(lacking) :])
        plain = axis == 0 and lacking[0] == 1 - dims and tuple(shape) == aligned
        return _Alignment(batch, tuple(lacking), plain, expanded)

    def _level_of(self, place: str, tokens: int) -> Tensor:
        size, pictures = self.index.shape
        if pictures > tokens or (place == ALL and pictures != tokens):
            raise ModelError(f"{tokens} tokens are modulated at once, and the image has {pictures}")
        after = {LAST: 0, BETWEEN: self.behind}.get(place, tokens - pictures)
        if tokens < pictures + after:
            raise ModelError(f"{tokens} tokens are modulated at once; the image and its references have more")
        before = self.index.new_zeros(size, tokens - pictures - after)
        return torch.cat([before, self.index, self.index.new_zeros(size, after)], 1)

    def _row_of(self, place: str, tokens: int) -> Tensor:
        level = self.level_of(place, tokens)
        return torch.arange(len(level), device=level.device).unsqueeze(1) * self.count + level

    @staticmethod
    def _once(known: dict[Any, Any], compute: Callable[..., Any], *key: Any) -> Any:
        """Return ``compute(*key)``, computed once for all blocks; in compiled code, whose graph would depend on what is
        known, each time."""
        if torch.compiler.is_compiling():
            return compute(*key)
        if key not in known:
            known[key] = compute(*key)
        return known[key]


class Levels:
    """Behaves like a tensor ``[B, ...]``.

    Args:
        rows: ``[B K, ...]``, the levels of a sample one after the other.
        axis: the batch axis; it may have moved.
    """

    def __init__(self, rows: Tensor, mix: Mix, axis: int = 0, path: Path = ()):
        self.rows, self.mix, self.axis, self.path = rows, mix, axis, path

    @property
    def shape(self) -> torch.Size:
        sizes = list(self.rows.shape)
        sizes[self.axis] //= self.mix.count
        return torch.Size(sizes)

    @property
    def ndim(self) -> int:
        return self.rows.dim()

    def dim(self) -> int:
        return self.rows.dim()

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        raise _impossible("__iter__")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(name)
        method = getattr(Tensor, name)
        if not callable(method):
            value = getattr(self.rows, name)
            if isinstance(value, Tensor):
                raise _impossible(name)
            return value
        return lambda *args, **kwargs: self.__torch_function__(method, (), (self, *args), kwargs)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.__name__
        if name in MOVES:
            return args[0]._moved(function, args, kwargs)
        held: list[Levels] = []
        others: list[Tensor] = []
        _sort(args, held, others)
        if kwargs:
            _sort(tuple(kwargs.values()), held, others)
        first = held[0]
        if name == "contiguous":
            return first
        if name in CASTS and not isinstance(args[0], Levels):
            return function(args[0], first.rows)
        if name in SIZES:
            return first._sized(name, *args[1:], **kwargs)
        path = first.path
        if name in LAYERS or name in CASTS:
            lift: Callable[[Tensor], Tensor] = lambda other: other  # noqa: E731
            named = [weight for weight in map(first.mix.names.of, others) if weight is not None]
            if name in LAYERS:
                path = (named[0],) if named else (*path, name)
        elif others:
            meeting = next(filter(None, map(first._meeting, others)), None)
            if meeting is not None:
                return first._met(function, meeting, held, others, args, kwargs)
            lift, path = first._repeated, (*path, name)
        else:
            lift = first._repeated

        def lifted(leaf: Any) -> Any:
            if isinstance(leaf, Levels):
                return leaf.rows
            return lift(leaf) if isinstance(leaf, Tensor) else leaf

        result = function(*_mapped(args, lifted), **{key: _mapped(value, lifted) for key, value in kwargs.items()})
        if not isinstance(result, Tensor):
            return result
        axis = result.dim() - (first.ndim - first.axis)
        if axis < 0 or result.shape[axis] != first.rows.shape[first.axis]:
            raise _impossible(name)
        return Levels(result, first.mix, axis, path)

    def _moved(self, function: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """Apply a function that moves axes; strides show where, as only the batch axis has one."""
        step = f"{function.__name__}{args[1:]}{kwargs}"
        results = function(self.rows, *args[1:], **kwargs)

        def moved(step: str, axis: int, shape: torch.Size) -> list[int]:
            strides = [0] * len(shape)
            strides[axis] = 1
            marks = function(torch.empty_strided(shape, strides, device="meta"), *args[1:], **kwargs)
            return [self._axis_of(mark, step) for mark in ([marks] if isinstance(marks, Tensor) else marks)]

        axes = self.mix.axes_of(moved, step, self.axis, self.rows.shape)
        if isinstance(results, Tensor):
            return Levels(results, self.mix, axes[0], (*self.path, step))
        pairs = enumerate(zip(results, axes, strict=True))
        return tuple(Levels(part, self.mix, axis, (*self.path, f"{step}[{i}]")) for i, (part, axis) in pairs)

    def _axis_of(self, mark: Tensor, step: str) -> int:
        axis = next((i for i, size in enumerate(mark.shape) if mark.stride(i) and size > 1), None)
        if axis is None or mark.shape[axis] != self.rows.shape[self.axis]:
            raise _impossible(step)
        return axis

    def _sized(self, name: str, *args: Any, **kwargs: Any) -> Levels:
        """Apply a function that takes sizes; where the batch stays in front, its size becomes that of the rows."""
        rows, count, axis = self.rows, self.mix.count, self.axis
        if name in ("expand", "repeat"):
            sizes = list(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            axis += len(sizes) - self.ndim
            if name == "expand" and sizes[axis] == self.shape[self.axis]:
                sizes[axis] = -1
            result = getattr(rows, name)(sizes)
        elif axis:
            raise _impossible(name)
        elif name == "flatten":
            result = rows.flatten(*args, **kwargs)
        elif name == "unflatten":
            place, (size, *rest) = args
            result = rows.unflatten(place, (size * count if place == 0 and size > 0 else size, *rest))
        else:
            sizes = list(args[0] if args and not isinstance(args[0], int) else args)
            if sizes[0] > 0:
                sizes[0] *= count
            result = rows.reshape(sizes)
        if result.shape[axis] % (count * self.mix.index.shape[0]):
            raise _impossible(name)
        return Levels(result, self.mix, axis, (*self.path, name))

    def _meeting(self, other: Tensor) -> tuple[Broadcast, str] | None:
        """Return the broadcast with ``other`` and where the image tokens are, if that holds tokens: a batch, a last
        axis, and others that the levels lack or were expanded to."""
        found = self.mix.alignment_of(self.rows.shape, self.axis, other.shape)
        if found is None:
            return None
        meeting = Broadcast(
            path=self.path, other=other, batch=found.batch, tokens=found.tokens, expanded=found.expanded
        )
        place = self.mix.places(meeting)
        return None if place is None else (meeting, place)

    def _met(
        self,
        function: Any,
        meeting: tuple[Broadcast, str],
        held: list[Levels],
        others: list[Tensor],
        args: tuple,
        kwargs: Any,
    ) -> Any:
        """Apply a function to tokens: every operand with levels picks its rows; ``meeting`` is that of this one."""
        if len(args) == 2 and len(held) == len(others) == 1 and not kwargs and function.__name__ in IN_PASSING:
            broadcast, place = meeting
            found = self.mix.alignment_of(self.rows.shape, self.axis, broadcast.other.shape)
            if found is not None and found.plain and place != NONE:
                tokens, count = broadcast.other, len(broadcast.tokens)
                flat = tokens if count == 1 else tokens.flatten(1, count)
                row = self.mix.row_of(place, flat.shape[1])
                result = IN_PASSING[function.__name__](flat, self.rows.flatten(0, count), row)
                return result if count == 1 else result.view(tokens.shape)

        def picked(leaf: Any) -> Any:
            if not isinstance(leaf, Levels):
                return leaf
            its = meeting if leaf is self else next(filter(None, map(leaf._meeting, others)), None)
            if its is None:
                raise _impossible(function.__name__)
            return leaf._pick(*its)

        return function(*_mapped(args, picked), **{key: _mapped(value, picked) for key, value in kwargs.items()})

    def _pick(self, meeting: Broadcast, place: str) -> Tensor:
        """Return the level of each token, broadcast as the levels are."""
        levels = self.rows.unflatten(self.axis, (-1, self.mix.count)).unbind(self.axis + 1)
        if place == NONE:
            return levels[0]
        axes = (meeting.batch, *meeting.tokens)
        other = meeting.other
        index = self.mix.level_of(place, meeting.count).reshape([other.shape[a] for a in axes])
        if meeting.batch > meeting.tokens[-1]:
            index = index.movedim(0, -1)
        index = index.reshape([other.shape[a] if a in axes else 1 for a in range(-other.dim(), 0)])
        result = levels[0]
        for k, level in enumerate(levels[1:], 1):
            result = torch.where(index == k, level, result)
        return result

    def _repeated(self, other: Tensor) -> Tensor:
        """Repeat a tensor of the batch for the rows."""
        axis = self.axis - self.ndim
        if other.dim() < -axis or other.shape[axis] == 1:
            return other
        if other.shape[axis] != self.shape[self.axis]:
            raise _impossible("a tensor of another batch")
        place = other.dim() + axis
        split = other.unflatten(place, (self.mix.index.shape[0], -1)).unsqueeze(place + 1)
        sizes = [self.mix.count if i == place + 1 else -1 for i in range(split.dim())]
        return split.expand(sizes).flatten(place, place + 2)


def _sort(values: Sequence[Any], held: list[Levels], others: list[Tensor]) -> None:
    """Append levels and tensors in nested lists and tuples to two lists. Written out, as it runs for each operation."""
    for value in values:
        if isinstance(value, Levels):
            held.append(value)
        elif isinstance(value, Tensor):
            others.append(value)
        elif isinstance(value, (tuple, list)):
            _sort(value, held, others)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(each, change) for each in value])
    return change(value)


def _impossible(what: str) -> ModelError:
    return ModelError(f"the network does to its time embedding what cannot be done for several times at once: {what}")


def _operator(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)
    return lambda self, *args, **kwargs: Levels.__torch_function__(method, (), (self, *args), kwargs)


for _name in MOVES - {"__getitem__"}:
    setattr(Levels, _name, _operator(_name))
for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "pow", "matmul", "getitem"):
    setattr(Levels, f"__{_name}__", _operator(f"__{_name}__"))

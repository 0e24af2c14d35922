"""Hold the change of one layer by its factors, and stack, cut and scale it: LoRA, DoRA, LoHa and LoKr, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowhooks.adapters.combine import Factors, truncate
from flowhooks.adapters.dora import decomposed_change, row_norms
from flowhooks.errors import AdapterError

#: Factors with a row for each output.
_OF_ROWS = ("up", "w1_a", "w2_a", "magnitude")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Holds the change of one Linear layer's weight ``[out, in]``.

    Args:
        name: the layer's name.
        kind: ``lora``: ``up @ down``; ``loha``: ``(w1_a @ w1_b) * (w2_a @ w2_b)``; ``lokr``: the Kronecker product of
            ``w1`` and ``w2``, each whole or as a product ``a @ b``; ``dora``: rows of the weight with ``up @ down`` on
            it, of norm ``magnitude``, ``[out]``.
        factors: the factors by these names; of two that are multiplied the first is ``[out, rank]``.
        scale: factor of the change; of a DoRA that of its product.
        base: returns the weight ``[out, in]`` that it changes, on which the change by a DoRA depends; None where that
            is not known.
    """

    name: str
    kind: str
    factors: Mapping[str, Tensor]
    scale: float
    base: Callable[[], Tensor] | None = None

    @property
    def rank(self) -> int | None:
        """Return the number by which tools divide its alpha; None for a LoKr of whole matrices, whose alpha no tool
        reads."""
        inner = {"lora": ("down",), "dora": ("down",), "loha": ("w1_b",), "lokr": ("w2_b", "w1_b")}[self.kind]
        return next((len(self.factors[key]) for key in inner if key in self.factors), None)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the sides of the weight, outputs first."""
        found = self.factors
        if self.kind in ("lora", "dora"):
            return found["up"].shape[0], found["down"].shape[1]
        if self.kind == "loha":
            return found["w1_a"].shape[0], found["w1_b"].shape[1]
        (first, second) = (self._sides("w1"), self._sides("w2"))
        return first[0] * second[0], first[1] * second[1]

    def change(self) -> Tensor:
        """Return the change ``[out, in]``, in float64. Raises `AdapterError` for a DoRA over an unknown weight."""
        if self.kind == "dora":
            return decomposed_change(self.weight(), self._moved(), self.factors["magnitude"])
        found = {key: tensor.double() for key, tensor in self.factors.items()}
        if self.kind == "lora":
            return self.scale * (found["up"] @ found["down"])
        if self.kind == "loha":
            return self.scale * (found["w1_a"] @ found["w1_b"]) * (found["w2_a"] @ found["w2_b"])
        first, second = (found[key] if key in found else found[f"{key}_a"] @ found[f"{key}_b"] for key in ("w1", "w2"))
        return self.scale * torch.kron(first, second)

    def _moved(self) -> Tensor:
        return self.scale * (self.factors["up"].double() @ self.factors["down"].double())

    def weight(self) -> Tensor:
        """Return the weight that it changes. Raises `AdapterError` where that is not known."""
        if self.base is None:
            raise AdapterError(
                f"`{self.name}` is changed by a DoRA, whose change of a weight depends on that weight. Give the folder "
                "of the pipeline that it was trained on with `--model`."
            )
        return self.base()

    def over_base_norms(self) -> Piece:
        """Return a DoRA with magnitudes for programs that divide by the norms of the base's rows, not by those of the
        rows with the change: they then compute the same."""
        weight = self.weight()
        factor = row_norms(weight) / row_norms(weight.double() + self._moved())
        if not bool(factor.all()):
            raise AdapterError(f"`{self.name}` has outputs whose weights in the base are all 0; they have no norm")
        magnitude = (self.factors["magnitude"].double() * factor).float()
        return replace(self, factors={**self.factors, "magnitude": magnitude})

    def times(self, factor: float) -> Piece:
        """Return its change multiplied by a number that goes into the factors; the dtype widens where that would
        round in half precision."""
        key = next(key for key in ("up", "w1", "w1_a") if key in self.factors)
        tensor = self.factors[key]
        exact = tensor.float() * factor
        kept = exact.to(tensor.dtype)
        return replace(self, factors={**self.factors, key: kept if torch.equal(kept.float(), exact) else exact})

    def folded(self) -> Piece:
        """Return the same change with a scale of 1."""
        return self if self.scale == 1 else replace(self.times(self.scale), scale=1.0)

    def rows(self, first: int, last: int) -> Piece:
        """Return the change of the outputs from ``first`` to before ``last``. Raises `AdapterError` where a LoKr does
        not split there."""
        if self.kind == "lokr":
            return self._of_rows(lambda tensor, size: tensor[first // size : last // size], first, last)
        return replace(
            self, factors={key: t[first:last] if key in _OF_ROWS else t for key, t in self.factors.items()}, base=None
        )

    def swapped(self) -> Piece:
        """Return it with the first and second half of the outputs in each other's place. Raises `AdapterError` where
        a LoKr does not split there."""
        half = self.shape[0] // 2
        if self.kind == "lokr":
            return self._of_rows(lambda tensor, size: tensor.roll(half // size, 0), half, 2 * half)
        return replace(
            self,
            factors={
                key: tensor.roll(half, 0).contiguous() if key in _OF_ROWS else tensor
                for key, tensor in self.factors.items()
            },
            base=None,
        )

    def _of_rows(self, change: Callable[[Tensor, int], Tensor], first: int, last: int) -> Piece:
        """Return a LoKr with a change of the rows of the one factor in which whole rows between these lie."""
        outer, size = self._sides("w1")[0], self._sides("w2")[0]
        # A row of the first factor stands for as many outputs as the second has rows.
        name, unit = ("w2", 1) if outer == 1 else ("w1", size)
        if first % unit or last % unit:
            raise AdapterError(
                f"The LoKr of `{self.name}` has blocks of {unit} outputs, and does not split at {first} and {last}"
            )
        key = name if name in self.factors else f"{name}_a"
        return replace(self, factors={**self.factors, key: change(self.factors[key], unit).contiguous()})

    def _sides(self, name: str) -> tuple[int, int]:
        if name in self.factors:
            return self.factors[name].shape[0], self.factors[name].shape[1]
        return self.factors[f"{name}_a"].shape[0], self.factors[f"{name}_b"].shape[1]

    def compact(self) -> Piece | None:
        """Return it without ranks that change nothing; None where no change is left."""
        pairs = {"lora": [("up", "down")], "loha": [("w1_a", "w1_b"), ("w2_a", "w2_b")]}.get(self.kind, [])
        kept = [self.factors[outer].any(0) for outer, _ in pairs]
        if not all(bool(each.any()) for each in kept) or (not pairs and not bool(self.change().any())):
            return None
        if any(int(each.sum()) != int(kept[0].sum()) for each in kept):
            return self
        factors = dict(self.factors)
        for (outer, inner), each in zip(pairs, kept, strict=True):
            factors |= {outer: self.factors[outer][:, each], inner: self.factors[inner][each]}
        return replace(self, factors=factors)

    def as_lora(self, rank: int) -> Piece:
        """Return the best LoRA of at most this rank for the change, of scale 1."""
        if self.kind == "lora":
            return self
        change = self.change()
        outputs, inputs = change.shape
        whole = (
            Factors(down=change, up=torch.eye(outputs, dtype=change.dtype))
            if outputs <= inputs
            else Factors(down=torch.eye(inputs, dtype=change.dtype), up=change)
        )
        found = truncate(whole, rank)
        return Piece(
            name=self.name, kind="lora", factors={"down": found.down.float(), "up": found.up.float()}, scale=1.0
        )


def stacked(name: str, parts: Sequence[Piece | None], rows: Sequence[int]) -> Piece:
    """Return one change for layers of the same inputs stacked along their outputs; None stands for one that does not
    change.

    The inner factors are joined and the outer ones lie on the diagonal, so the ranks add up and the change is exactly
    the stacked changes. That holds for LoHa too, as each of its two products is stacked so.

    Args:
        rows: outputs of each part. A DoRA has norms of rows, so that its parts are stacked too, none of them None.

    Raises:
        AdapterError: the parts are of several kinds, or LoKr, of which a stack is no LoKr.
    """
    present = [part for part in parts if part is not None]
    kinds = {part.kind for part in present}
    if kinds not in ({"lora"}, {"loha"}, {"dora"}):
        raise AdapterError(
            f"`{name}` is one layer, of which {', '.join(f'`{part.name}`' for part in present)} are parts; a stack of "
            f"{' and '.join(sorted(kinds))} changes is not one of them"
        )
    first = present[0]
    # One scale must serve all parts: a part of another has its matrix multiplied by the quotient.
    parts = [None if part is None else part.times(part.scale / first.scale) for part in parts]
    pairs = [("w1_a", "w1_b"), ("w2_a", "w2_b")] if first.kind == "loha" else [("up", "down")]
    factors: dict[str, Tensor] = {}
    for outer, inner in pairs:
        inners = [part.factors[inner] for part in parts if part is not None]
        blocks = [part.factors[outer] for part in parts if part is not None]
        dtype = torch.promote_types(*(blocks[0].dtype, max(blocks, key=lambda t: t.element_size()).dtype))
        matrix = torch.zeros(sum(rows), sum(len(each) for each in inners), dtype=dtype)
        row = column = 0
        for part, height in zip(parts, rows, strict=True):
            if part is not None:
                block = part.factors[outer]
                matrix[row : row + height, column : column + block.shape[1]] = block
                column += block.shape[1]
            row += height
        factors |= {outer: matrix, inner: torch.cat(inners)}
    if first.kind == "dora":
        factors["magnitude"] = torch.cat([part.factors["magnitude"] for part in parts if part is not None])
    return Piece(name=name, kind=first.kind, factors=factors, scale=first.scale)

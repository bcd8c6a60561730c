"""The index of a checkpoint: which range of which tensor is in which file.

A rank saves the ranges that it holds; a rank under any other sharding reads the ranges that it needs.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from math import prod
from pathlib import Path
from typing import Self

from torch import Tensor

from showo_dist.checkpoint.folders import TENSORS

WEIGHT = "weight"
ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTS = (*ADAMW_MOMENTS, "momentum_buffer")  # the last one is Muon's
EMA = "ema"  # moving averages of the weights
KINDS = (WEIGHT, *MOMENTS, EMA)
FORMAT = 1  # of tensors.json


@dataclass(frozen=True)
class Piece:
    """A contiguous range of a flattened tensor, as one rank holds it.

    Attributes:
        kind: one of ``KINDS``.
        name: of the parameter.
        shape: of the whole tensor.
        start: index of the first element in the flattened tensor.
        values_N: the elements; usually a view of the engine's own memory.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    values_N: Tensor

    @property
    def stop(self) -> int:
        return self.start + len(self.values_N)

    @property
    def key(self) -> str:
        """Name in its file; a whole weight has the parameter's name."""
        name = self.name if self.kind == WEIGHT else f"{self.kind}/{self.name}"
        return name if self.is_whole else f"{name}[{self.start}:{self.stop}]"

    @property
    def is_whole(self) -> bool:
        return len(self.values_N) == prod(self.shape)

    def placed_in(self, file: str) -> "Placed":
        """The piece as an entry of the index."""
        place = Slice(self.start, self.stop, file, self.key)
        return Placed(self.kind, self.name, self.shape, place)

    def stored(self) -> Tensor:
        """The tensor to store: a whole tensor in its shape, else the flat range."""
        return self.values_N.view(self.shape) if self.is_whole else self.values_N


def even_share(pieces: Iterable[Piece], rank: int, world: int) -> list[Piece]:
    """One rank's part of replicated state: an equal share of all elements laid end to end."""
    pieces = list(pieces)
    total = sum(len(piece.values_N) for piece in pieces)
    # Integer arithmetic: shares differ by at most one element and cover all elements once.
    first, last = rank * total // world, (rank + 1) * total // world
    share, offset = [], 0
    for piece in pieces:
        size = len(piece.values_N)
        start, stop = max(first - offset, 0), min(last - offset, size)
        if start < stop:
            values_N = piece.values_N[start:stop]
            share.append(Piece(piece.kind, piece.name, piece.shape, piece.start + start, values_N))
        offset += size
    return share


@dataclass(frozen=True)
class Slice:
    """Where a range is stored: elements ``start`` to ``stop`` are tensor ``key`` of ``file``."""

    start: int
    stop: int
    file: str
    key: str


@dataclass
class StoredTensor:
    """A tensor of a checkpoint: its shape and its slices, in order once complete."""

    shape: tuple[int, ...]
    slices: list[Slice] = field(default_factory=list)

    @property
    def is_covered(self) -> bool:
        """Whether the slices hold every element exactly once."""
        # Each slice must start where the previous one ends, from 0 to the size of the tensor.
        ends = [0, *(piece.stop for piece in self.slices)]
        starts = [*(piece.start for piece in self.slices), prod(self.shape)]
        return ends == starts


@dataclass(frozen=True)
class Placed:
    """Where a piece was stored."""

    kind: str
    name: str
    shape: tuple[int, ...]
    slice: Slice


@dataclass
class TensorIndex:
    """All tensors of a checkpoint, by kind and parameter name: ``tensors.json``."""

    tensors: dict[str, dict[str, StoredTensor]]

    @classmethod
    def of(cls, placed: Iterable[Placed]) -> Self:
        """Build the index from the pieces of all ranks."""
        index = cls({kind: {} for kind in KINDS})
        for piece in placed:
            new = StoredTensor(piece.shape)
            index.tensors[piece.kind].setdefault(piece.name, new).slices.append(piece.slice)
        for tensor in index._all():
            # Ranks report in rank order, which is not the order within a tensor.
            tensor.slices.sort(key=lambda part: part.start)
        assert all(tensor.is_covered for tensor in index._all())
        return index

    def _all(self) -> Iterator[StoredTensor]:
        return (tensor for named in self.tensors.values() for tensor in named.values())

    def to_json(self) -> str:
        plain = {
            kind: {
                name: {"shape": tensor.shape, "slices": [astuple(part) for part in tensor.slices]}
                for name, tensor in named.items()
            }
            for kind, named in self.tensors.items()
        }
        return json.dumps({"format": FORMAT, "tensors": plain}, separators=(",", ":")) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the index of a checkpoint whose files were verified.

        Raises:
            ValueError: it is missing, or of another format.
        """
        path = folder / TENSORS
        if not path.is_file():
            raise ValueError(f"{folder}: not a checkpoint to resume from ({TENSORS} is missing)")
        try:
            content = json.loads(path.read_bytes())
            found, stored = content["format"], content["tensors"]
            # Kinds that a version did not know are absent from its files.
            tensors = {
                kind: {name: _stored(value) for name, value in stored.get(kind, {}).items()}
                for kind in KINDS
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None
        if found != FORMAT:
            raise ValueError(f"{path}: format {found}, expected {FORMAT}")
        return cls(tensors)


def _stored(value: dict) -> StoredTensor:
    return StoredTensor(tuple(value["shape"]), [Slice(*part) for part in value["slices"]])

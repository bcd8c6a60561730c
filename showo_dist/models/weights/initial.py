"""Weights of one model fitted to another: rows of tables kept, dropped or newly initialised.

Rows of the embedding table and of the head belong to text tokens, special tokens, image codes or the mask
token (docs/specification.md, section 1). A row keeps its place within its kind: text token 7 stays text
token 7, code 7 stays code 7, and the mask token stays the mask token, wherever they are in the table.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from showo_dist.config.model import ShowoConfig
from showo_dist.models.weights.folder import check_fit
from showo_dist.models.weights.sources import PROJECTOR, Weights
from showo_dist.runtime.numerics import named_generator

RESIZE_KEY = "model.showo.resize"


def kinds(showo: ShowoConfig) -> dict[str, int]:
    """Number of rows of each kind of token, in the table's order."""
    return {
        "text tokens": showo.llm_vocab_size,
        "special tokens": showo.num_new_special_tokens,
        "image codes": showo.codebook_size,
        "mask token": 1,
    }


def kept_rows(old: ShowoConfig, new: ShowoConfig) -> tuple[Tensor, Tensor]:
    """Match the rows of an old table with those of a new one.

    Returns:
        int64 (rows,) indices into the old table, and into the new one.
    """
    old_rows, new_rows = [], []
    old_start = new_start = 0
    for old_count, new_count in zip(kinds(old).values(), kinds(new).values(), strict=True):
        # Kinds are matched one by one: code 7 must stay code 7 even when the text vocabulary grows before it.
        kept = torch.arange(min(old_count, new_count))
        old_rows.append(old_start + kept)
        new_rows.append(new_start + kept)
        old_start, new_start = old_start + old_count, new_start + new_count
    return torch.cat(old_rows), torch.cat(new_rows)


class InitialWeights:
    """fp32 weights of a new model: those of the source, and random ones where the source has none.

    Random weights depend on the seed and the parameter's name alone, not on ranks or on the order of reading.

    Args:
        showo: sizes of the new model.
        expected: its names and shapes.
        source: weights to start from.
        source_showo: their sizes.
        tables: names of the parameters that have a row per token.
        seed: of new rows.
        std: standard deviation of new rows of table and head.

    Attributes:
        changes: one phrase per difference from the source, for the log.

    Raises:
        ValueError: the source does not fit, and ``model.showo.resize`` is false or cannot help.
    """

    def __init__(
        self,
        showo: ShowoConfig,
        expected: Mapping[str, Tensor],
        source: Weights,
        source_showo: ShowoConfig,
        *,
        tables: tuple[str, ...],
        seed: int,
        std: float,
    ) -> None:
        self.expected, self.source, self._seed, self._std = expected, source, seed, std
        self.tables = tables
        self.changes: list[str] = []
        self._rows: tuple[Tensor, Tensor] | None = None
        # Checked before shapes, because the message can then name the key to change.
        if kinds(source_showo) != kinds(showo):
            self._resize(source_showo, showo)
        self._check_rest(showo.resize)

    def _resize(self, old: ShowoConfig, new: ShowoConfig) -> None:
        described = [
            f"{a} {name}" if a == b else f"{a} -> {b} {name}"
            for (name, a), b in zip(kinds(old).items(), kinds(new).values(), strict=True)
        ]
        if not new.resize:
            raise ValueError(
                f"{self.source.folder}: its vocabulary has other sizes than the config "
                f"({', '.join(described)}); set {RESIZE_KEY}=true to keep the rows that both have "
                "and draw new ones"
            )
        self._rows = kept_rows(old, new)
        self.changes.append(f"vocabulary resized ({', '.join(described)})")

    def _check_rest(self, resize: bool) -> None:
        """All weights must fit, except resized tables and an added or dropped projector."""
        found = dict(self.source.meta)
        expected = dict(self.expected)
        # A projector may be added (stage without CLIP to stage with it) or, with resize, dropped.
        has, wants = (any(n.startswith(PROJECTOR) for n in names) for names in (found, expected))
        if has and not wants and not resize:
            raise ValueError(
                f"{self.source.folder}: has a CLIP projector, but model.showo.w_clip_vit is false; "
                f"set {RESIZE_KEY}=true to leave it out"
            )
        if has != wants:
            self.changes.append("CLIP projector left out" if has else "CLIP projector drawn anew")
            found, expected = (_without(names, (PROJECTOR,)) for names in (found, expected))
        if self._rows is not None:
            found, expected = (_without(names, self.tables) for names in (found, expected))
        check_fit(self.source.folder, expected, found)

    @property
    def drawn(self) -> list[str]:
        """Names of weights that are new, wholly or partly."""
        return [n for n in self.expected if n not in self.source.meta or self._is_resized(n)]

    def read(self, name: str) -> Tensor:
        """One whole fp32 weight, as a copy."""
        if name not in self.source.meta:
            return self._drawn(name)
        # A copy: the source may be a mapped file, and rows are written into the result.
        weight = self.source.read(name).to(torch.float32, copy=True)
        return self._placed(name, weight, self._drawn) if self._is_resized(name) else weight

    def carried(self, name: str, moment: Tensor | None) -> Tensor:
        """An AdamW moment of the source in the new model's shape; new rows have moment 0.

        Args:
            name: of the parameter.
            moment: of the source; None if it has no such parameter.
        """
        if moment is None:
            return torch.zeros(self.expected[name].shape)
        return self._placed(name, moment, self._zeros) if self._is_resized(name) else moment

    def _is_resized(self, name: str) -> bool:
        return self._rows is not None and name in self.tables

    def _placed(self, name: str, old: Tensor, fill: Callable[[str], Tensor]) -> Tensor:
        assert self._rows is not None
        old_rows, new_rows = self._rows
        # New rows come from `fill`, kept rows are copied over them.
        return fill(name).index_copy_(0, new_rows, old.float()[old_rows])

    def _zeros(self, name: str) -> Tensor:
        return torch.zeros(self.expected[name].shape)

    def _drawn(self, name: str) -> Tensor:
        return drawn(self.expected, name, self._seed, self._std)


def drawn(expected: Mapping[str, Tensor], name: str, seed: int, std: float) -> Tensor:
    """A new fp32 weight, initialised as its module is: normal tables, zero head bias, uniform projector.

    Args:
        expected: shapes by name.
        name: of the weight; with the seed it gives the random numbers.
        seed: of the run.
        std: standard deviation of tables.
    """
    generator = named_generator(seed, name)
    shape = expected[name].shape
    if name.startswith(PROJECTOR):
        weight = expected[name.rpartition(".")[0] + ".weight"]
        # The default of nn.Linear, for weight and bias alike.
        bound = 1 / math.sqrt(weight.shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.empty(shape).normal_(0, std, generator=generator)


def _without(tensors: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}

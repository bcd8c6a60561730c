"""The weights of a new Show-o that starts from a language model, read one tensor at a time."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.folder import FolderWeights, from_transformers, local_folder, naming
from showo_dist.models.weights.initial import PROJECTOR, drawn
from showo_dist.models.weights.sources import Weights

_OURS = "showo."  # before each of the language model's names
# Buffers that older files hold, and that are computed.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|attention\.bias$")


class LanguageStart:
    """fp32 weights of a new model: those of a language model, and random rows for the new tokens.

    Random weights depend on the seed and the parameter's name alone. A language model without a head of its
    own gives the values of its table to both.

    Args:
        showo: sizes, with ``llm_model_path``.
        model: of these sizes, on the meta device.
        seed: of new rows and of the projector.

    Raises:
        ValueError: the language model cannot be read, or its weights are not those of the family.
    """

    def __init__(self, showo: ShowoConfig, model: ShowO, seed: int) -> None:
        self._showo, self._seed, self._std = showo, seed, model.config.initializer_range
        self._expected = {n: t.to("meta") for n, t in model.state_dict().items()}
        self._tables = model.tables
        (self._table,) = (n for n in self._tables if n.startswith(f"{_OURS}{_table_name(model)}"))
        with naming("model.showo.llm_model_path", showo.llm_model_path):
            self._source = _source(str(showo.llm_model_path), self._wanted())

    def _wanted(self) -> dict[str, Tensor]:
        """What the language model must have, under its own names; its tables may have other lengths."""
        named = {n: t for n, t in self._expected.items() if not n.startswith(PROJECTOR)}
        return {
            name.removeprefix(_OURS): tensor[:0] if name in self._tables else tensor
            for name, tensor in named.items()
        }

    def read(self, name: str) -> Tensor:
        """One whole fp32 weight, as a copy."""
        if name.startswith(PROJECTOR):
            return drawn(self._expected, name, self._seed, self._std)
        own = name.removeprefix(_OURS)
        if own not in self._source.meta:  # the head of tied tables
            own = self._table.removeprefix(_OURS)
        found = self._source.read(own)
        if name not in self._tables:
            return found.to(torch.float32, copy=True)
        rows = min(len(found), self._showo.llm_vocab_size)
        new = drawn(self._expected, name, self._seed, self._std)
        new[:rows] = found[:rows]  # cast in place: a table is the largest part
        return new


def _table_name(model: ShowO) -> str:
    """The embedding table's name inside the language model."""
    named = model.showo.named_parameters()
    return next(name for name, parameter in named if parameter is model.embeddings.weight)


def _source(path: str, wanted: Mapping[str, Tensor]) -> Weights:
    """The language model's weights by name.

    Files are read tensor by tensor where their names are those of the family's code; older or other names
    are left to transformers, which loads the whole model first.
    """
    files = FolderWeights(local_folder(path))
    names = {name for name in files.meta if not _COMPUTED.search(name)}
    heads = {name for name in wanted if name.startswith("lm_head.")}
    if names <= wanted.keys() <= names | heads:
        _check_shapes(wanted, files.meta)
        return files
    whole = _WholeModel(path)
    _check_shapes(wanted, whole.meta)
    return whole


class _WholeModel:
    """A language model as transformers loads it."""

    def __init__(self, path: str) -> None:
        model = from_transformers(AutoModelForCausalLM, path)
        self.folder, self._state = Path(path), model.state_dict()
        self.meta = {name: tensor.to("meta") for name, tensor in self._state.items()}

    def read(self, name: str) -> Tensor:
        return self._state[name]


def _check_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        has = found[name].shape if name in found else None
        if has is None and not name.startswith("lm_head."):
            raise ValueError(f"it has no weight {name}")
        # A table's length is free.
        if has is not None and has[bool(len(tensor) == 0) :] != tensor.shape[len(tensor) == 0 :]:
            raise ValueError(f"{name} is {list(has)}, its config asks for {list(tensor.shape)}")

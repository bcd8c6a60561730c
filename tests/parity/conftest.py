"""The golden tensors, read once, and models with their weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PhiConfig

from showo_dist.models.showo import ShowO
from showo_dist.sequences import TextEncoder, Vocabulary
from tests.kernels.layouts import NATIVE
from tests.parity.cut_golden import read


@pytest.fixture(scope="session")
def meta(golden: Path) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((golden / "meta.json").read_text()))


@pytest.fixture(scope="session")
def texts(golden: Path) -> dict[str, list[str]]:
    return json.loads((golden / "texts.json").read_text())


@pytest.fixture(scope="session")
def tensors(golden: Path) -> Any:
    """``tensors("sequences")`` is the safetensors file of that name."""
    cache: dict[str, dict[str, Tensor]] = {}

    def tensors(name: str) -> dict[str, Tensor]:
        if name not in cache:
            cache[name] = read(golden / f"{name}.safetensors")
        return cache[name]

    return tensors


@pytest.fixture(scope="session")
def encoder(golden: Path, meta: SimpleNamespace) -> TextEncoder:
    return TextEncoder(golden / "tokenizer", meta.llm_vocab)


@pytest.fixture(scope="session")
def vocabulary(encoder: TextEncoder, meta: SimpleNamespace) -> Vocabulary:
    return encoder.vocabulary(meta.llm_vocab, meta.code)


@pytest.fixture(params=[NATIVE, "sdpa", "dense"])
def build_model(request: pytest.FixtureRequest, golden: Path, meta: SimpleNamespace) -> Any:
    """Build a model from ``weights.*`` of one or more golden files, with each attention backend."""

    def build(*files: dict[str, Tensor]) -> ShowO:
        weights = {name: tensor for file in files for name, tensor in file.items()}
        config = PhiConfig.from_pretrained(golden / "llm", vocab_size=meta.vocab)
        projector = weights.get("weights.mm_projector.0.weight")
        width = 0 if projector is None else projector.shape[1]
        model = ShowO(config, feature_width=width, attention=request.param)
        state = {
            k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")
        }
        model.load_state_dict(state, strict=True)
        return model.train()

    return build


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)

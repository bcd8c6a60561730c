"""Loading a model: number format, and sizes that must fit."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from showo_dist.generation import Pipeline, user
from showo_dist.generation.cache import PrefixCache
from showo_dist.generation.networks import read_model_config


def test_bf16(checkpoint: Path, pipeline: Pipeline, images: list[Image.Image]) -> None:
    """Weights in bf16, rotary frequencies in fp32, about the same logits; codes stay exact."""
    half = Pipeline.load(checkpoint, device="cpu", precision="bf16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    frequencies = [p.model.showo.model.rotary_emb.inv_freq for p in (half, pipeline)]
    assert torch.equal(*frequencies)
    assert torch.equal(half.encode(images), pipeline.encode(images))
    sequences = pipeline.question_sequences([[user(images[0], "what is shown?")], [user("hi")]])
    logits = [
        PrefixCache(p.model, p.vocabulary, sequences, 1, 1).last_logits_BV.float().flatten()
        for p in (half, pipeline)
    ]
    assert torch.corrcoef(torch.stack(logits))[0, 1] > 0.99
    assert half.generate(["a ring"])[0].size == (32, 32)


def test_sizes_must_fit(checkpoint: Path) -> None:
    config = read_model_config(checkpoint, ["model.showo.codebook_size=32"])
    with pytest.raises(ValueError, match=r"table of 327 tokens.* make 343"):
        Pipeline.load(checkpoint, config=config, device="cpu")

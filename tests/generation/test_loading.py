"""Loading a model: number format, sizes that must fit, and weights that are missing."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from showo_dist.config.model import ShowoConfig
from showo_dist.generation import Pipeline, user
from showo_dist.generation.cache import PrefixCache
from showo_dist.generation.networks import read_model_config
from showo_dist.models.encoders import ClipTower
from showo_dist.models.magvitv2 import MAGVITv2, MAGVITv2Config, StackConfig
from showo_dist.models.showo import empty_model
from showo_dist.models.weights.language import LanguageStart
from showo_dist.models.weights.pretrained import from_language_model
from tests.tiny import BITS


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


def _other_bits(folder: Path, bits: int) -> str:
    stack = StackConfig(channels=8, multipliers=[1, 1, 1, 1], res_blocks=[0, 0, 0, 1])
    sizes = MAGVITv2Config(resolution=32, bits=bits, norm_groups=4, encoder=stack, decoder=stack)
    MAGVITv2(sizes).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("bits", [BITS - 1, BITS + 1])
def test_an_image_tokenizer_with_other_codes_is_refused(
    checkpoint: Path, tmp_path: Path, bits: int
) -> None:
    """With more codes images would be wrong without a word, with fewer an index is out of bounds."""
    other = _other_bits(tmp_path / "vq", bits)
    with pytest.raises(ValueError, match=rf"codebook_size = 16: the tokenizer at .* has {2**bits}"):
        Pipeline.load(checkpoint, device="cpu", vq_model=other)


def test_a_tower_with_other_features_is_refused(clip_checkpoint: Path) -> None:
    config = read_model_config(clip_checkpoint, ["model.showo.clip_tokens=16"])
    with pytest.raises(ValueError, match=r"model\.showo\.clip_tokens = 16: the tower at .* has 9"):
        Pipeline.load(clip_checkpoint, config=config, device="cpu")


def _without(source: Path, target: Path, name: str) -> Path:
    """A copy of a model folder of transformers that lacks one weight."""
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    return target


def test_a_tower_without_one_of_its_weights_is_refused(encoders: Path, tmp_path: Path) -> None:
    """transformers would give it random values, other ones on every rank."""
    (name,) = (n for n in load_file(encoders / "clip" / "model.safetensors") if "1.mlp.fc1.w" in n)
    folder = _without(encoders / "clip", tmp_path / "clip", name)
    line = rf"model\.clip_model_name = .*: its files have no weight .*{re.escape(name)}"
    with pytest.raises(ValueError, match=line):
        ClipTower.from_pretrained(str(folder))


@pytest.mark.parametrize("wrapped", [False, True], ids=["one-missing", "all-renamed"])
def test_a_language_model_without_its_weights_is_refused(tmp_path: Path, wrapped: bool) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = AutoConfig.for_model("phi", **sizes, num_attention_heads=2, vocab_size=40)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    name = "model.layers.1.mlp.fc1.weight"
    folder = _without(tmp_path / "whole", tmp_path / "less", name)
    if wrapped:
        weights = load_file(tmp_path / "whole" / "model.safetensors")
        renamed = {f"module.{name}": tensor for name, tensor in weights.items()}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    showo = ShowoConfig(llm_model_path=str(folder), llm_vocab_size=40, codebook_size=8)
    match = r"model\.showo\.llm_model_path = .*: (its files have|it has) no weight"
    with pytest.raises(ValueError, match=match):
        from_language_model(showo)
    with pytest.raises(ValueError, match=match):
        LanguageStart(showo, empty_model(showo, "sdpa"), 0)


def test_an_image_tokenizer_in_half_precision_computes_in_fp32(
    checkpoint: Path, encoders: Path, tmp_path: Path, images: list[Image.Image]
) -> None:
    whole = MAGVITv2.from_pretrained(encoders / "vq")
    for parameter in whole.parameters():
        parameter.data = parameter.data.bfloat16().float()
    whole.save_pretrained(tmp_path / "rounded")
    shutil.copytree(tmp_path / "rounded", tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    halves = {n: t.bfloat16() if n.startswith(("enc", "dec")) else t for n, t in weights.items()}
    save_file(halves, tmp_path / "half" / "model.safetensors")
    one, other = (
        Pipeline.load(checkpoint, device="cpu", vq_model=str(tmp_path / name))
        for name in ("rounded", "half")
    )
    codes = one.encode(images)
    assert torch.equal(other.encode(images), codes)
    pairs = zip(one.decode(codes), other.decode(codes), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_a_backend_of_another_device_is_replaced(
    checkpoint: Path,
    pipeline: Pipeline,
    images: list[Image.Image],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that was trained with FlashAttention on GPUs is evaluated on a CPU."""
    config = read_model_config(checkpoint, ["model.attention=flash"])
    loaded = Pipeline.load(checkpoint, config=config, device="cpu")
    assert loaded.model.attention == pipeline.model.attention
    assert "model.attention: sdpa instead (attention is 'flash'" in capsys.readouterr().err

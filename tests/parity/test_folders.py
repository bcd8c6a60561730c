"""Model folders: the released format (safetensors or pickle) and the errors of a broken folder."""

import json
from pathlib import Path

import pytest
import torch

from showo_dist.config.model import ShowoConfig
from showo_dist.models.showo import ShowO, build_showo
from showo_dist.models.weights.pretrained import load_showo
from showo_dist.sequences import pack
from showo_dist.sequences.builders import lm
from showo_dist.sequences.vocabulary import Vocabulary
from tests.tiny import save_showo

SIZES = ShowoConfig(
    llm_model_path=None,
    llm_config={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    vocab_size=61,
    llm_vocab_size=42,
    codebook_size=8,
    w_clip_vit=True,
    clip_dim=12,
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ShowO, Path]:
    torch.manual_seed(0)
    model = build_showo(SIZES).eval()
    save_showo(model, SIZES, tmp_path / "model")
    return model, tmp_path / "model"


def logits(model: ShowO) -> torch.Tensor:
    sequence = lm([3, 1, 4, 1, 5], 20, Vocabulary(text=42, codebook=8, bos=0))
    batch = pack([sequence], pad_id=42, feature_width=model.feature_width)
    with torch.no_grad():
        return model(batch, logit_rows=torch.arange(batch.tokens))


def test_round_trip(saved: tuple[ShowO, Path]) -> None:
    model, folder = saved
    assert torch.equal(logits(load_showo(folder, attention="sdpa").eval()), logits(model))


def test_pickled_weights(saved: tuple[ShowO, Path]) -> None:
    model, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(logits(load_showo(folder, attention="sdpa").eval()), logits(model))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_unpickling_runs_no_code(saved: tuple[ShowO, Path], tmp_path: Path) -> None:
    _, folder = saved
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load_showo(folder)
    assert not (tmp_path / "ran").exists()


def test_a_config_without_sizes_means_phi_1_5(tmp_path: Path) -> None:
    released = {"_class_name": "Showo", "_diffusers_version": "0.29.0", "w_clip_vit": False}
    released |= {"vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192}
    released |= {
        "llm_model_path": "microsoft/phi-1_5",
        "num_vq_tokens": 256,
        "load_from_showo": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):  # sizes were understood
        load_showo(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json: missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 64), r"model\.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "none of"),
    ],
)
def test_broken_folder(saved: tuple[ShowO, Path], damage, message: str) -> None:
    damage(saved[1])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_showo(saved[1])


def test_missing_folder() -> None:
    with pytest.raises(FileNotFoundError, match="no/such"):
        load_showo("no/such")

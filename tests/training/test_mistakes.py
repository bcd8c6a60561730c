"""What a user got wrong is one clear line, exit code 2, and no traceback on any rank."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_dist.config import TrainConfig
from showo_dist.config.loader import load
from showo_dist.training.setup import load_encoders
from tests.training.conftest import Outcome, TinyWorld, train


def only_line(outcome: Outcome) -> str:
    """The message; DeepSpeed's launcher adds lines of its own, which begin with a bracket or are warnings."""
    assert outcome.code != 0
    text = outcome.stdout + outcome.stderr
    assert "Traceback" not in text, text[-3000:]
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("showo_dist.train")]
    assert len(lines) == 1, text[-3000:]
    return lines[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.batch_size_t2l=3", ["training.batch_size_t2l", "batch_size_t2i"]),
        ("training.seed=abc", ["training.seed", "abc", "integer"]),
        ("model.showo.vocab_size=999", ["model.showo.vocab_size", "999"]),
        ("model.showo.num_vq_tokens=100", ["num_vq_tokens", "100", "64"]),
        ("dataset.params.train_t2i_shards_path_or_url=null", ["train_t2i_shards_path_or_url"]),
        ("dataset.params.train_t2i_shards_path_or_url=gone-{00..03}.tar", ["gone-"]),
        ("model.vq_model.vq_model_name=no/such/folder", ["no/such/folder"]),
        ("model.showo.tokenizer_path=no/such/text", ["tokenizer_path", "no/such/text"]),
        ("model.encoder_dtype=tf32", ["model.encoder_dtype = tf32", "NVIDIA GPU"]),
        ("model.attention=flex", ["model.attention = flex", "cannot train on cpu"]),
        ("dataset.chat_template=true", ["dataset.chat_template", "it has none"]),
        ("experiment.init_from=no/such/weights", ["no/such/weights"]),
        (
            "experiment.resume_from_checkpoint=no/such/run",
            ["resume_from_checkpoint", "no/such/run"],
        ),
    ],
)
def test_one_line(tiny_world: TinyWorld, tmp_path: Path, change: str, words: list[str]) -> None:
    outcome = train(tiny_world, tmp_path / "run", change)
    line = only_line(outcome)
    assert outcome.code == 2
    for word in words:
        assert word in line


def test_a_vocabulary_that_does_not_fit(tiny_world: TinyWorld, tmp_path: Path) -> None:
    changes = ["model.showo.llm_vocab_size=300", "model.showo.vocab_size=375"]
    line = only_line(train(tiny_world, tmp_path / "run", *changes))
    assert "llm_vocab_size = 300" in line and "400 tokens" in line


@pytest.fixture(scope="module")
def saved_run(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("mistakes") / "run"
    assert train(tiny_world, run, "training.max_train_steps=2").code == 0
    return run


@pytest.mark.parametrize(
    "damage",
    ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", "state.json"],
)
def test_a_damaged_checkpoint_is_named(
    tiny_world: TinyWorld, saved_run: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved_run, run)
    path = run / "checkpoint-000002" / damage
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert str(path) in only_line(train(tiny_world, run, "training.max_train_steps=3"))


def test_encoders_that_are_not_the_configs(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Another grid of codes, features of another width or number: the key to change is named."""
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
    )
    CLIPVisionModel(tower).save_pretrained(tmp_path / "clip")
    config = load([f"config={tiny_world.config}"], TrainConfig, check=False)
    config.model.clip_model_name = str(tmp_path / "clip")
    config.model.showo.w_clip_vit = True
    config.model.showo.clip_dim, config.model.showo.clip_tokens = 16, 9
    cpu = torch.device("cpu")
    assert load_encoders(config, cpu).clip is not None
    config.model.showo.clip_tokens = 576
    with pytest.raises(ValueError, match=r"model\.showo\.clip_tokens = 576: the tower at .* has 9"):
        load_encoders(config, cpu)
    config.model.showo.clip_dim = 1024
    with pytest.raises(ValueError, match=r"model\.showo\.clip_dim = 1024: the tower at .* has 16"):
        load_encoders(config, cpu)
    config.model.vq_model.downsample = 16
    with pytest.raises(ValueError, match=r"downsample = 16: the tokenizer at .* a code of 8×8"):
        load_encoders(config, cpu)


def test_fewer_steps_than_are_done(tiny_world: TinyWorld, saved_run: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_run, tmp_path / "run")
    line = only_line(train(tiny_world, tmp_path / "run", "training.max_train_steps=1"))
    assert "training.max_train_steps = 1: " in line and "already at step 2" in line


def test_weights_of_another_size_are_named(
    tiny_world: TinyWorld, saved_run: Path, tmp_path: Path
) -> None:
    changes = [
        f"experiment.init_from={saved_run / 'checkpoint-000002'}",
        "model.showo.llm_config.hidden_size=64",
    ]
    line = only_line(train(tiny_world, tmp_path / "run", *changes))
    assert "do not fit" in line and "embed_tokens" in line


@pytest.mark.slow
def test_two_ranks_speak_once(tiny_world: TinyWorld, tmp_path: Path) -> None:
    change = "dataset.params.train_lm_shards_path_or_url=gone.tar"
    outcome = train(tiny_world, tmp_path / "run", change, launcher="deepspeed", ranks=2)
    assert "gone.tar" in only_line(outcome)

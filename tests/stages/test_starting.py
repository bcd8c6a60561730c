"""Starting from a checkpoint in real runs: with its optimizer, with adapters, with a new codebook."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from showo_dist.checkpoint import CheckpointReader
from showo_dist.models.weights.pretrained import load_showo, read_config
from showo_dist.models.weights.sources import open_weights, own_weights
from tests.training.conftest import Outcome, TinyWorld, train

LORA = ("lora.rank=4", "lora.train_embeddings=true", "lora.dropout=0.1")
TWICE = "training.gradient_accumulation_steps=2"  # one rank in the place of two
SAME = ("lr_scheduler.scheduler=constant", "lr_scheduler.params.warmup_steps=0")


def ran(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.stderr[-4000:]
    return outcome


def last_line(outcome: Outcome) -> str:
    assert outcome.code == 2, outcome.stderr[-4000:]
    assert "Traceback" not in outcome.stderr
    lines = outcome.stderr.splitlines()
    return next(line for line in lines if line.startswith("showo_dist.train"))


@pytest.fixture(scope="module")
def base(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after six steps."""
    run = tmp_path_factory.mktemp("starting") / "base"
    ran(train(tiny_world, run, "training.max_train_steps=6", *SAME))
    return run / "checkpoint-000006"


def test_with_the_optimizer(tiny_world: TinyWorld, base: Path, tmp_path: Path) -> None:
    """Nothing is trained yet in the new stage: weights, moments and AdamW's count are the old ones."""
    rate = "optimizer.params.learning_rate=1.0e-30"
    start = (f"experiment.init_from={base}", "training.max_train_steps=1", rate, *SAME)
    ran(train(tiny_world, tmp_path / "with", *start, "experiment.init_optimizer=true"))
    ran(train(tiny_world, tmp_path / "without", *start))
    old = CheckpointReader(base)
    new, bare = (
        CheckpointReader(tmp_path / run / "checkpoint-000001") for run in ("with", "without")
    )
    assert (old.state.optimizer_steps, new.state.optimizer_steps) == (6, 7)
    assert (bare.state.optimizer_steps, new.state.step) == (1, 1)
    name = "showo.model.layers.0.mlp.fc1.weight"
    for reader in (new, bare):
        assert torch.equal(reader.read("weight", name), old.read("weight", name))
    # After one step the average over the past still holds most of what it held.
    before, after = old.read("exp_avg_sq", name), new.read("exp_avg_sq", name)
    assert bool((after >= 0.998 * before).all())
    assert float(bare.read("exp_avg_sq", name).mean()) < 0.5 * float(after.mean())


@pytest.fixture(scope="module")
def lora(tiny_world: TinyWorld, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A LoRA run of eight steps on two ranks with ZeRO-2, checkpoints at 4 and 8."""
    run = tmp_path_factory.mktemp("lora") / "run"
    settings = (
        "training.max_train_steps=8",
        "experiment.save_every=4",
        f"experiment.init_from={base}",
    )
    return ran(train(tiny_world, run, *settings, *LORA, *SAME, ranks=2))


def test_lora_trains_and_keeps_little(lora: Outcome, base: Path) -> None:
    source = own_weights(lora.run / "checkpoint-000008")
    held = source.meta
    assert all(source.read(name).any() for name in held if "lora_B" in name), "they begin as 0"
    assert all("lora_" in name or "embed_tokens" in name for name in held)
    assert len([name for name in held if "lora_" in name]) == 2 * 6 * 2  # A, B; modules; layers
    assert "parameters are trained" in lora.stdout


def test_lora_resumes_exactly(
    tiny_world: TinyWorld, lora: Outcome, base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(lora.run, run, symlinks=True)
    shutil.rmtree(run / "checkpoint-000008")
    settings = ("training.max_train_steps=8", f"experiment.init_from={base}", *LORA, *SAME)
    resumed = ran(train(tiny_world, run, *settings, ranks=2))
    assert "resuming from" in resumed.stdout
    assert resumed.curve() == lora.curve()


def _weights(folder: Path) -> dict[str, Tensor]:
    source = open_weights(folder)
    return {name: source.read(name) for name in source.meta}


def test_lora_merges_as_peft_does(lora: Outcome, base: Path) -> None:
    """What :func:`load_showo` gives is peft's own merge of the same adapters."""
    from showo_dist.config.experiment import LoraConfig
    from showo_dist.models.weights.lora import add_adapters

    checkpoint = lora.run / "checkpoint-000008"
    model = load_showo(base)
    add_adapters(model, LoraConfig(rank=4, train_embeddings=True), seed=0)
    own = own_weights(checkpoint)
    missing = model.load_state_dict({n: own.read(n) for n in own.meta}, strict=False)
    assert not missing.unexpected_keys
    for module in model.modules():
        if hasattr(module, "merge") and hasattr(module, "lora_A"):
            module.merge()  # type: ignore[operator]
    peft_merged = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    merged = load_showo(checkpoint).state_dict()
    assert merged.keys() == peft_merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, peft_merged[name], rtol=1e-6, atol=1e-7)
    changed = [n for n, t in _weights(base).items() if not torch.equal(t, merged[n])]
    assert "showo.model.layers.1.mlp.fc2.weight" in changed
    assert all(n.endswith("weight") and "lm_head" not in n and "norm" not in n for n in changed)


def test_lora_refuses_another_base(
    tiny_world: TinyWorld, lora: Outcome, base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    ran(train(tiny_world, other, "training.max_train_steps=1"))
    run = tmp_path / "run"
    shutil.copytree(lora.run, run, symlinks=True)
    start = f"experiment.init_from={other}/checkpoint-000001"
    line = last_line(
        train(tiny_world, run, "training.max_train_steps=9", TWICE, start, *LORA, *SAME)
    )
    assert "trained over other weights" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((), ["lora.rank = 0", "holds LoRA adapters of rank 4", "experiment.init_from"]),
        (("lora.rank=8",), ["lora.rank = 8", "rank 4"]),
        ((*LORA, "lora.alpha=9"), ["lora.alpha = 9.0", "4.0"]),
    ],
)
def test_lora_goes_on_with_its_own_settings(
    tiny_world: TinyWorld,
    lora: Outcome,
    base: Path,
    tmp_path: Path,
    changes: tuple[str, ...],
    words: list[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(lora.run, run, symlinks=True)
    settings = ("training.max_train_steps=9", TWICE, f"experiment.init_from={base}", *changes)
    line = last_line(train(tiny_world, run, *settings))
    for word in words:
        assert word in line


def test_new_rows_have_to_be_trained(tiny_world: TinyWorld, base: Path, tmp_path: Path) -> None:
    """LoRA over a grown text vocabulary: refused without the table and the head, fine with both."""
    sizes = read_config(base)
    settings = (
        f"experiment.init_from={base}",
        "training.max_train_steps=2",
        "lora.rank=2",
        "lora.train_embeddings=true",
        f"model.showo.llm_vocab_size={sizes.llm_vocab_size + 5}",
        f"model.showo.vocab_size={sizes.vocab_size + 5}",
        "model.showo.resize=true",
    )
    line = last_line(train(tiny_world, tmp_path / "refused", *settings))
    assert "showo.lm_head" in line and "lora.train_head" in line
    done = ran(train(tiny_world, tmp_path / "run", *settings, "lora.train_head=true"))
    assert "vocabulary resized (400 -> 405 text tokens" in done.stdout
    merged = load_showo(tmp_path / "run" / "checkpoint-000002").state_dict()
    assert len(merged["showo.model.embed_tokens.weight"]) == sizes.vocab_size + 5

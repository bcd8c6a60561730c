"""A very small world and real training processes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from showo_data.mini.writing import MiniSettings, write_mini
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.magvitv2.config import MAGVITv2Config, StackConfig
from showo_dist.sequences import train_tokenizer
from tests.faults.processes import start
from tests.forks import free_port

TEXT_TOKENS, BITS = 400, 6
LIMIT_S = 400.0  # also where other work has most of the machine


@dataclass
class TinyWorld:
    """Shards, tokenizers and a config file of a model that trains a step in milliseconds."""

    folder: Path
    config: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"


@dataclass
class Outcome:
    """What a training process left behind."""

    code: int
    stdout: str
    stderr: str
    run: Path
    losses: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def resumed_at(self) -> int | None:
        """The step of the checkpoint that the run says it resumes from."""
        found = re.search(r"resuming from .* at step (\d+)$", self.stdout, re.MULTILINE)
        return int(found[1]) if found else None

    def curve(self, first: int = 1, key: str = "loss") -> list[float]:
        return [self.losses[step][key] for step in sorted(self.losses) if step >= first]


def _tiny_config(folder: Path) -> str:
    data = folder / "data"
    return f"""
experiment: {{name: tiny, log_every: 1, save_every: 0, generate_every: 0}}
wandb: {{mode: disabled}}
model:
  vq_model: {{vq_model_name: {folder}/vq, downsample: 8}}
  showo:
    llm_model_path: null
    llm_config: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}}
    tokenizer_path: {folder}/text
    vocab_size: {TEXT_TOKENS + 10 + 2**BITS + 1}
    llm_vocab_size: {TEXT_TOKENS}
    codebook_size: {2**BITS}
    num_vq_tokens: 64
dataset:
  und_type: llava_tuning
  params:
    resolution: 64
    train_t2i_shards_path_or_url: {data}/train-{{000000..000001}}.tar
    train_mmu_shards_path_or_url: {data}/train-{{000000..000001}}.tar
    train_recon_shards_path_or_url: {data}/train-{{000000..000001}}.tar
    train_lm_shards_path_or_url: {data}/text-000000.tar
  preprocessing: {{resolution: 64, max_seq_length: 40}}
optimizer: {{params: {{learning_rate: 3.0e-3}}}}
lr_scheduler: {{params: {{warmup_steps: 3}}}}
training:
  max_train_steps: 20
  batch_size_t2i: 2
  batch_size_lm: 1
  batch_size_mmu: 2
  batch_size_recon: 1
  mixed_precision: fp32
  max_grad_norm: 1.0
"""


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    folder = tmp_path_factory.mktemp("tiny")
    settings = MiniSettings(
        images=60, texts=40, validation=8, prompts_per_tag=1, shard_size=40, seed=3
    )
    write_mini(folder / "data", settings)
    shards = f"{folder}/data/train-{{000000..000001}}.tar"
    train_tokenizer.main(
        [
            *("--out", str(folder / "text"), "--size", str(TEXT_TOKENS)),
            *("--texts", shards, "--conversations", shards),
        ]
    )
    torch.manual_seed(0)
    stack = StackConfig(channels=8, multipliers=[1, 1, 1, 1], res_blocks=[1, 1, 1, 1])
    config = MAGVITv2Config(resolution=64, bits=BITS, norm_groups=4, encoder=stack, decoder=stack)
    MAGVITv2(config).save_pretrained(folder / "vq")
    path = folder / "tiny.yaml"
    path.write_text(_tiny_config(folder))
    return TinyWorld(folder, path)


def command(launcher: str, ranks: int) -> list[str]:
    """How a user starts the training module with a launcher."""
    bin_folder = Path(sys.executable).parent
    if launcher == "deepspeed":
        start = [str(bin_folder / "deepspeed"), "--num_gpus", str(ranks)]
        return [*start, "--master_port", str(free_port()), "--module", "showo_dist.train"]
    if launcher == "torchrun":
        start = [str(bin_folder / "torchrun"), "--nproc-per-node", str(ranks)]
        return [*start, "--master-port", str(free_port()), "-m", "showo_dist.train"]
    assert (launcher, ranks) == ("python", 1)
    return [sys.executable, "-m", "showo_dist.train"]


def train(
    world: TinyWorld,
    run: Path,
    *changes: str,
    launcher: str | None = None,
    ranks: int = 1,
    limit_s: float = LIMIT_S,
) -> Outcome:
    """Train for real; a run that takes longer than ``limit_s`` is killed and fails.

    Args:
        launcher: "python", "torchrun" or "deepspeed", as a user starts it; None: the ranks are forks of a
            server that has imported everything, which saves ten seconds and more.
    """
    arguments = [f"config={world.config}", f"experiment.output_dir={run}", *changes]
    if launcher is None:
        run.parent.mkdir(parents=True, exist_ok=True)
        life = start(arguments, run, ranks)
        codes = life.codes(limit_s)
        outcome = Outcome(max(codes, key=abs), life.stdout(), life.stderr(), run)
    else:
        done = subprocess.run(
            [*command(launcher, ranks), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        outcome = Outcome(done.returncode, done.stdout, done.stderr, run)
    metrics = run / "metrics.jsonl"
    if metrics.is_file():
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        outcome.losses = {line["step"]: line for line in lines}
    return outcome

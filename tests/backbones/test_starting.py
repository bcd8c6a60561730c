"""Starting weights: part by part under ZeRO-3, from shards, adapters, and mistakes in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero import GatheredParameters
from safetensors.torch import load_file
from torch import Tensor, nn

from showo_dist.config import TrainConfig
from showo_dist.config.experiment import LoraConfig
from showo_dist.models.weights.lora import add_adapters
from showo_dist.models.weights.pretrained import load_showo
from showo_dist.models.weights.start import load_initial
from showo_dist.runtime.ranks import Ranks
from showo_dist.sequences import Vocabulary, pack
from showo_dist.sequences.builders import lm
from showo_dist.training.deepspeed_engine import build_deepspeed_engine
from showo_dist.training.engine import sharder
from showo_dist.training.step import Stepper
from tests.backbones.test_vocabulary import TEXT, saved_language_model, start_from
from tests.checkpoints.group import on_ranks
from tests.single_pass.batches import build_tiny, tiny_sizes
from tests.single_pass.rank import whole_weight
from tests.tiny import save_showo

CPU = torch.device("cpu")
CASES = (  # untied, tied, other names
    *(("language model", family) for family in ("llama", "qwen2", "gpt_neox")),
    ("random", "llama"),
    ("adapters", "gpt_neox"),
)


def config_of(kind: str, family: str, folder: Path) -> TrainConfig:
    """A run of the family that starts from a language model, random weights, or adapters over a folder."""
    config = start_from(folder)
    if kind == "language model":
        saved_language_model(folder, family)
        return config
    config.model.showo = tiny_sizes(family)
    if kind == "adapters":
        save_showo(build_tiny(family=family), tiny_sizes(family), folder)
        config.experiment.init_from = str(folder)
        config.lora = LoraConfig(rank=2, train_head=True)
    return config


def zero_3(config: TrainConfig, precision: str) -> TrainConfig:
    config.distributed.zero_stage = 3
    config.training.mixed_precision = precision
    config.training.batch_size_lm = 1
    config.lr_scheduler.scheduler = "constant"
    return config


def in_memory(*parts: nn.Module) -> int:
    """Numbers of parameters that this rank holds whole; a sharded one has none."""
    return sum(p.numel() for part in parts for p in part.parameters())


class Watched:
    """Shards each part, and notes the most that was whole in the parts so far."""

    def __init__(self, shard: Callable[[nn.Module], None]) -> None:
        self._shard, self._parts, self.most = shard, [], 0  # type: ignore[var-annotated]

    def __call__(self, part: nn.Module) -> None:
        self._parts.append(part)
        self.most = max(self.most, in_memory(*self._parts))
        self._shard(part)


def trained(ranks: Ranks, configs: dict[str, TrainConfig]) -> dict[str, Any]:
    """Two steps after loading whole, and part by part: losses, weights, and what was whole in memory."""
    found: dict[str, Any] = {}
    for family, config in configs.items():
        for lean in (False, True):
            shard = sharder(config, CPU)
            assert shard is not None
            watched = Watched(shard) if lean else None
            model, _ = load_initial(config, CPU, None, watched)
            held = in_memory(model)
            engine = build_deepspeed_engine(model, config, CPU)
            stepper = Stepper(engine, {"lm": 1.0}, "global", CPU)
            text = list(range(1 + ranks.rank, 12))
            batch = pack(
                [lm(text, 16, Vocabulary(TEXT, 8, bos=0))],
                pad_id=TEXT,
                feature_width=model.feature_width,
            )
            losses = [stepper([batch]).total for _ in range(2)]
            named = dict(engine.module.named_parameters())
            with GatheredParameters([p for p in named.values() if not p.requires_grad]):
                weights = {name: whole_weight(p).clone() for name, p in named.items()}
            engine.raw.destroy()
            most = watched.most if watched else held
            found[f"{family} {'lean' if lean else 'whole'}"] = losses, weights, most, held
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_rank_holds_more_than_shares_and_one_part(tmp_path: Path, precision: str) -> None:
    """Besides the adapters of all parts, which are few."""
    configs = {
        f"{family}, {kind}": zero_3(config_of(kind, family, tmp_path / kind / family), precision)
        for kind, family in CASES
    }
    found = on_ranks(2, trained, configs)[0]
    for family in configs:
        losses, weights, whole, _ = found[f"{family} whole"]
        same, again, most, held = found[f"{family} lean"]
        assert same == losses
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())
        assert held == 0 and 0 < most < 0.6 * whole, (family, most, whole)


def weights_of(folder: Path) -> dict[str, Tensor]:
    model, _ = load_initial(start_from(folder), CPU)
    return dict(model.state_dict())


def test_safetensors_shards(tmp_path: Path) -> None:
    language = saved_language_model(tmp_path / "one", "llama")
    language.save_pretrained(tmp_path / "shards", max_shard_size="8KB")  # type: ignore[operator]
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    wanted, found = weights_of(tmp_path / "one"), weights_of(tmp_path / "shards")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_names_that_the_code_no_longer_has_are_left_to_transformers(tmp_path: Path) -> None:
    language = saved_language_model(tmp_path, "gpt_neox")
    stored = load_file(tmp_path / "model.safetensors")
    assert "embed_out.weight" in stored, "the head's name in files, and lm_head in the code"
    found = weights_of(tmp_path)["showo.lm_head.weight"]
    assert torch.equal(found[:TEXT], language.get_output_embeddings().weight[:TEXT])  # type: ignore


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 48}, "its config asks for"),
        ({"model_type": "gemma2"}, "gemma2 is no backbone for Show-o"),
        ({"model_type": "no such"}, "no such"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, change: dict, words: str) -> None:
    saved_language_model(tmp_path, "llama")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(ValueError) as caught:
        load_initial(start_from(tmp_path), CPU)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_adapters_are_those_over_a_loaded_model(tmp_path: Path, family: str) -> None:
    config = config_of("adapters", family, tmp_path)
    found = load_initial(config, CPU)[0]
    wanted = load_showo(tmp_path)
    add_adapters(wanted, config.lora, config.training.seed)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert torch.equal(one, other) and one.requires_grad == other.requires_grad, name

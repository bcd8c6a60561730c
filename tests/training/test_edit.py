"""Training on edits: data, encoded shards, noise by position, and real runs on one rank and on two."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_data import Skipped, Source, build_loader
from showo_data.mini.edits import EditSettings, edit_sample, write_edits
from showo_data.shards import write_shard
from showo_dist.config import TrainConfig, load
from showo_dist.encode.cli import main_encode
from showo_dist.sequences import Sequence
from showo_dist.training.batches import SequenceMaker
from showo_dist.training.rows import longest_samples
from showo_dist.training.setup import check_data_paths, flow_specs, load_encoders, load_text
from tests.training.conftest import TinyWorld, train

CPU = torch.device("cpu")
ALONE = [f"training.{flow}_coeff=0" for flow in ("t2i", "lm", "mmu", "recon")]


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits")
    write_edits(folder, EditSettings(edits=24, validation=8, shard_size=12, seed=3))
    return folder


def _keys(folder: Path, batch: int = 2) -> list[str]:
    return [
        f"dataset.params.train_edit_shards_path_or_url={folder}/train-{{000000..000001}}.tar",
        f"training.batch_size_edit={batch}",
        "training.cond_dropout_prob=0.3",
    ]


def _config(world: TinyWorld, *changes: str) -> TrainConfig:
    return load([f"config={world.config}", *changes], TrainConfig)


def _sequences(
    config: TrainConfig, rank: int = 0, ranks: int = 1, count: int = 6
) -> list[list[Sequence]]:
    text = load_text(config)
    showo = config.model.showo
    vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
    maker = SequenceMaker(config, text, vocabulary, load_encoders(config, CPU))
    loader = build_loader(flow_specs(config), rank=rank, world=ranks)
    return [maker(batch) for batch in islice(loader, count)]


def _flat(batches: list[list[Sequence]]) -> list[Sequence]:
    return [sequence for batch in batches for sequence in batch]


def _same(one: Sequence, other: Sequence) -> None:
    assert one.flow == other.flow and torch.equal(one.ids_L, other.ids_L)
    assert torch.equal(one.targets_P, other.targets_P)
    assert torch.equal(one.label_rows_P, other.label_rows_P)


def test_encoded_shards_stand_for_both_images(
    tiny_world: TinyWorld, edits: Path, tmp_path: Path
) -> None:
    tokenizer = ["--tokenizer", str(tiny_world.folder / "vq"), "--batch-size", "5"]
    shards = f"{edits}/train-{{000000..000001}}.tar"
    assert main_encode([shards, *tokenizer, "--out", str(tmp_path)]) == 0
    images = _flat(_sequences(_config(tiny_world, *_keys(edits), *ALONE)))
    codes = _flat(_sequences(_config(tiny_world, *_keys(tmp_path), *ALONE)))
    assert len(images) == len(codes) == 12
    for one, other in zip(images, codes, strict=True):
        _same(one, other)
    lengths = {len(sequence) for sequence in images}
    assert min(lengths) == 67 + 2 + 66, "some instructions are dropped"
    assert len(lengths) > 3
    (source,) = (Source(spec) for spec in flow_specs(_config(tiny_world, *_keys(tmp_path), *ALONE)))
    sample = source[0]
    assert not isinstance(sample, Skipped)
    assert sample.image_3HW is None and sample.source_3HW is None


def test_features_alone_cannot_stand_for_edits(edits: Path, tmp_path: Path) -> None:
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModel(tower).save_pretrained(tmp_path / "clip")
    clip = ["--clip", str(tmp_path / "clip"), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="--tokenizer"):
        main_encode([f"{edits}/train-000000.tar", *clip])


def test_an_edit_is_the_same_on_every_rank(tiny_world: TinyWorld, edits: Path) -> None:
    """Mask and dropout are those of (seed, flow, position); the other flows do not change."""
    whole = _sequences(_config(tiny_world, *_keys(edits)), count=3)
    halves = [
        _sequences(_config(tiny_world, *_keys(edits, 1), "training.batch_size_t2i=1"), rank, 2, 3)
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        mine = [s for s in batch if s.flow == "edit"]
        theirs = [s for part in parts for s in part if s.flow == "edit"]
        assert len(mine) == 2
        for one, other in zip(mine, theirs, strict=True):
            _same(one, other)
    without = _sequences(_config(tiny_world, "training.cond_dropout_prob=0.3"), count=3)
    for batch, before in zip(whole, without, strict=True):
        rest = [sequence for sequence in batch if sequence.flow != "edit"]
        assert len(rest) == len(before)
        for one, other in zip(rest, before, strict=True):
            _same(one, other)


def test_no_edit_is_longer_than_the_config_allows(tiny_world: TinyWorld, edits: Path) -> None:
    config = _config(tiny_world, *_keys(edits), *ALONE, "dataset.preprocessing.max_seq_length=5")
    lengths = {len(sequence) for sequence in _flat(_sequences(config))}
    assert max(lengths) == longest_samples(config, 0, 0)["edit"] == 67 + 5 + 66


def test_bad_edits_are_skipped_with_their_reason(tiny_world: TinyWorld, tmp_path: Path) -> None:
    good = edit_sample(0, 0)
    changes: list[dict[str, object]] = [
        {"source.png": None},
        {"target.png": None},
        {"txt": None, "json": None},
        {"txt": " ", "json": None},
        {"target.png": b"no image"},
        {"source.png": None, "source.codes.npy": b"no array"},
    ]
    samples = [
        {k: v for k, v in {**good, **change, "__key__": f"k{i}"}.items() if v is not None}
        for i, change in enumerate(changes)
    ]
    write_shard(tmp_path / "bad.tar", samples)
    data = f"dataset.params.train_edit_shards_path_or_url={tmp_path}/bad.tar"
    config = _config(tiny_world, data, "training.batch_size_edit=1", "data.streams=1", *ALONE)
    config.data.window = 1
    (spec,) = flow_specs(config)
    found = [Source(spec)[position] for position in range(len(changes))]
    assert [f.reason for f in found if isinstance(f, Skipped)] == [
        *("no-source", "no-target", "no-text", "no-text", "broken-image", "broken-codes")
    ]


@pytest.mark.parametrize("name", ["edits.jsonl", "train-00000.parquet"])
def test_triples_that_are_no_shards_name_the_converter(tiny_world: TinyWorld, name: str) -> None:
    data = f"dataset.params.train_edit_shards_path_or_url={name}"
    config = _config(tiny_world, data, "training.batch_size_edit=1")
    with pytest.raises(ValueError, match=rf"`showo-dist shards from-edits {name} --out data/edit`"):
        check_data_paths(config)


def test_the_curve_does_not_depend_on_the_ranks(
    tiny_world: TinyWorld, edits: Path, tmp_path: Path
) -> None:
    """Beside all other flows; with a token budget on one rank, and held-out edits."""
    changes = [
        *_keys(edits),
        f"dataset.params.validation_edit_shards_path_or_url={edits}/val-000000.tar",
        "training.max_train_steps=12",
        "experiment.eval_every=6",
        "experiment.generate_every=12",
    ]
    two = train(tiny_world, tmp_path / "two", *changes, ranks=2)
    assert two.code == 0, two.stderr[-3000:]
    budget = ["training.gradient_accumulation_steps=2", "training.tokens_per_step=600"]
    one = train(tiny_world, tmp_path / "one", *changes, *budget)
    assert one.code == 0, one.stderr[-3000:]
    for key in ("loss", "loss/edit", "loss/t2i", "grad_norm"):
        assert one.curve(key=key) == pytest.approx(two.curve(key=key), rel=1e-4), key
    curve = one.curve(key="loss/edit")
    assert curve[-1] < 0.9 * curve[0], curve
    assert one.losses[12]["validation/edit"] == pytest.approx(two.losses[12]["validation/edit"])
    assert list((tmp_path / "one").rglob("*rebuilt-edit*.png"))

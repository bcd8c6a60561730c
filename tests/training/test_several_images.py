"""Training on several images: encoded shards, budgets, and real runs on one rank and on two."""

import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from showo_data import build_loader
from showo_data.mini import caption, draw, scene
from showo_data.shards import write_shard
from showo_dist.config import TrainConfig, load
from showo_dist.encode.cli import main_encode
from showo_dist.plan.batch import AssumedSamples
from showo_dist.sequences import Sequence
from showo_dist.training.batches import PackedBatches, SequenceMaker
from showo_dist.training.rows import longest_samples
from showo_dist.training.setup import check_data_paths, flow_specs, load_encoders, load_text
from tests.training.conftest import TinyWorld, train

CPU = torch.device("cpu")
ALONE = [f"training.{flow}_coeff=0" for flow in ("t2i", "lm", "recon")]
MOST = 3


def _sample(number: int) -> dict[str, Any]:
    """A conversation about one to three images of the mini world, or every third time a document of them."""
    rng = random.Random(number)
    scenes = [scene(5, 10 * number + i) for i in range(rng.randrange(1, MOST + 1))]
    texts = [caption(each, rng) for each in scenes]
    content: dict[str, Any]
    if number % 3 == 0:
        content = {"texts": [part for text in texts for part in (None, text)]}
    else:
        question = f"{'<image>' * (len(texts) - 1)} which is the last? <image>"
        turns = [question, texts[-1], "and the first?", texts[0]]
        roles = ["human", "gpt"] * 2
        content = {
            "conversations": [{"from": r, "value": v} for r, v in zip(roles, turns, strict=True)]
        }
    images = {f"{i}.png": draw(each) for i, each in enumerate(scenes)}
    return {"__key__": f"{number:04d}", "json": content, **images}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    for shard in range(2):
        write_shard(
            folder / f"train-{shard:06d}.tar", map(_sample, range(12 * shard, 12 * shard + 12))
        )
    return folder


def _keys(folder: Path, batch: int = 2, most: int = MOST) -> list[str]:
    return [
        f"dataset.params.train_mmu_shards_path_or_url={folder}/train-{{000000..000001}}.tar",
        f"training.batch_size_mmu={batch}",
        f"dataset.max_images={most}",
        "dataset.preprocessing.max_seq_length=60",
    ]


def _clip(folder: Path) -> list[str]:
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    tower = CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=24, patch_size=8)
    CLIPVisionModel(tower).save_pretrained(folder)
    return [
        "model.showo.w_clip_vit=true",
        f"model.clip_model_name={folder}",
        "model.showo.clip_dim=16",
        "model.showo.clip_tokens=9",
        "dataset.und_type=llava_pretrain",  # without the system prompt, which is long in tiny tokens
        "optimizer.trained=all",
    ]


def _config(world: TinyWorld, *changes: str) -> TrainConfig:
    return load([f"config={world.config}", *changes], TrainConfig)


def _sequences(
    config: TrainConfig, rank: int = 0, ranks: int = 1, count: int = 8
) -> list[list[Sequence]]:
    maker = _maker(config)
    clip = maker.encoders.clip
    specs = flow_specs(config, clip.resolution if clip else None)
    batches = list(islice(build_loader(specs, rank=rank, world=ranks), count))
    assert not any(batch.skipped for batch in batches)
    return [maker(batch) for batch in batches]


def _maker(config: TrainConfig) -> SequenceMaker:
    text, showo = load_text(config), config.model.showo
    vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
    return SequenceMaker(config, text, vocabulary, load_encoders(config, CPU))


def _flat(batches: list[list[Sequence]]) -> list[Sequence]:
    return [sequence for batch in batches for sequence in batch]


def _same(one: Sequence, other: Sequence) -> None:
    for name in ("ids_L", "targets_P", "label_rows_P"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.spans == other.spans
    if one.features_SC is not None or other.features_SC is not None:
        torch.testing.assert_close(one.features_SC, other.features_SC, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [False, True], ids=["codes", "features"])
def test_encoded_shards_stand_for_all_images(
    tiny_world: TinyWorld, shards: Path, tmp_path: Path, clip: bool
) -> None:
    changes = [*ALONE, *(_clip(tmp_path / "clip") if clip else [])]
    network = f"--clip={tmp_path / 'clip'}" if clip else f"--tokenizer={tiny_world.folder / 'vq'}"
    pattern = f"{shards}/train-{{000000..000001}}.tar"
    assert main_encode([pattern, network, "--batch-size", "5", "--out", str(tmp_path)]) == 0
    images = _flat(_sequences(_config(tiny_world, *_keys(shards), *changes)))
    encoded = _flat(_sequences(_config(tiny_world, *_keys(tmp_path), *changes)))
    assert len(images) == len(encoded) == 16
    for one, other in zip(images, encoded, strict=True):
        _same(one, other)
    soi = _maker(_config(tiny_world)).vocabulary.soi
    assert {s.ids_L.tolist().count(soi) for s in images} == {1, 2, 3}


@pytest.mark.parametrize("clip", [False, True], ids=["codes", "features"])
def test_no_sample_is_longer_than_the_config_allows(
    tiny_world: TinyWorld, shards: Path, tmp_path: Path, clip: bool
) -> None:
    """With texts that are cut. ``plan`` assumes the longest."""
    short = "dataset.preprocessing.max_seq_length=" + ("1" if clip else "30")
    changes = [*ALONE, short, *(_clip(tmp_path / "clip") if clip else [])]
    config = _config(tiny_world, *_keys(shards), *changes)
    maker = _maker(config)
    system = len(maker._system)
    longest = max(map(len, _flat(_sequences(config))))
    allowed = longest_samples(config, 0, system)["mmu"]
    assert longest <= allowed
    if not clip:
        assert longest == allowed == 3 + 30 + 3 * 64 + 2 * 2
    (assumed, _) = AssumedSamples(config).sequences()
    assert assumed.ids_L.tolist().count(maker.vocabulary.soi) == MOST


def test_samples_without_anything_to_predict_are_counted(
    tiny_world: TinyWorld, shards: Path
) -> None:
    """The question alone fills the budget."""
    changes = [*ALONE, "dataset.preprocessing.max_seq_length=8", "data.max_bad_fraction=1"]
    config = _config(tiny_world, *_keys(shards), *changes)
    maker, loader = _maker(config), build_loader(flow_specs(config))
    windows = PackedBatches(loader, maker, CPU, 12, 0, 1)
    rows, account = next(windows)
    assert windows.bad.by_reason() == {"too-long": 16}, "all but the documents"
    assert windows.bad.tried == 24 and account.samples == 8
    assert (
        "nothing to predict in the text that dataset.preprocessing.max_seq_length leaves"
        in windows.bad.summary()
    )
    documents = [_sample(number)["json"]["texts"] for number in range(0, 24, 3)]
    lengths = [sum(len(w.ids) for w in maker.text.document(texts, 99)) for texts in documents]
    assert sum(row.labels for row in rows) == sum(min(8, length) for length in lengths)


def test_more_images_than_the_config_allows_are_skipped(
    tiny_world: TinyWorld, shards: Path
) -> None:
    config = _config(tiny_world, *_keys(shards, 24, most=2), *ALONE)
    (batch,) = islice(build_loader(flow_specs(config)), 1)
    several = sum(len(_sample(number)) == 2 + MOST for number in range(24))
    reasons = [(item.reason, item.detail) for item in batch.skipped]
    assert reasons == [("too-many-images", "3 images, at most 2 (dataset.max_images)")] * several
    assert len(batch.samples["mmu"]) == 24 - several > 0


def test_a_sample_is_the_same_on_every_rank_and_after_a_resume(
    tiny_world: TinyWorld, shards: Path
) -> None:
    whole = _sequences(_config(tiny_world, *_keys(shards), *ALONE), count=6)
    config = _config(tiny_world, *_keys(shards, 1), *ALONE)
    halves = [_sequences(config, rank, 2, 6) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for one, other in zip(batch, _flat(parts), strict=True):
            _same(one, other)
    loader = build_loader(
        flow_specs(_config(tiny_world, *_keys(shards, 4), *ALONE)),
        start_positions={"mmu": 4},
        num_workers=1,
    )
    (batch,) = islice(loader, 1)
    for one, other in zip(_maker(config)(batch), _flat(whole[2:4]), strict=True):
        _same(one, other)


@pytest.mark.parametrize("name", ["docs.jsonl", "train-00000.parquet", "docs.jsonl.gz"])
def test_documents_that_are_no_shards_name_the_converter(tiny_world: TinyWorld, name: str) -> None:
    data = f"dataset.params.train_mmu_shards_path_or_url={name}"
    with pytest.raises(
        ValueError, match=rf"from-interleaved {name} --images FOLDER --out data/mmu`"
    ):
        check_data_paths(_config(tiny_world, data))


@pytest.mark.parametrize("clip", [False, True], ids=["codes", "features"])
def test_the_curve_does_not_depend_on_the_ranks(
    tiny_world: TinyWorld, shards: Path, tmp_path: Path, clip: bool
) -> None:
    """Beside all other flows; with a token budget on one rank, and held-out samples."""
    changes = [
        *_keys(shards),
        *(_clip(tmp_path / "clip") if clip else []),
        f"dataset.params.validation_mmu_shards_path_or_url={shards}/train-000000.tar",
        "training.max_train_steps=6",
        "experiment.eval_every=6",
    ]
    two = train(tiny_world, tmp_path / "two", *changes, ranks=2)
    assert two.code == 0, two.stderr[-3000:]
    budget = ["training.gradient_accumulation_steps=2", "training.tokens_per_step=600"]
    one = train(tiny_world, tmp_path / "one", *changes, *budget)
    assert one.code == 0, one.stderr[-3000:]
    for key in ("loss", "loss/mmu", "loss/t2i", "loss/recon", "grad_norm"):
        assert one.curve(key=key) == pytest.approx(two.curve(key=key), rel=1e-4), key
    curve = one.curve(key="loss/mmu")
    assert curve[-1] < curve[0] - 0.1, curve
    assert one.losses[6]["validation/mmu"] == pytest.approx(two.losses[6]["validation/mmu"])

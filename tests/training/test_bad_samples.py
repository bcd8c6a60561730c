"""Bad samples in training: counted over all ranks, and too many of them stop all ranks with one line."""

import io
from itertools import pairwise
from pathlib import Path

import pytest

from showo_data.mini import draw, scene
from showo_data.shards import write_shard
from showo_dist.faults.bad_samples import Unlabelled
from tests.training.conftest import TinyWorld, train
from tests.training.test_mistakes import only_line


def _texts(folder: Path, bad: int, good: int) -> str:
    path = folder / "texts.tar"
    texts = [b"\xff"] * bad + [b"a red circle"] * good
    write_shard(path, [{"__key__": f"k{i}", "txt": text} for i, text in enumerate(texts)])
    return str(path)


@pytest.mark.slow
def test_a_few_are_counted_over_all_ranks(tiny_world: TinyWorld, tmp_path: Path) -> None:
    shard = _texts(tmp_path, bad=3, good=7)
    changes = [
        f"dataset.params.train_lm_shards_path_or_url={shard}",
        "training.batch_size_lm=5",
        "training.max_train_steps=2",
        "data.max_bad_fraction=0.5",
    ]
    done = train(tiny_world, tmp_path / "run", *changes, ranks=2)
    assert done.code == 0, done.stderr[-3000:]
    assert [done.losses[step]["skipped"] for step in (1, 2)] == [3, 6], "an epoch per step"
    assert f"6 samples skipped: not-utf8 6; most in {shard} 6" in done.stdout


@pytest.mark.slow
def test_too_many_stop_all_ranks_with_one_line(tiny_world: TinyWorld, tmp_path: Path) -> None:
    shard = _texts(tmp_path, bad=9, good=1)
    changes = [
        f"dataset.params.train_lm_shards_path_or_url={shard}",
        "training.batch_size_lm=20",
        "training.max_train_steps=50",
    ]
    line = only_line(train(tiny_world, tmp_path / "run", *changes, launcher="deepspeed", ranks=2))
    assert line.startswith("showo_dist.train: data.max_bad_fraction = 0.05: ")
    assert "not-utf8" in line and shard in line


def test_image_grids_where_one_rank_has_no_sample(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Under ZeRO-3 a forward pass of one rank alone would wait for the others for ever."""
    stream = io.BytesIO()
    draw(scene(0, 0)).save(stream, "PNG")
    images = [stream.getvalue(), b"no image"] * 4
    samples = [{"__key__": f"k{i}", "png": png, "txt": "a"} for i, png in enumerate(images)]
    write_shard(tmp_path / "images.tar", samples)
    changes = [
        f"dataset.params.train_t2i_shards_path_or_url={tmp_path}/images.tar",
        *("training.batch_size_t2i=1", "training.max_train_steps=6", "data.max_bad_fraction=0.9"),
        *("experiment.generate_every=1", "training.generation_timesteps=1"),
        *("distributed.engine=deepspeed", "distributed.zero_stage=3"),
        # Else weights this small stay whole on every rank.
        "distributed.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0, "
        "stage3_max_live_parameters: 0, stage3_max_reuse_distance: 0}}",
    ]
    done = train(tiny_world, tmp_path / "run", *changes, ranks=2)
    assert done.code == 0, done.stderr[-3000:]
    skipped = [done.losses[step]["skipped"] for step in range(1, 7)]
    assert {1} & {b - a for a, b in pairwise([0, *skipped])}, skipped


def test_a_flow_of_which_no_token_is_supervised_is_named(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """The system prompt is longer than a text may be, so all answers are cut."""
    cut = ["dataset.add_system_prompt=true", "dataset.preprocessing.max_seq_length=5"]
    steps = ["training.max_train_steps=12", "training.batch_size_t2i=-1"]
    done = train(tiny_world, tmp_path / "run", *cut, *steps)
    assert done.code == 0, done.stderr[-3000:]
    assert "loss/mmu" not in done.losses[12] and "loss/lm" in done.losses[12]
    lines = [line for line in done.stdout.splitlines() if "TRAINS NOTHING" in line]
    assert len(lines) == 1 and "mmu TRAINS NOTHING" in lines[0] and "max_seq_length" in lines[0]


def test_labels_end_a_series() -> None:
    lines: list[str] = []
    watch = Unlabelled(["t2i", "mmu"], lines.append, limit=3)
    for labelled in [{"t2i"}, {"t2i"}, {"t2i", "mmu"}, {"t2i"}, {"t2i"}]:
        watch(labelled)
    assert not lines
    for _ in range(5):
        watch({"t2i"})
    assert [line.split()[0] for line in lines] == ["mmu"]

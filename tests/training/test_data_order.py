"""A changed data order is refused on resume, unless it is allowed."""

import shutil
from pathlib import Path

import pytest

from showo_data import FlowSpec, Weighted
from showo_data.shards import write_shard
from showo_dist.checkpoint import BatchShape, RunState
from showo_dist.training.setup import data_order
from tests.training.conftest import Outcome, TinyWorld, train


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of plain texts."""
    folder = tmp_path_factory.mktemp("texts")
    for shard in range(4):
        samples = ({"__key__": f"{shard}-{i}", "txt": f"text {shard} {i}"} for i in range(10))
        write_shard(folder / f"{shard}.tar", samples)
    return folder


def settings(texts: Path, shards: str = "[0,1,2]", steps: int = 2) -> list[str]:
    paths = ",".join(f"{texts}/{number}.tar" for number in shards.strip("[]").split(","))
    return [
        *(f"training.batch_size_{flow}=-1" for flow in ("t2i", "mmu", "recon")),
        f"dataset.params.train_lm_shards_path_or_url=[{paths}]",
        f"training.max_train_steps={steps}",
    ]


@pytest.fixture(scope="module")
def first(tiny_world: TinyWorld, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = train(tiny_world, tmp_path_factory.mktemp("first") / "run", *settings(texts))
    assert outcome.code == 0, outcome.stderr[-3000:]
    return outcome


def resume(world: TinyWorld, first: Outcome, run: Path, *changes: str) -> Outcome:
    shutil.copytree(first.run, run)
    return train(world, run, *changes)


@pytest.mark.parametrize(
    ("shards", "changes", "expected"),
    [
        ("[0,1,2]", ["dataset.params.wds_seed=5"], "lm: seed 10086 in the checkpoint, 5 now"),
        ("[0,1,2]", ["data.window=3"], "lm: window 1000 in the checkpoint, 3 now"),
        ("[0,1,2]", ["data.streams=2"], "lm: streams 8 in the checkpoint, 2 now"),
        ("[0,1]", [], "(3 shards, 30 samples) in the checkpoint"),
        ("[0,1,2,3]", [], "(4 shards, 40 samples) now"),
        ("[1,0,2]", [], "lm: shards"),
    ],
    ids=["seed", "window", "streams", "removed", "added", "reordered"],
)
def test_a_changed_order_is_refused(
    tiny_world: TinyWorld,
    texts: Path,
    first: Outcome,
    tmp_path: Path,
    shards: str,
    changes: list[str],
    expected: str,
) -> None:
    outcome = resume(
        tiny_world, first, tmp_path / "run", *settings(texts, shards, steps=3), *changes
    )
    assert outcome.code == 2
    (line,) = [line for line in outcome.stderr.splitlines() if "data order changes" in line]
    assert expected in line and "experiment.allow_data_change=true" in line


def _order(texts: Path, *sources: str) -> dict[str, str]:
    """The order over sources such as "01", the shards 0 and 1, with the weights 1, 2, …; one is pooled."""
    urls = [tuple(f"{texts}/{shard}.tar" for shard in source) for source in sources]
    mixture = tuple(Weighted(part, 1.0 + number) for number, part in enumerate(urls))
    spec = FlowSpec(flow="lm", kind="text", batch=1, mixture=mixture)
    return data_order(spec)


def _change(before: dict[str, str], now: dict[str, str]) -> str | None:
    state = RunState(1, {}, {}, 1, None, {}, BatchShape(1, 1, {}), {"lm": before})
    return state.data_change({"lm": now})


def test_the_sources_of_a_mixture_are_part_of_the_order(texts: Path) -> None:
    pooled, mixed, other = (_order(texts, *s) for s in (("0123",), ("01", "23"), ("0", "123")))
    assert _change(pooled, pooled) is None and _change(mixed, mixed) is None
    change = _change(pooled, mixed) or ""
    assert "lm: mixture None in the checkpoint, 1, 2 now" in change
    assert "lm: mixture 1, 2 in the checkpoint, None now" in (_change(mixed, pooled) or "")
    moved = _change(mixed, other) or ""
    assert moved.endswith("lm: shards per source 2, 2 in the checkpoint, 1, 3 now")


def test_a_mixture_of_a_checkpoint_without_shards_per_source_resumes(texts: Path) -> None:
    mixed = _order(texts, "01", "23")
    old = {key: value for key, value in mixed.items() if key != "shards per source"}
    assert _change(old, mixed) is None
    assert "mixture" in (_change({**old, "mixture": "1, 3"}, mixed) or "")


def test_a_rewritten_shard_is_refused_or_allowed(
    tiny_world: TinyWorld, texts: Path, first: Outcome, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(texts, changed)
    samples = ({"__key__": f"1-{i}", "txt": f"text 1 {9 - i}"} for i in range(10))
    write_shard(changed / "1.tar", samples)
    refused = resume(tiny_world, first, tmp_path / "refused", *settings(changed, steps=3))
    assert refused.code == 2 and "data order changes: lm: shards" in refused.stderr
    allow = "experiment.allow_data_change=true"
    allowed = resume(tiny_world, first, tmp_path / "allowed", *settings(changed, steps=3), allow)
    assert allowed.code == 0, allowed.stderr[-3000:]
    assert "positions continue in the new order" in allowed.stdout
    assert sorted(allowed.losses) == [1, 2, 3]


def test_data_may_move_to_another_folder(
    tiny_world: TinyWorld, texts: Path, first: Outcome, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(texts, moved)
    outcome = resume(tiny_world, first, tmp_path / "run", *settings(moved, steps=3))
    assert outcome.code == 0, outcome.stderr[-3000:]


def test_a_flow_that_pauses_keeps_its_place(
    tiny_world: TinyWorld, texts: Path, first: Outcome, tmp_path: Path
) -> None:
    before = RunState.read(first.run / "checkpoint-000002")
    changes = [*settings(texts, steps=3), "training.batch_size_t2i=2", "training.lm_coeff=0"]
    outcome = resume(
        tiny_world, first, tmp_path / "run", *changes, "experiment.allow_batch_change=true"
    )
    assert outcome.code == 0, outcome.stderr[-3000:]
    after = RunState.read(tmp_path / "run" / "checkpoint-000003")
    assert before.positions["lm"] > 0 and after.positions["t2i"] > 0
    assert after.positions["lm"] == before.positions["lm"]
    assert after.data["lm"] == before.data["lm"]

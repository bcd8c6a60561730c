"""A broken weight: the samples that use it are named; too many such steps stop the run with one line."""

import json
import shutil
import signal
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from showo_dist.checkpoint import CheckpointReader
from showo_dist.checkpoint.folders import publish, set_back
from showo_dist.logging import read_metrics
from showo_dist.sequences import TextEncoder
from showo_dist.training.nonfinite import NonFiniteSteps
from showo_dist.training.step import StepLosses
from showo_launch.exit_codes import NON_FINITE, PREEMPTED
from tests.faults.processes import start
from tests.training.conftest import TEXT_TOKENS, TinyWorld

LIMIT_S, STEPS = 600.0, 20  # one epoch of 40 texts on two ranks


def _run(world: TinyWorld, run: Path, *changes: str) -> tuple[list[int], str]:
    arguments = [
        f"config={world.config}",
        f"experiment.output_dir={run}",
        "training.batch_size_t2i=-1",
        "training.batch_size_mmu=-1",
        "training.batch_size_recon=-1",
        *changes,
    ]
    life = start(arguments, run, 2)
    return life.codes(LIMIT_S), life.printed()


def _texts(world: TinyWorld) -> dict[str, list[int]]:
    """Token ids of every text by key."""
    encoder = TextEncoder(str(world.folder / "text"), TEXT_TOKENS)
    with tarfile.open(world.data / "text-000000.tar") as shard:
        texts = {m.name: shard.extractfile(m) for m in shard if m.name.endswith(".txt")}
        return {
            name.removesuffix(".txt"): encoder.encode(file.read().decode())
            for name, file in texts.items()
            if file is not None
        }


def _rare_token(texts: dict[str, list[int]]) -> int:
    """A token that a few texts contain."""
    uses = {t: sum(t in ids for ids in texts.values()) for ids in texts.values() for t in ids}
    return min(token for token, count in uses.items() if 3 <= count <= 5)


def _with_broken_row(checkpoint: Path, token: int, folder: Path) -> Path:
    """Initial weights in which the embedding of one token is NaN."""
    reader = CheckpointReader(checkpoint)
    tensors = {name: reader.read("weight", name) for name in reader.names()}
    (table,) = [tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
    table[token] = torch.nan
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(checkpoint / "config.json", folder)
    return folder


def test_good_checkpoints_are_named_after_a_resume(tmp_path: Path) -> None:
    """Of a run that met no finite step since, its own start is doubtful, and older ones are good."""
    for step in (10, 20):
        (tmp_path / f"checkpoint-{step:06d}").mkdir()
    set_back(tmp_path, tmp_path / "checkpoint-000020")
    steps = NonFiniteSteps(tmp_path, 3, print, rank=1, start_step=20)
    assert f"the last good checkpoint is {tmp_path}/checkpoint-000010" in str(steps.end(23))


def test_good_checkpoints_are_the_runs_own(tmp_path: Path) -> None:
    """Not those of a branch that the run left, nor, from scratch, those of an earlier run."""
    finite = StepLosses({}, 1.0, 1.0, {}, applied=True, bad_flows=[], stop=False)
    for step in (10, 20, 30):
        (tmp_path / f"checkpoint-{step:06d}").mkdir()
    for start_step, good in ((10, f"is {tmp_path}/checkpoint-000010"), (0, "no good checkpoint")):
        set_back(tmp_path, tmp_path / "checkpoint-000010")
        steps = NonFiniteSteps(tmp_path, 3, print, rank=1, start_step=start_step)
        steps(35, finite, [])
        assert good in str(steps.end(38))
        aside = tmp_path / ".checkpoint-000020.0.partial"
        aside.mkdir()
        publish(aside, tmp_path / "checkpoint-000020")
        assert f"is {tmp_path}/checkpoint-000020" in str(steps.end(38))


def test_a_stop_in_a_series_of_skipped_steps_saves_nothing(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """An update at a huge rate overflows the weights; every later step is skipped."""
    run = tmp_path / "run"
    common = [f"config={tiny_world.config}", f"experiment.output_dir={run}"]
    assert start([*common, "training.max_train_steps=1"], run, 1).codes(LIMIT_S) == [0]
    spoiled = [
        *("training.max_train_steps=100000", "fault.max_nonfinite_in_a_row=100000"),
        *("optimizer.params.learning_rate=1e30", "experiment.save_every=1"),
    ]
    life = start([*common, *spoiled], run, 1, number=1)
    life.wait_for_step(5)
    life.send(signal.SIGTERM, 0)
    assert life.codes(LIMIT_S) == [PREEMPTED], life.printed()
    assert "is not saved: its loss or gradient was not finite" in life.printed()
    saved = {int(path.name[-6:]) for path in run.glob("checkpoint-*")}
    assert saved <= {1, 2} and 1 in saved


@pytest.mark.slow
def test_samples_are_named_and_the_last_good_checkpoint(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    codes, printed = _run(tiny_world, tmp_path / "first", "training.max_train_steps=1")
    assert codes == [0, 0], printed
    texts = _texts(tiny_world)
    token = _rare_token(texts)
    weights = _with_broken_row(tmp_path / "first" / "checkpoint-000001", token, tmp_path / "broken")
    guilty = {key for key, ids in texts.items() if token in ids}
    run = tmp_path / "run"
    changes = [
        f"experiment.init_from={weights}",
        f"training.max_train_steps={STEPS}",
        "experiment.save_every=1",
        "experiment.keep_last=0",
    ]

    codes, printed = _run(tiny_world, run, *changes, "fault.max_nonfinite_in_a_row=1")
    assert codes == [NON_FINITE, NON_FINITE], printed
    first = read_metrics(run / "nonfinite.jsonl")[0]["step"]
    (line,) = [text for text in printed.splitlines() if "max_nonfinite_in_a_row" in text][-1:]
    assert first > 2, "the seed of the data puts a good start first"
    assert f"the last good checkpoint is {run}/checkpoint-{first - 2:06d};" in line
    assert f"last of them step {first};" in line

    codes, printed = _run(tiny_world, run, *changes)
    assert codes == [0, 0], printed
    lines = read_metrics(run / "nonfinite.jsonl")
    assert {line["key"] for line in lines} == guilty
    assert len(lines) == len(guilty), "each once, though the first was met twice"
    assert all(
        (line["flow"], line["what"]) == ("lm", "loss")
        and line["shard"].endswith("text-000000.tar")
        and line["rank"] == line["position"] % 2
        for line in lines
    )
    metrics = read_metrics(run / "metrics.jsonl")
    skipped = {line["step"] for line in lines}
    assert {m["step"] for m in metrics if m["loss"] is None} == skipped
    assert metrics[-1]["nonfinite"] == len(skipped)
    saved = {int(path.name[-6:]) for path in run.glob("checkpoint-*")}
    assert saved == set(range(1, STEPS + 1)) - skipped | {STEPS}
    assert f"step {first} skipped on all ranks" in (run / "events.jsonl").read_text()


@pytest.mark.slow
def test_a_model_that_is_broken_from_the_start_has_no_good_checkpoint(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    codes, printed = _run(tiny_world, tmp_path / "first", "training.max_train_steps=1")
    assert codes == [0, 0], printed
    weights = _with_broken_row(tmp_path / "first" / "checkpoint-000001", 0, tmp_path / "broken")
    tensors = load_file(weights / "model.safetensors")
    for tensor in tensors.values():
        tensor.fill_(torch.inf)
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    changes = [f"experiment.init_from={weights}", "fault.max_nonfinite_in_a_row=3"]
    codes, printed = _run(tiny_world, tmp_path / "run", *changes, "training.max_train_steps=9")
    assert codes == [NON_FINITE, NON_FINITE]
    assert "step 3; there is no good checkpoint;" in printed
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2], "the third ended it"

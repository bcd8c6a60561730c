"""The next window is made in a thread: the same numbers, the same positions, errors as they are."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from showo_data import build_loader
from showo_dist.config import TrainConfig, load
from showo_dist.sequences import TOKEN_MULTIPLE
from showo_dist.training.batches import Ahead, PackedBatches, SequenceMaker
from showo_dist.training.setup import flow_specs, load_encoders, load_text
from tests.training.conftest import TinyWorld, train

CPU = torch.device("cpu")
WINDOWS = 4


def call(wait: Callable[[], Any]) -> Any:
    return wait()


def test_one_item_is_made_ahead_and_no_more() -> None:
    made: list[tuple[int, bool]] = []

    def items() -> Iterator[int]:
        for number in range(3):
            made.append((number, threading.current_thread() is threading.main_thread()))
            yield number

    ahead = Ahead(items(), call)
    for number in range(3):
        assert next(ahead) == number
        ahead.settle()
        ahead.settle()
        assert [n for n, _ in made] == list(range(min(number + 2, 3)))
    assert [in_main for _, in_main in made] == [True, False, False]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ahead)


def test_an_error_is_raised_as_it_is_where_its_item_was_due() -> None:
    error = ValueError("dataset.params.x = 3: too many")

    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    ahead = Ahead(items(), call)
    assert (next(ahead), next(ahead)) == (1, 2)
    ahead.settle()
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            next(ahead)
        assert caught.value is error
        assert "items" in [frame.name for frame in caught.traceback], "the place of the error"


class Counted:
    """A loader that counts what was read from it."""

    def __init__(self, config: TrainConfig) -> None:
        self._loader, self.read = build_loader(flow_specs(config)), 0
        self.positions_after, self.waiting = self._loader.positions_after, self._loader.waiting

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self.read += 1
            yield batch


@pytest.mark.parametrize("budget", [None, 500])
def test_windows_and_their_state_are_those_made_without_a_thread(
    tiny_world: TinyWorld, budget: int | None
) -> None:
    changes = [
        "training.gradient_accumulation_steps=2",
        f"training.tokens_per_step={budget or 'null'}",
    ]
    config = load([f"config={tiny_world.config}", *changes], TrainConfig, check=False)
    encoders, text = load_encoders(config, CPU), load_text(config)
    showo = config.model.showo
    vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
    maker, loader = SequenceMaker(config, text, vocabulary, encoders), Counted(config)
    rows = maker.micro_steps() if budget else None
    every: Any = loader
    batches = PackedBatches(
        every, maker, CPU, 2, 0, TOKEN_MULTIPLE, rows=rows, windows=WINDOWS, ahead=True
    )
    plain = PackedBatches(Counted(config), maker, CPU, 2, 0, TOKEN_MULTIPLE, rows=rows)._read(False)  # type: ignore[arg-type]
    good = 0
    for done in range(WINDOWS):
        window, _ = next(batches)
        batches.settle()
        assert loader.read == 2 * min(done + 2, WINDOWS), "one window ahead"
        wanted = next(plain)
        good += sum(len(s) for b in wanted.read for s in b.samples.values())
        for found, row in zip(window, wanted.rows, strict=True):
            assert_equal(found, row)
        found_positions, wanted_positions = (
            [[s.position for f in b.samples.values() for s in f] for b in side]
            for side in (batches.window_read, wanted.samples)
        )
        assert found_positions == wanted_positions
        assert batches.positions() == loader.positions_after(2 * (done + 1))
        assert (batches.bad.tried, batches.bad.total) == (good, 0)


def test_a_window_that_repeats_moves_no_position(tiny_world: TinyWorld) -> None:
    """A run that overfits one batch goes on with the same one when it is resumed."""
    config = load([f"config={tiny_world.config}"], TrainConfig, check=False)
    encoders, text = load_encoders(config, CPU), load_text(config)
    showo = config.model.showo
    vocabulary = text.vocabulary(showo.llm_vocab_size, showo.codebook_size)
    maker, loader = SequenceMaker(config, text, vocabulary, encoders), Counted(config)
    every: Any = loader
    batches = PackedBatches(every, maker, CPU, 1, 0, TOKEN_MULTIPLE, True, windows=3)
    for _ in range(3):
        next(batches)
    assert loader.read == 1 and batches.positions() == loader.positions_after(0)


def assert_equal(found: Any, wanted: Any) -> None:
    """Compare two packed batches with their plans, tensor by tensor."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    elif is_dataclass(wanted):
        for item in fields(wanted):
            assert_equal(getattr(found, item.name), getattr(wanted, item.name))
    elif isinstance(wanted, list | tuple):
        for pair in zip(found, wanted, strict=True):
            assert_equal(*pair)
    else:
        assert found == wanted


def test_a_run_resumes_exactly_at_every_step(tiny_world: TinyWorld, tmp_path: Path) -> None:
    budget = ["training.tokens_per_step=300", "training.max_train_steps=3"]
    plain = train(tiny_world, tmp_path / "plain", *budget)
    budget += ["training.pack_ahead=true"]
    whole = train(tiny_world, tmp_path / "whole", *budget, "experiment.save_every=1")
    assert whole.code == 0, whole.stderr[-3000:]
    assert whole.curve() == plain.curve(), "with and without the thread"
    for step in (1, 2):
        run = tmp_path / str(step)
        start = f"experiment.resume_from_checkpoint={whole.run / f'checkpoint-{step:06d}'}"
        resumed = train(tiny_world, run, *budget, start)
        assert resumed.code == 0, resumed.stderr[-3000:]
        assert resumed.resumed_at == step
        assert resumed.curve(first=step + 1) == whole.curve(first=step + 1)
        assert resumed.curve(step + 1, "grad_norm") == whole.curve(step + 1, "grad_norm")

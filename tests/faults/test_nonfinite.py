"""A step that is not finite changes nothing on any rank, under any engine, nor any later step."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.faults.skipping import MICRO_STEPS, State, Trained, serve
from tests.forks import forking, free_port, rank_environment
from tests.single_pass.case import Case

RANKS = 2
ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
EMA = (("training.ema.decay", 0.9),)
CASES = [Case(e, "even", MICRO_STEPS, bf16=b, settings=EMA) for e in ENGINES for b in (False, True)]
LIMIT_S = 600.0
Found = dict[str, list[tuple[Trained, Trained, Trained]]]


@pytest.fixture(scope="module")
def found() -> Found:
    """The results of both ranks, by case."""
    context = forking()
    port, pipes, processes = free_port(), [], []
    for rank in range(RANKS):
        ours, theirs = context.Pipe()
        environment = rank_environment(rank, RANKS, port)
        process = context.Process(target=serve, args=(theirs, environment, CASES), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        found: Found = {str(case): [] for case in CASES}
        for case in CASES:
            for rank, pipe in enumerate(pipes):
                assert pipe.poll(LIMIT_S), f"{case}: rank {rank} hangs"
                found[str(case)].append(pipe.recv())
        return found
    finally:
        for process in processes:
            process.kill()


def _same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


for_every_engine: Callable = pytest.mark.parametrize("case", list(map(str, CASES)))


@for_every_engine
def test_all_ranks_skip_the_step_together(found: Found, case: str) -> None:
    for spoiled, _, _ in found[case]:
        assert [losses.applied for losses in spoiled.losses] == [True, False, True]
        assert not np.isfinite(spoiled.losses[1].total)
        assert np.isfinite(spoiled.losses[2].total) and np.isfinite(spoiled.losses[2].grad_norm)


@for_every_engine
def test_weights_moments_and_schedule_are_untouched(found: Found, case: str) -> None:
    for spoiled, without, _ in found[case]:
        _same(spoiled.states[1], spoiled.states[0])
        _same(spoiled.states[2], without.states[1])
        weights = [name for name in spoiled.states[0] if name.startswith("weight/")]
        changed = [n for n in weights if (spoiled.states[2][n] != spoiled.states[1][n]).any()]
        assert changed, "the step after it trains"
        assert any(name.startswith("ema/") for name in spoiled.states[0])


@for_every_engine
def test_flow_and_micro_step_are_reported_on_their_rank_only(found: Found, case: str) -> None:
    innocent, guilty = found[case]
    assert innocent[0].losses[1].bad_flows == [set(), set()]
    assert guilty[0].losses[1].bad_flows == [{"mmu"}, set()]
    assert guilty[0].losses[2].bad_flows == [set(), set()]


@for_every_engine
def test_an_infinite_loss_with_a_finite_gradient_is_skipped_too(found: Found, case: str) -> None:
    for _, _, hopeless in found[case]:
        assert not hopeless.losses[0].applied
        assert not np.isfinite(hopeless.losses[0].total)
        assert hopeless.states[0]["lr"] == pytest.approx(1e-3)
        for name, value in hopeless.states[0].items():
            if name.startswith("exp_avg"):
                assert not value.any(), name

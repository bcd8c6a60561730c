"""Dead, failed and hung ranks are recognised from heartbeats in every case, and a healthy rank never is."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from showo_dist.faults.beats import Beat, Board, Verdict
from showo_dist.faults.judge import Timeouts, judge
from showo_dist.faults.progress import Place

TIMEOUTS = Timeouts(silent_s=7.0, still_s=7.0, long_s=100.0)
WORLD = 4


def _place(moves: int, phase: str = "forward", long: bool = False) -> Place:
    return Place(step=12, phase=phase, moves=moves, may_take_long=long)


def _beats(count: int, places: list[Place] | None = None) -> dict[int, Beat]:
    places = places or [_place(count)] * WORLD
    return {r: Beat(count, f"host{r}", 100 + r, place) for r, place in enumerate(places)}


def _board(reads: list[tuple[float, dict[int, Beat]]]) -> Board:
    board = Board.first(reads[0][1], reads[0][0])
    for now, beats in reads[1:]:
        board = board.updated(beats, now)
    return board


def _silenced(rank: int, seconds: float) -> Board:
    """``rank`` was stopped after the first read; the others continued, one read per second."""
    first = _beats(1)
    reads = [(0.0, first)]
    for second in range(1, int(seconds) + 1):
        reads.append((float(second), {**_beats(1 + second), rank: first[rank]}))
    return _board(reads)


@pytest.mark.parametrize("rank", range(1, WORLD))
@pytest.mark.parametrize("own", [0, 1])
def test_a_silent_process_is_named_with_its_last_place(rank: int, own: int) -> None:
    if rank == own:
        return
    verdict = judge(_silenced(rank, 8), own, TIMEOUTS, 8.0)
    assert verdict == Verdict(
        (rank,),
        f"rank {rank} (host host{rank}, pid {100 + rank}) has not been heard of for 8 s; it was last in "
        "forward of step 12",
    )
    assert judge(_silenced(rank, 6), own, TIMEOUTS, 6.0) is None


def test_a_rank_that_cannot_read_names_the_host_of_the_store() -> None:
    board = _board([(0.0, _beats(1)), (1.0, _beats(2))])
    assert judge(board, 2, TIMEOUTS, 7.5) is None
    verdict = judge(board, 2, TIMEOUTS, 8.5)
    assert verdict is not None and verdict.lost == (0,)
    assert "rank 0 (host host0, pid 100) has not been heard of for 8 s" in verdict.text


def test_a_rank_that_was_stopped_itself_names_no_other() -> None:
    board = _silenced(3, 8).restarted(50.0)
    assert judge(board, 1, TIMEOUTS, 51.0) is None


def _stuck(places: list[Place], seconds: float) -> Board:
    """Live processes whose main threads do not move."""
    return _board([(float(s), _beats(1 + s, places)) for s in range(int(seconds) + 1)])


def test_the_rank_that_is_behind_is_hung() -> None:
    places = [
        _place(9, "exchange"),
        _place(9, "exchange"),
        _place(8, "data"),
        _place(9, "exchange"),
    ]
    verdict = judge(_stuck(places, 8), 0, TIMEOUTS, 8.0)
    assert verdict is not None and verdict.lost == (2,)
    assert (
        "rank 2 (host host2, pid 102) has not got beyond data of step 12 for 8 s and the others"
        in (verdict.text)
    )


def test_no_rank_is_named_when_all_are_in_one_place() -> None:
    verdict = judge(_stuck([_place(9, "backward")] * WORLD, 8), 0, TIMEOUTS, 8.0)
    assert verdict == Verdict((), "no rank has moved for 8 s: all are in backward of step 12")


@pytest.mark.parametrize("phase", ["save", "images", "setup", "forward"])
def test_a_long_phase_has_the_long_limit(phase: str) -> None:
    places = [_place(8, phase, long=True), *[_place(9, "exchange")] * 3]
    assert judge(_stuck(places, 90), 1, TIMEOUTS, 90.0) is None
    verdict = judge(_stuck(places, 101), 1, TIMEOUTS, 101.0)
    assert verdict is not None and verdict.lost == (0,)


def test_a_failed_rank_is_named_at_once_with_its_error() -> None:
    beats = _beats(2)
    failed = Beat(3, "host1", 101, _place(3), ended="failed", error="OutOfMemoryError: no more")
    board = _board([(0.0, _beats(1)), (1.0, {**beats, 1: failed})])
    verdict = judge(board, 0, TIMEOUTS, 1.0)
    assert verdict is not None and verdict.lost == (1,)
    assert verdict.text.endswith("failed in forward of step 12: OutOfMemoryError: no more")


def test_the_verdict_of_another_rank_is_adopted() -> None:
    found = Verdict((3,), "rank 3 is lost")
    announced = Beat(2, "host1", 101, _place(2), verdict=found)
    board = _board([(0.0, _beats(1)), (1.0, {**_beats(2), 1: announced})])
    assert judge(board, 0, TIMEOUTS, 1.0) == found


def test_ranks_that_have_ended_are_not_missed() -> None:
    done = {r: Beat(2, f"host{r}", 100 + r, _place(2, "end"), ended="done") for r in (1, 2, 3)}
    reads = [(float(s), {0: _beats(s + 3)[0], **done}) for s in range(60)]
    assert judge(_board(reads), 0, TIMEOUTS, 60.0) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(*[st.integers(0, 10)] * WORLD), min_size=1, max_size=8))
def test_healthy_ranks_are_never_blamed(steps: list[tuple[int, ...]]) -> None:
    """In each step a rank takes some number of half seconds, and all ranks wait for the slowest."""
    now, moves = 0.0, 0
    board = Board.first(_beats(0, [_place(0)] * WORLD), now)
    for own in steps:
        for tick in range(max(own) + 1):
            at = now + tick / 2
            places = [_place(moves + (tick >= ticks)) for ticks in own]
            board = board.updated(_beats(int(2 * at) + 1, places), at)
            for rank in range(WORLD):
                assert judge(board, rank, TIMEOUTS, at) is None
        now, moves = now + max(own) / 2, moves + 1


def test_a_heartbeat_survives_encoding() -> None:
    beat = Beat(7, "a", 1, _place(3), "failed", "error", Verdict((1, 2), "text"))
    assert Beat.decode(beat.encode()) == beat
    assert Beat.decode(_beats(1)[0].encode()) == _beats(1)[0]

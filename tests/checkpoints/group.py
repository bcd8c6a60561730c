"""A function run by the ranks of a process group, in real processes, within a time limit."""

import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.forks import forking, free_port, rank_environment

LIMIT_S = 400.0


def _serve(
    pipe: Connection, environment: dict[str, str], job: Callable, args: tuple, limit_s: float
) -> None:
    import torch

    from showo_dist.runtime.ranks import joined

    os.environ.update(environment)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed's use of torch's old names
    answer: tuple[Any, str | None]
    try:
        with joined(timeout_s=limit_s, always_group=True) as ranks:
            answer = job(ranks, *args), None
    except BaseException:
        answer = None, traceback.format_exc()
    pipe.send_bytes(
        pickle.dumps(answer)
    )  # plainly: tensors in memory shared with a rank end with it


def _start(
    world: int, job: Callable[..., Any], args: tuple, limit_s: float = LIMIT_S
) -> dict[Any, Connection]:
    """Processes of a new group and the pipes on which they will answer."""
    context, port, started = forking(), free_port(), {}
    for rank in range(world):
        environment = rank_environment(rank, world, port)
        ours, theirs = context.Pipe()
        serving = (theirs, environment, job, args, limit_s)
        process = context.Process(target=_serve, args=serving, daemon=True)
        process.start()
        theirs.close()
        started[process] = ours
    return started


@contextmanager
def started(world: int, job: Callable[..., Any], *args: Any) -> Iterator[list[Any]]:
    """The processes of a group that runs ``job(ranks, *args)``; ended with the context."""
    processes = list(_start(world, job, args))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def on_ranks(
    world: int, job: Callable[..., Any], *args: Any, limit_s: float = LIMIT_S
) -> list[Any]:
    """What ``job(ranks, *args)`` returns on each rank.

    Raises:
        AssertionError: a rank failed, died, or was not done in time; all of them are killed.
    """
    group = _start(world, job, args, limit_s)
    try:
        return _collect(list(group.values()), limit_s)
    finally:
        for process in group:
            process.kill()
            process.join()


def _collect(pipes: list[Connection], limit_s: float) -> list[Any]:
    results: dict[Connection, Any] = {}
    deadline = time.monotonic() + limit_s
    while len(results) < len(pipes):
        silent = [pipe for pipe in pipes if pipe not in results]
        ready = wait(silent, max(0.0, deadline - time.monotonic()))
        assert ready, f"no answer of ranks {[pipes.index(pipe) for pipe in silent]}"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            try:
                result, problem = pickle.loads(pipe.recv_bytes())
            except EOFError:
                raise AssertionError(f"rank {pipes.index(pipe)} died") from None
            assert problem is None, f"rank {pipes.index(pipe)}:\n{problem}"
            results[pipe] = result
    return [results[pipe] for pipe in pipes]

"""Files that a rank writes before it stops: the stacks of its threads, and torch's record of collectives."""

import faulthandler
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from showo_dist.faults.beats import Board

_RECORDED = "2000"  # collectives kept per rank; some MB


def record_collectives(watched: bool) -> None:
    """Switch torch's flight recorder on. Call it before the process group is created.

    Args:
        watched: whether :mod:`~showo_dist.faults.watch` decides when a rank is lost. NCCL's own watchdog
            would abort the survivors at the first broken connection, before they know which rank it was,
            and without the exit code after which a run is started again.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED)
    if watched:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # NoHandling
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")  # or it aborts a stuck watchdog


def write(folder: Path, name: str, lines: Sequence[str], limit_s: float) -> None:
    """Write ``NAME.txt`` and ``NAME-collectives.json``; give up after ``limit_s``: a disk may hang too.

    Args:
        folder: created if absent.
        name: contains the step and the rank.
        lines: text that precedes the stacks.
        limit_s: seconds.
    """
    writer = threading.Thread(target=_write, args=(folder, name, lines), daemon=True)
    writer.start()
    writer.join(limit_s)


def _write(folder: Path, name: str, lines: Sequence[str]) -> None:
    try:
        _write_files(folder, name, lines)
    except OSError as error:
        print(f"{folder}: no evidence is written: {error.strerror}", file=sys.stderr, flush=True)


def _write_files(folder: Path, name: str, lines: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.txt").open("w") as file:
        file.write("\n".join([*lines, "", ""]))
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    collectives = _collectives()
    if collectives:
        (folder / f"{name}-collectives.json").write_bytes(collectives)


def table(board: Board) -> list[str]:
    """What a rank knew of all ranks, one line each."""
    return [
        f"rank {rank}  host {last.beat.host}  pid {last.beat.pid}  {last.beat.place}  "
        f"last heartbeat {board.contact_at - last.alive_at:.1f} s before the last read"
        for rank, last in sorted(board.ranks.items())
    ]


def _collectives() -> bytes | None:
    """The flight recorder's JSON, by a private function of torch; None for builds without it."""
    from torch._C import _distributed_c10d as c10d

    names = {"nccl": "_dump_nccl_trace_json", "gloo": "_dump_fr_trace_json"}
    dump = getattr(c10d, names.get(dist.get_backend(), ""), None)
    return None if dump is None else dump()

"""What a rank writes down before it gives up: stacks of its threads, and torch's record of collectives."""

import faulthandler
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from showo_dist.faults.beats import Board

_RECORDED = "2000"  # collectives kept per rank; some MB


def record_collectives() -> None:
    """Switch torch's flight recorder on. Before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED)


def write_down(folder: Path, name: str, lines: Sequence[str], limit_s: float) -> None:
    """Write ``NAME.txt`` and ``NAME-collectives.json``; gives up after ``limit_s``: a disk may hang too.

    Args:
        folder: made when absent.
        name: says which rank, and when.
        lines: what is known already; the stacks follow them.
        limit_s: seconds.
    """
    writer = threading.Thread(target=_write, args=(folder, name, lines), daemon=True)
    writer.start()
    writer.join(limit_s)


def _write(folder: Path, name: str, lines: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.txt").open("w") as file:
        file.write("\n".join([*lines, "", ""]))
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    collectives = _collectives()
    if collectives:
        (folder / f"{name}-collectives.json").write_bytes(collectives)


def table(board: Board) -> list[str]:
    """What a rank had heard of all ranks, one line each."""
    return [
        f"rank {rank}  host {heard.beat.host}  pid {heard.beat.pid}  {heard.beat.place}  "
        f"heard of {board.contact_at - heard.alive_at:.1f} s before the last look"
        for rank, heard in sorted(board.ranks.items())
    ]


def _collectives() -> bytes | None:
    """The flight recorder's JSON; torch offers no public name for it. None where its build has none."""
    from torch._C import _distributed_c10d as c10d

    names = {"nccl": "_dump_nccl_trace_json", "gloo": "_dump_fr_trace_json"}
    dump = getattr(c10d, names.get(dist.get_backend(), ""), None)
    return None if dump is None else dump()

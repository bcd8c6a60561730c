"""What collectives send: bytes per rank, by the ring algorithms of NCCL and gloo."""

from __future__ import annotations

from collections.abc import Iterable

from showo_dist.plan.shapes import Collective

# Of 1500 bytes in an Ethernet frame TCP with time stamps carries 1448; the frame's header has 14 more.
FRAME_BYTES, PAYLOAD_BYTES = 1514, 1448


def sent_bytes(call: Collective, ranks: int, backend: str) -> float:
    """Bytes of payload that one rank sends.

    Args:
        call: the collective; its size is that of the whole.
        ranks: of the group that it is made on.
        backend: ``nccl`` or ``gloo``, whose reduce_scatter is an all_reduce.
    """
    share = (ranks - 1) / ranks
    if call.kind == "all_reduce" or (call.kind == "reduce_scatter" and backend == "gloo"):
        return 2 * share * call.bytes
    return share * call.bytes


def step_bytes(calls: Iterable[Collective], ranks: int, backend: str) -> float:
    """Bytes of payload that one rank sends in one optimizer step."""
    return sum(sent_bytes(call, ranks, backend) for call in calls)


def on_the_wire(payload: float) -> float:
    """Bytes of Ethernet frames that carry a TCP payload, in full frames."""
    return payload * FRAME_BYTES / PAYLOAD_BYTES

"""Section ``fault``: what a run does about ranks, numbers and machines that go wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class FaultConfig:
    """Dead, hung and slow ranks; steps that are not finite."""

    timeout_s: float = 300.0
    """Seconds within which the other ranks stop, with one line and exit code 76, once a rank is dead,
    frozen or does not move. Phases that may take long (setup, the first step, saving, pictures) have
    `distributed.timeout_s` to move, but must be alive all the same. 0: nobody watches."""
    max_nonfinite_in_a_row: int = 10
    """Steps whose loss or gradient is not finite are skipped on all ranks; after this many in a row
    the run stops with exit code 77."""
    slow_factor: float = 1.5
    """A rank whose own time per step is this many times the median of the others is named in
    `events.jsonl`; 0: never."""

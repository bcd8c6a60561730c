"""What a rank has written is read back from the disk: any other byte there is found at once."""

import random
from pathlib import Path

import pytest
import torch

from showo_dist.checkpoint.folders import FileEntry
from showo_dist.checkpoint.parts import read_back, write_part
from showo_dist.checkpoint.slices import Piece

LARGE = 1_500_000  # elements: more than is compared at a time


@pytest.fixture
def pieces() -> list[Piece]:
    """Whole tensors and a run of one, a value that is not a number, and an unusual name."""
    torch.manual_seed(0)
    whole_N, run_N, one_N = torch.randn(LARGE), torch.randn(5), torch.full((1,), torch.nan)
    return [
        Piece("weight", "small", (5,), 0, run_N),
        Piece("weight", "large", (3, LARGE // 3), 0, whole_N),
        Piece("weight", 'über "all"', (9,), 2, run_N.clone()),
        Piece("weight", "single", (), 0, one_N),
    ]


@pytest.fixture
def written(pieces: list[Piece], tmp_path: Path) -> Path:
    part = write_part(tmp_path, pieces, rank=0, world=1)
    (name,) = part.files
    assert part.files[name] == FileEntry.of(tmp_path / name)
    return tmp_path / name


def test_every_flipped_bit_and_every_cut_is_found(written: Path, pieces: list[Piece]) -> None:
    content = written.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    chance = random.Random(0)
    places = [*range(header + 4), len(content) - 1, *chance.sample(range(len(content)), 20)]
    for place in places:
        with written.open("r+b") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ 1 << chance.randrange(8)]))
        with pytest.raises(OSError, match=r"model-.*other bytes than were written"):
            read_back(written, pieces)
        with written.open("r+b") as file:
            file.seek(place)
            file.write(content[place : place + 1])
    for damaged in (b"", content[:7], content[:header], content[:-1], content + b"\0"):
        written.write_bytes(damaged)
        with pytest.raises(OSError, match="other bytes than were written"):
            read_back(written, pieces)
    written.write_bytes(content)
    assert read_back(written, pieces) == FileEntry.of(written)


def test_a_piece_that_is_missing_or_too_many_is_found(written: Path, pieces: list[Piece]) -> None:
    another = Piece("weight", "another", (1,), 0, torch.zeros(1))
    for others in (pieces[:-1], [*pieces, another]):
        with pytest.raises(OSError, match="other bytes than were written"):
            read_back(written, others)

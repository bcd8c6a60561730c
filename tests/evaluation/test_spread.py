"""How work is shared out, when it counts as done, and which evaluation may use a folder."""

import io
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from showo_data.files import remove_unfinished
from showo_dist.evaluation.job import RECORD_NAME, claim_folder
from showo_dist.evaluation.spread import Unit, batches, rank_named, share, spread
from showo_dist.models.weights.sources import weights_digest
from showo_dist.runtime.exits import MachineError, OneRankError
from showo_dist.runtime.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


@given(st.lists(st.integers(), max_size=60), st.integers(1, 9))
def test_every_unit_has_one_rank(units: list[int], world: int) -> None:
    shares = [share(units, rank, world) for rank in range(world)]
    assert Counter(unit for part in shares for unit in part) == Counter(units)
    sizes = [len(part) for part in shares]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(), max_size=60), st.integers(1, 9))
def test_batches_lose_nothing(items: list[int], size: int) -> None:
    parts = batches(items, size)
    assert [item for part in parts for item in part] == items
    assert all(len(part) == size for part in parts[:-1])


def _units(folder: Path, count: int) -> list[Unit]:
    return [Unit(n, (folder / f"{n}.a", folder / f"{n}.b")) for n in range(count)]


def test_only_missing_files_are_made(tmp_path: Path) -> None:
    units = _units(tmp_path, 5)
    for path in (*units[1].files, units[3].files[0]):
        path.touch()
    (tmp_path / ".4.a.77.partial").touch()
    made: list[int] = []

    def make(unit: Unit) -> None:
        made.append(unit.index)
        for path in unit.files:
            path.touch()

    spread(units, make, ALONE, "work")
    assert made == [0, 2, 3, 4]
    spread(units, make, ALONE, "work")
    assert made == [0, 2, 3, 4]


# Dies when some bytes of the PNG are on the disk.
_KILLED = """
import os, signal, sys
from pathlib import Path
from PIL import Image
from showo_dist.generation.output import save_image

class Mortal(Image.Image):
    def save(self, stream, *args, **kwargs):
        stream.write(b"half an image")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

image = Image.new("RGB", (8, 8))
image.__class__ = Mortal
save_image(image, Path(sys.argv[1]), {})
"""


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("cut", [0, 20, -20])
def test_a_cut_image_does_not_count(tmp_path: Path, cut: int) -> None:
    unit = Unit(0, (tmp_path / "0.png",))
    unit.files[0].write_bytes(_png())
    assert unit.done
    unit.files[0].write_bytes(_png()[:cut])
    assert not unit.done


@pytest.mark.parametrize("before", [None, _png()])
def test_a_half_written_file_does_not_count(tmp_path: Path, before: bytes | None) -> None:
    unit = Unit(0, (tmp_path / "0.png",))
    if before is not None:
        unit.files[0].write_bytes(before)
    done = subprocess.run([sys.executable, "-c", _KILLED, str(unit.files[0])], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".*.partial"))) == 1, "it was not killed while it wrote"
    assert unit.done == (before is not None)
    remove_unfinished(tmp_path)
    left = [path.read_bytes() for path in tmp_path.iterdir()]
    assert left == ([] if before is None else [before])


def test_missing_files_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.a: not there .*\(4 files\)"):
        spread(_units(tmp_path, 2), lambda unit: None, ALONE, "work")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError, OneRankError),
        (FileNotFoundError, OneRankError),
        (OSError, MachineError),
        (KeyError, RuntimeError),
    ],
)
def test_errors_name_their_rank(error: type[Exception], kind: type[Exception]) -> None:
    with (
        pytest.raises(kind, match=r"rank 2 on .+: .*broken"),
        rank_named(Ranks(2, 3, ALONE.device)),
    ):
        raise error("broken")
    with pytest.raises(error, match="broken"), rank_named(ALONE):
        raise error("broken")


def test_a_folder_belongs_to_one_evaluation(tmp_path: Path) -> None:
    out, owned = tmp_path / "out", ("images", "*.json")
    claim_folder(out, {"seed": 1, "checkpoint": "here"}, owned, False, ALONE)
    (out / "images").mkdir()
    (out / "images" / "1.png").touch()
    (out / "images" / ".2.png.9.partial").touch()
    (out / "notes.txt").touch()
    claim_folder(out, {"seed": 1, "checkpoint": "there"}, owned, False, ALONE)
    assert [path.name for path in (out / "images").iterdir()] == ["1.png"]
    with pytest.raises(ValueError, match=r"seed 1, not 2.*--replace"):
        claim_folder(out, {"seed": 2}, owned, False, ALONE)
    assert (out / "images" / "1.png").is_file()
    claim_folder(out, {"seed": 2}, owned, True, ALONE)
    assert sorted(path.name for path in out.iterdir()) == [RECORD_NAME, "notes.txt"]


def test_files_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"holds images and no evaluation\.json"):
        claim_folder(tmp_path, {"seed": 1}, ("images",), False, ALONE)
    # No evaluation wrote them: they are not ours to delete, whatever the options.
    with pytest.raises(ValueError, match=r"holds images and no evaluation\.json"):
        claim_folder(tmp_path, {"seed": 1}, ("images",), True, ALONE)
    assert (tmp_path / "images").is_dir()


def test_digest_sees_every_weight() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def digest() -> str:
        return weights_digest(model.state_dict().items(), "{name} {dtype}")

    before = digest()
    assert before == digest()
    with torch.no_grad():
        model.weight[1, 2] += 1e-6
    assert digest() != before
    model.to(torch.bfloat16)
    assert digest() != before

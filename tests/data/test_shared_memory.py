"""Data workers where /dev/shm is small or full, or a batch cannot be sent: slow or an error, no hang."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from showo_data import FlowSpec, build_loader
from tests.conftest import ROOT

READ = """
import sys
from showo_data import FlowSpec, build_loader, vq_transform

spec = FlowSpec(
    flow="image", kind="image", urls=(sys.argv[1],), batch=20, transform=vq_transform(512)
)
batches = iter(build_loader([spec], num_workers=2))
for _ in range(3):
    print([float(sample.image_3HW.double().sum()) for sample in next(batches).samples["image"]])
"""
# A batch has 60 MB.


def _read(shard: Path, *mount: str) -> subprocess.CompletedProcess[str]:
    """Read three batches, where ``mount`` (a shell command) has changed /dev/shm for this process alone."""
    command = [sys.executable, "-W", "ignore", "-c", READ, str(shard)]
    if mount:
        command = ["unshare", "--mount", "bash", "-c", f'{mount[0]} && exec "$@"', "bash", *command]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def can_mount() -> None:
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=False
    )
    if tried.returncode:
        pytest.skip("a file system cannot be mounted here")


def test_a_small_one_gives_the_same_batches_and_one_line(mini: Path, can_mount: None) -> None:
    shard = mini / "train-000000.tar"
    wanted = _read(shard)
    assert wanted.returncode == 0 and wanted.stderr == "", wanted.stderr
    found = _read(shard, "mount -t tmpfs -o size=64m tmpfs /dev/shm")
    assert found.returncode == 0, found.stderr
    assert found.stdout == wanted.stdout
    assert found.stderr.startswith("/dev/shm has no room for a batch of 60.0 MB (")
    assert "--shm-size" in found.stderr and found.stderr.count("\n") == 1


def test_a_full_one_is_an_error_that_names_it(mini: Path, can_mount: None) -> None:
    fill = "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full"
    found = _read(mini / "train-000000.tar", fill)
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: data workers cannot start: No space left on device; make room")
    assert "/dev/shm" in last and "dataset.params.num_workers=0" in last


def _sparse(image: object) -> Tensor:
    return torch.eye(3).to_sparse()


def test_a_batch_that_cannot_be_sent_is_the_ranks_error(mini: Path) -> None:
    """Multiprocessing would print the error in the worker, and the rank would wait without end."""
    urls = (str(mini / "train-000000.tar"),)
    spec = FlowSpec(flow="image", kind="image", urls=urls, batch=2, transform=_sparse)
    with pytest.raises((RuntimeError, NotImplementedError), match="DataLoader worker process 0"):
        next(iter(build_loader([spec], num_workers=1)))

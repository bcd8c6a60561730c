"""A GPU that torch cannot use, the peak behind MFU, and the number format of image grids."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from showo_dist.runtime.ranks import check_unused_gpu
from showo_dist.training import metrics
from showo_dist.training.deepspeed_engine import end_to_end
from showo_dist.training.metrics import Meter, Peak
from tests.training.conftest import TinyWorld

CPU = torch.device("cpu")


def test_a_gpu_that_torch_cannot_use_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nvidiactl").touch()
    check_unused_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(ValueError, match=r"has an NVIDIA GPU \(driver .*built for") as caught:
        check_unused_gpu(tmp_path)
    assert "\n" not in str(caught.value) and torch.__version__ in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("DS_ACCELERATOR", "cpu")],
)
def test_the_cpu_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv(name, value)
    check_unused_gpu(tmp_path)


def test_the_peak_only_grows() -> None:
    peak = Peak(CPU, torch.float32)
    first = peak.flops
    assert first > 1e8
    for _ in range(3):
        before = peak.flops
        peak.measure()
        assert peak.flops >= before


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_variants_of_a_gpu_have_their_own_peak(device: str, peak: float) -> None:
    assert next(p for known, p in metrics.GPU_PEAKS.items() if known in device) == peak


# A training in which attention prints the format of its queries.
_SPY = """
import sys
from showo_dist.models import backbone
attend = backbone.attend

def printing(query, *rest, **named):
    if not query.is_meta:  # the check of the family when a model is built
        print("query", query.dtype)
    return attend(query, *rest, **named)

backbone.attend = printing

from showo_dist.models.magvitv2 import MAGVITv2
encode = MAGVITv2.encode_latents

def printing_latents(self, pixels):
    latents = encode(self, pixels)
    print("latents", latents.dtype)
    return latents

MAGVITv2.encode_latents = printing_latents
from showo_dist.train import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("engine", ["deepspeed", "torch"])
def test_image_grids_are_computed_in_the_format_of_the_training(
    tiny_world: TinyWorld, tmp_path: Path, engine: str
) -> None:
    """FlashAttention takes bf16 alone; at ZeRO-0 the weights are fp32, and autocast makes bf16 of them."""
    changes = ["training.max_train_steps=1", "experiment.generate_every=1"]
    changes += ["training.mixed_precision=bf16", "distributed.zero_stage=0"]
    changes += [f"experiment.output_dir={tmp_path / 'run'}", f"distributed.engine={engine}"]
    done = subprocess.run(
        [sys.executable, "-c", _SPY, f"config={tiny_world.config}", *changes],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    queries = [line.split()[1] for line in lines if line.startswith("query ")]
    assert set(queries) == {"torch.bfloat16"}
    assert len(queries) > 10  # the step's own two layers, and those of every round of the grid
    latents = [line.split()[1] for line in lines if line.startswith("latents ")]
    assert len(latents) > 1 and set(latents) == {"torch.float32"}, "other codes than in training"


def test_a_bucket_is_a_view_and_other_tensors_are_none() -> None:
    bucket = torch.arange(24.0)
    parts = [bucket[2:8].view(2, 3), bucket[8:9], bucket[9:21].view(3, 4)]
    view = end_to_end(parts)
    assert view is not None and torch.equal(view, bucket[2:21])
    assert view.data_ptr() == parts[0].data_ptr()
    for others in (parts[::2], parts[::-1], [parts[0].t()], [parts[0], torch.ones(3)]):
        assert end_to_end(others) is None


def test_validation_is_not_in_the_time_of_a_step() -> None:
    unused: Any = None
    meter = Meter(unused, unused, torch.device("cpu"))
    begun = meter._start
    with meter.not_counted():
        time.sleep(0.05)
    assert meter._start - begun >= 0.05, "the clock is set forward by the time that does not count"

"""Encoded shards stand for the picture shards they come from."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from showo_data import FlowSpec, Sample, Skipped, Source, vq_transform
from showo_data.shards import write_shard
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.ranks import Ranks
from showo_dist.tokenizer.condition import condition_pixels
from showo_dist.tokenizer.encoding import EncodeSettings, encode_shards

ALONE = Ranks(0, 1, torch.device("cpu"))
SETTINGS = EncodeSettings(tokenizer="none", resolution=32, condition_scale=2)


def flow(folder: Path, resolution: int | None = 32) -> Source:
    urls = (str(folder / "train-{000000..000002}.tar"),)
    transform = None if resolution is None else vq_transform(resolution)
    return Source(FlowSpec(flow="t2i", kind="caption", urls=urls, batch=1, transform=transform))


def sample(source: Source, position: int) -> Sample:
    found = source[position]
    assert isinstance(found, Sample)
    return found


@pytest.mark.parametrize("resize_back", [False, True])
def test_stream_over_codes_is_the_stream_over_pictures(
    shards: Path, tmp_path: Path, tiny: MAGVITv2, resize_back: bool
) -> None:
    settings = replace(SETTINGS, resize_back=resize_back)
    report = encode_shards(urls(shards), tmp_path, tiny, settings, ALONE, batch_size=7)
    assert (report.written, report.samples, report.unreadable) == (3, 60, 0)
    pictures, codes = flow(shards), flow(tmp_path, None)
    for position in range(60):
        before, after = sample(pictures, position), sample(codes, position)
        assert (before.key, before.text) == (after.key, after.text)
        assert before.image_3HW is not None and after.image_3HW is None
        pixels = before.image_3HW[None]
        condition = condition_pixels(pixels, 2, resize_back)
        assert condition.shape[-1] == (32 if resize_back else 16)
        for stored, online in ((after.codes_N, pixels), (after.condition_codes_G, condition)):
            assert stored is not None and torch.equal(stored, tiny.encode(online)[0])


def urls(folder: Path) -> str:
    return str(folder / "train-{000000..000002}.tar")


def test_finished_shards_are_left_alone(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    encode_shards(urls(shards), tmp_path, tiny, SETTINGS, ALONE)
    kept = tmp_path / "train-000000.tar"
    before, content = kept.stat().st_mtime_ns, (tmp_path / "train-000001.tar").read_bytes()
    (tmp_path / "train-000001.tar").unlink()
    report = encode_shards(urls(shards), tmp_path, tiny, SETTINGS, ALONE)
    assert (report.written, report.skipped) == (1, 2)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "train-000001.tar").read_bytes() == content


def test_other_settings_need_another_folder(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    encode_shards(urls(shards), tmp_path, tiny, SETTINGS, ALONE)
    with pytest.raises(ValueError, match="begun with another condition_scale"):
        encode_shards(urls(shards), tmp_path, tiny, replace(SETTINGS, condition_scale=4), ALONE)


def test_shards_of_one_name_are_refused(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    with pytest.raises(ValueError, match="two shards are called"):
        encode_shards([urls(shards), urls(shards)], tmp_path, tiny, SETTINGS, ALONE)


def test_unreadable_picture_stays_unreadable_at_its_place(
    shards: Path, tmp_path: Path, tiny: MAGVITv2
) -> None:
    files = [{"__key__": "a", "png": b"no picture", "txt": "x"}, {"__key__": "b", "txt": "y"}]
    write_shard(tmp_path / "in" / "bad.tar", files)
    source = str(tmp_path / "in" / "bad.tar")
    report = encode_shards(source, tmp_path / "out", tiny, SETTINGS, ALONE)
    assert (report.samples, report.unreadable) == (2, 2)
    url = str(tmp_path / "out" / "bad.tar")
    transform = vq_transform(32)
    spec = FlowSpec(flow="t2i", kind="caption", urls=(url,), batch=1, transform=transform)
    skipped = [Source(spec)[i] for i in range(2)]
    assert all(isinstance(s, Skipped) for s in skipped)
    assert {s.reason for s in skipped} == {"broken-image", "no-image"}


def test_two_ranks_write_what_one_writes(shards: Path, tmp_path: Path, tiny: MAGVITv2) -> None:
    tiny.save_pretrained(tmp_path / "tokenizer")
    command = "import sys; from showo_dist.tokenizer.encode import main_encode as main"
    script = tmp_path / "encode.py"
    script.write_text(f"{command}; main(sys.argv[1:])\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [urls(shards), "--tokenizer", str(tmp_path / "tokenizer"), "--keep-images"]
    done = subprocess.run(
        [*launch, str(script), *arguments, "--out", str(tmp_path / "two")],
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "rank 0: 2 shards written" in done.stdout and "rank 1: 1 shards" in done.stdout
    begun = json.loads((tmp_path / "two" / "encode.json").read_text())
    loaded = MAGVITv2.from_pretrained(tmp_path / "tokenizer")
    encode_shards(urls(shards), tmp_path / "one", loaded, EncodeSettings(**begun), ALONE)
    names = sorted(p.name for p in (tmp_path / "one").glob("*.tar"))
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sample(flow(tmp_path / "two"), 0).codes_N is not None

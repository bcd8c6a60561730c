"""Measure reading: images and encoded samples per second of one worker, first batch, resume, memory.

    python benchmarks/data.py --json data.json

It reads shards that it writes to a temporary folder: photograph-like JPEGs, encoded samples, and an index of
ten million samples. Rates are of one process; a rate "by CPU time" is that of an otherwise idle core. Sides
of a comparison run in turn.

    python benchmarks/data.py --against ../other-checkout

compares the encoded samples with those of another checkout instead: their time relative to it, in turn.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from common import Side, interleaved, peak_bytes, report
from PIL import Image
from torch import Tensor

from showo_data import FlowSpec, Sample, Source, build_loader, vq_transform
from showo_data.shards import index_path, load_index, write_shard

CPU = torch.device("cpu")
NEEDED_PER_S = 45  # 512-px samples per second that one GPU needs in training Show-o
BATCH = 10
TAKEN = 400  # samples per measurement of a running loader: many more than it has prefetched
SHARDS, SHARD_SAMPLES = 1000, 10_000  # of the long index
START = 10**6  # the position in it to resume from


def photograph(rng: np.random.Generator, width: int = 640, height: int = 480) -> bytes:
    """Make a JPEG with detail at all scales, with about as many bytes as a photograph of its size."""
    pixels_HW3 = np.zeros((height, width, 3))
    for cell in (160, 40, 8, 2):
        small = rng.uniform(0, 255, (height // cell + 1, width // cell + 1, 3)).astype(np.uint8)
        layer = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        pixels_HW3 += np.asarray(layer) * (0.4 if cell > 8 else 0.1)
    stream = io.BytesIO()
    Image.fromarray(pixels_HW3.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def codes(rng: np.random.Generator) -> bytes:
    """Make 1024 codes of a 512-px image, as ``showo-dist encode`` writes them."""
    stream = io.BytesIO()
    np.save(stream, rng.integers(0, 8192, 1024).astype(np.uint16))
    return stream.getvalue()


def written(folder: Path, name: str, samples: Iterator[dict[str, Any]]) -> str:
    write_shard(folder / f"{name}.tar", samples)
    return str(folder / f"{name}.tar")


def spec(urls: tuple[str, ...], kind: Any, resolution: int, **options: Any) -> FlowSpec:
    transform = vq_transform(resolution)
    return FlowSpec(flow="f", kind=kind, urls=urls, batch=BATCH, transform=transform, **options)


def bare(images: list[bytes], resolution: int) -> None:
    """Decode, resize the short side, crop, convert to a tensor; nothing else."""
    for data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = resolution / min(image.size)
        size = (int(image.width * scale), int(image.height * scale))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        left, top = ((length - resolution) // 2 for length in size)
        square = resized.crop((left, top, left + resolution, top + resolution))
        pixels_HW3 = torch.from_numpy(np.array(square))
        pixels_HW3.permute(2, 0, 1).contiguous().float().div_(255).mul_(2).sub_(1)


def plain_webdataset(shard: str, resolution: int) -> webdataset.WebDataset:
    """Build webdataset's own pipeline, which shuffles bytes before decoding, with our transform."""
    transform = vq_transform(resolution)

    def image(sample: dict[str, Any]) -> Tensor:
        return transform(sample["jpg"])

    data = webdataset.WebDataset(shard, shardshuffle=False).shuffle(100)
    return data.decode("pilrgb").map(image)


def read_all(flow: FlowSpec, count: int) -> None:
    source = Source(flow)
    assert all(isinstance(source[p], Sample) for p in range(count))


def take(batches: Iterator[Any], count: int) -> None:
    """Take ``count`` samples in batches from a running loader."""
    for _ in range(count // BATCH):
        next(batches)


def one_worker(flow: FlowSpec) -> Iterator[Any]:
    return iter(build_loader([flow], num_workers=1))


def one_webdataset_worker(shard: str, resolution: int) -> Iterator[Any]:
    data = plain_webdataset(shard, resolution).repeat()
    return iter(torch.utils.data.DataLoader(data, BATCH, num_workers=1))


def image_rows(folder: Path, resolution: int, count: int, repeats: int) -> list[dict[str, Any]]:
    """Measure a bare loop, our source and loader, and webdataset's, on the same images; loaders are warm."""
    rng = np.random.default_rng(0)
    images = [photograph(rng) for _ in range(count)]
    shard = written(
        folder,
        f"images-{resolution}",
        ({"__key__": f"{i:05d}", "jpg": data} for i, data in enumerate(images)),
    )
    flow = spec((shard,), "image", resolution)
    ours, theirs = one_worker(flow), one_webdataset_worker(shard, resolution)
    sides: dict[str, Side] = {
        "bare loop": lambda clock: clock("s", lambda: bare(images, resolution)),
        "showo_data": lambda clock: clock("s", lambda: read_all(flow, count)),
        "webdataset": lambda clock: clock(
            "s", lambda: sum(1 for _ in plain_webdataset(shard, resolution))
        ),
        "showo_data, 1 worker": lambda clock: clock("s", lambda: take(ours, TAKEN)),
        "webdataset, 1 worker": lambda clock: clock("s", lambda: take(theirs, TAKEN)),
    }
    timings = interleaved(sides, CPU, repeats)
    return [_rate(f"{resolution} px, {side}", count, timings[side]["s"]) for side in sides]


def _rate(name: str, count: int, timing: Any) -> dict[str, Any]:
    if name.endswith("1 worker"):
        return {"side": name, "samples/s": TAKEN / timing.wall_s, "samples/s by CPU time": None}
    by_cpu = count / timing.cpu_s
    return {"side": name, "samples/s": count / timing.wall_s, "samples/s by CPU time": by_cpu}


def encoded_rows(folder: Path, repeats: int, count: int = 4000) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    samples = (
        {"__key__": f"{i:05d}", "codes.npy": codes(rng), "txt": f"a caption of image {i}"}
        for i in range(count)
    )
    flow = spec((written(folder, "encoded", samples),), "caption", 512)
    batches = one_worker(flow)
    sides: dict[str, Side] = {
        "showo_data": lambda clock: clock("s", lambda: read_all(flow, count)),
        "showo_data, 1 worker": lambda clock: clock("s", lambda: take(batches, TAKEN)),
    }
    timings = interleaved(sides, CPU, repeats)
    return [_rate(f"encoded, {side}", count, timings[side]["s"]) for side in sides]


# Reads the samples of a shard in a process of one side, and prints the seconds that each took.
_READ = """
import sys, time
from showo_data import FlowSpec, Source, vq_transform
from showo_data.shards import load_index
kind, urls, count = sys.argv[1], (sys.argv[2],), int(sys.argv[3])
load_index(urls)
flow = FlowSpec(flow="f", kind=kind, urls=urls, batch=1, transform=vq_transform(64))
source = Source(flow)
for _ in range(2):
    wall, cpu = time.perf_counter(), time.process_time()
    for position in range(count):
        source[position]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(wall / count, cpu / count)
"""


def against_rows(
    folder: Path, other: Path, repeats: int, count: int = 4000
) -> list[dict[str, Any]]:
    """Measure the medians of two checkouts, which run in turn on the same samples."""
    rng, sides = np.random.default_rng(1), {"this": Path(__file__).parents[1], "other": other}
    names = {"this": "encoded-this", "other": "encoded-other"}  # each makes an index of its own
    for name in names.values():
        samples = (
            {"__key__": f"{i:05d}", "codes.npy": codes(rng), "txt": f"a caption of image {i}"}
            for i in range(count)
        )
        written(folder, name, samples)
    rows = []
    for kind in ("caption", "text"):
        taken: dict[str, list[list[float]]] = {"this": [], "other": []}
        for _ in range(repeats):
            for side, checkout in sides.items():
                done = subprocess.run(
                    [sys.executable, "-c", _READ, kind, f"{folder}/{names[side]}.tar", str(count)],
                    env={**os.environ, "PYTHONPATH": str(checkout / "data_pipelines")},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                taken[side].append([float(word) for word in done.stdout.split()])
        this, that = (np.median(taken[side], axis=0) for side in sides)
        row = {"side": f"encoded, {kind}", "µs": this[0] * 1e6, "µs of CPU time": this[1] * 1e6}
        rows.append(row | {"of the other": this[0] / that[0], "by CPU time": this[1] / that[1]})
    return rows


def long_index(folder: Path) -> tuple[str, ...]:
    """Make a thousand shards of 10,000 samples: links to one file, each with a link to its index."""
    first = written(
        folder, "long", ({"__key__": f"{i:05d}", "txt": "words"} for i in range(SHARD_SAMPLES))
    )
    names = [str(folder / f"long-{i:04d}.tar") for i in range(SHARDS)]
    for name in names:
        os.link(first, name)
        os.link(index_path(first), index_path(name))
    return tuple(names)


def first_batch_s(flow: FlowSpec, start: int, workers: int = 0) -> float:
    """Time from the list of shards to the first batch at position ``start``, without any cache."""
    begin = time.perf_counter()
    next(iter(build_loader([flow], start_positions={"f": start}, num_workers=workers)))
    return time.perf_counter() - begin


def findings(rows: list[dict[str, Any]], folder: Path, resolutions: list[int]) -> dict[str, float]:
    """Compute the comparisons that the loader is judged by."""
    rate = {row["side"]: row["samples/s by CPU time"] or row["samples/s"] for row in rows}
    found = {}
    for side in resolutions:
        ours = rate[f"{side} px, showo_data"]
        found[f"{side} px: of a bare loop, by CPU time"] = ours / rate[f"{side} px, bare loop"]
        found[f"{side} px: of webdataset, by CPU time"] = ours / rate[f"{side} px, webdataset"]
        found[f"{side} px: of webdataset, 1 worker"] = (
            rate[f"{side} px, showo_data, 1 worker"] / rate[f"{side} px, webdataset, 1 worker"]
        )
        found[f"{side} px: workers for {NEEDED_PER_S} samples/s"] = NEEDED_PER_S / ours
    found["encoded samples/s of one worker, by CPU time"] = rate["encoded, showo_data"]
    images = spec((str(folder / f"images-{resolutions[-1]}.tar"),), "image", resolutions[-1])
    found["first batch, 1 worker, s"] = first_batch_s(images, 0, workers=1)
    urls = long_index(folder)
    assert sum(header.samples for header in load_index(urls)) == 10**7
    found["first batch at 10^6 of 10^7 samples, s"] = first_batch_s(spec(urls, "text", 64), START)
    found |= memory(images, resolutions[-1])
    return found


def memory(flow: FlowSpec, resolution: int) -> dict[str, float]:
    """Measure the memory that reading a shard adds to a process, ours with a window of all samples."""
    samples = len(Source(flow))
    sides = {
        "showo_data": lambda: read_all(flow, samples),
        "webdataset": lambda: sum(1 for _ in plain_webdataset(flow.urls[0], resolution)),
    }
    peaks = {name: peak_bytes(work, CPU) for name, work in sides.items()}
    return {f"memory of a {name} worker, MB": (peak or 0) / 1e6 for name, peak in peaks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="per resolution")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    options.device = "cpu"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), list[dict[str, Any]]()
        settings: dict[str, Any] = {"repeats": options.repeats, "batch": BATCH}
        if options.against:
            rows = against_rows(folder, options.against.resolve(), options.repeats)
            report("data", rows, {}, settings | {"against": str(options.against)}, options)
            return
        for resolution in options.resolutions:
            rows += image_rows(folder, resolution, options.images, options.repeats)
        rows += encoded_rows(folder, options.repeats)
        found = findings(rows, folder, options.resolutions)
        report("data", rows, found, settings | {"images": options.images}, options)


if __name__ == "__main__":
    main()

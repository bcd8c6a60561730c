"""Runs a trained tokenizer over picture shards once, so that training reads codes and no pictures.

The shards that are written hold the samples of the shards that are read, one for one and under the same
keys, ``codes.npy`` in place of the picture: a stream over the ones visits the same samples in the same order
as over the others. A sample whose picture cannot be read is copied as it is, and skipped again in training.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from showo_data import vq_transform
from showo_data.members import CODES, CONDITION, IMAGES, BadSampleError, read_image
from showo_data.shards import (
    OpenShards,
    ShardHeader,
    Storage,
    index_path,
    load_index,
    write_shard,
)
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.precision import autocast
from showo_dist.runtime.ranks import Ranks
from showo_dist.tokenizer.condition import condition_pixels

SETTINGS_NAME = "encode.json"


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """What fixes the content of encoded shards.

    Attributes:
        tokenizer: the :func:`fingerprint` of its encoder.
        resolution: side in pixels that pictures are brought to.
        resize: ``short`` (and crop) or ``squash``, see :func:`showo_data.vq_transform`.
        condition_scale: also encode RecA's condition, the picture shrunk by this factor; None: do not.
        resize_back: enlarge the condition to the picture's size again.
        keep_images: keep the pictures beside their codes.
        precision: ``fp32``, or ``bf16``, which flips some codes of latents near 0.
    """

    tokenizer: str
    resolution: int
    resize: Literal["short", "squash"] = "short"
    condition_scale: int | None = None
    resize_back: bool = False
    keep_images: bool = False
    precision: str = "fp32"


@dataclass
class EncodeReport:
    """What one rank did: shards written, shards that were there already, samples, unreadable pictures."""

    written: int = 0
    skipped: int = 0
    samples: int = 0
    unreadable: int = 0


def encode_shards(
    urls: str | Iterable[str],
    out: str | Path,
    model: MAGVITv2,
    settings: EncodeSettings,
    ranks: Ranks,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    storage: Storage | None = None,
) -> EncodeReport:
    """Encode every ``world``-th shard, from the rank's own on; shards that are finished are left alone.

    Args:
        urls: picture shards, as paths or brace patterns.
        out: folder of the new shards, which keep their names.
        model: in eval mode, on the rank's device.
        settings: what to write.
        ranks: this process among those that share the work.
        batch_size: pictures per forward pass.
        progress: called with (samples done, samples of this rank).
        storage: how the picture shards are reached.

    Raises:
        ValueError: two shards of one name, or ``out`` was begun with other settings.
    """
    folder, headers = Path(out), load_index(urls, storage)
    _check_names(headers)
    if ranks.is_first:
        _claim(folder, settings)
    ranks.barrier()
    report, own = EncodeReport(), headers[ranks.rank :: ranks.world]
    total, done = sum(header.samples for header in own), 0
    encoder = _Encoder(model, settings, ranks.device, report, storage)
    for header in own:
        target = folder / Path(header.path).name
        if _is_finished(target, header):
            report.skipped += 1
        else:
            write_shard(target, encoder.samples(header, batch_size))
            report.written += 1
        done += header.samples
        progress(done, total)
    ranks.barrier()
    return report


def fingerprint(model: MAGVITv2) -> str:
    """SHA-256 of what codes depend on: names and values of the encoder's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def _check_names(headers: Sequence[ShardHeader]) -> None:
    seen: dict[str, str] = {}
    for header in headers:
        name = Path(header.path).name
        if name in seen:
            raise ValueError(f"two shards are called {name}: {seen[name]} and {header.path}")
        seen[name] = header.path


def _claim(folder: Path, settings: EncodeSettings) -> None:
    """Note the settings in ``folder``, or find that they are the ones it was begun with."""
    path = folder / SETTINGS_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(settings), indent=2) + "\n")
        return
    begun = json.loads(path.read_text())
    different = [key for key, value in asdict(settings).items() if begun.get(key) != value]
    if different:
        raise ValueError(
            f"{folder} was begun with another {', '.join(different)} "
            f"({path.name}): name another folder, or remove this one"
        )


def _is_finished(target: Path, header: ShardHeader) -> bool:
    if not target.is_file() or not index_path(str(target)).is_file():
        return False
    return load_index(str(target))[0].samples == header.samples


@dataclass
class _Encoder:
    """Reads the samples of a shard and yields them with codes."""

    model: MAGVITv2
    settings: EncodeSettings
    device: torch.device
    report: EncodeReport
    storage: Storage | None

    def samples(self, header: ShardHeader, batch_size: int) -> Iterator[dict[str, Any]]:
        files = OpenShards(limit=1, storage=self.storage)
        for start in range(0, header.samples, batch_size):
            numbers = range(start, min(start + batch_size, header.samples))
            yield from self._with_codes([_read(files, header.path, i) for i in numbers])
        files.close()

    def _with_codes(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pictures = [self._pixels(sample) for sample in samples]
        readable = [s for s, p in zip(samples, pictures, strict=True) if p is not None]
        self.report.samples += len(samples)
        self.report.unreadable += len(samples) - len(readable)
        if readable:
            pixels_B3HW = torch.stack([p for p in pictures if p is not None])
            members = self._code_members(pixels_B3HW.to(self.device))
            for sample, codes in zip(readable, members, strict=True):
                self._replace(sample, codes)
        return samples

    def _pixels(self, sample: dict[str, Any]) -> Tensor | None:
        transform = vq_transform(self.settings.resolution, self.settings.resize)
        try:
            return transform(read_image(sample.get))
        except (BadSampleError, ValueError):
            return None

    def _code_members(self, pixels_B3HW: Tensor) -> list[dict[str, bytes]]:
        """``codes.npy`` and, where it is asked for, ``condition.npy`` of each picture."""
        with autocast(self.settings.precision, self.device):
            columns = {CODES: self.model.encode(pixels_B3HW)}
            if self.settings.condition_scale is not None:
                condition_B3HW = condition_pixels(
                    pixels_B3HW, self.settings.condition_scale, self.settings.resize_back
                )
                columns[CONDITION] = self.model.encode(condition_B3HW)
        return [
            {name: _npy(codes_BN[i], self.model) for name, codes_BN in columns.items()}
            for i in range(len(pixels_B3HW))
        ]

    def _replace(self, sample: dict[str, Any], codes: dict[str, bytes]) -> None:
        for extension in () if self.settings.keep_images else IMAGES:
            sample.pop(extension, None)
        sample.update(codes)


def _read(files: OpenShards, shard: str, number: int) -> dict[str, Any]:
    table = files.table(shard)
    members = {m.extension: files.read(shard, m) for m in table.members(number)}
    return {"__key__": table.key(number), **members}


def _npy(codes_N: Tensor, model: MAGVITv2) -> bytes:
    """The codes as an array file, in the smallest type that holds the codebook."""
    small = np.uint16 if model.config.codebook_size <= 2**16 else np.int32
    stream = io.BytesIO()
    np.save(stream, codes_N.cpu().numpy().astype(small), allow_pickle=False)
    return stream.getvalue()

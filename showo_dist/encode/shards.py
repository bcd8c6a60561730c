"""Encode image shards with the frozen encoders once, so that training reads codes or features, not images.

An encoded shard holds the samples of its image shard under the same keys and in the same order, with
``codes.npy`` or ``features.npy`` in place of the image, so a stream visits the same samples in the same order
in both; of an edit, ``source.codes.npy`` and ``target.codes.npy`` replace the two images, and of numbered
images, each is replaced by ``0.codes.npy``, ``1.codes.npy`` and so on, or by features. A sample of which an
image cannot be read is copied unchanged; training skips it as before. Of one that cannot be copied (a sparse
or truncated member, two of one name), a mark keeps the place: training skips it.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from showo_data import clip_transform, vq_transform
from showo_data.files import claim
from showo_data.members import (
    CODES,
    CONDITION,
    FEATURES,
    IMAGES,
    SOURCE,
    TARGET,
    BadSampleError,
    Reader,
    first_of,
    numbered,
    read_image,
    within,
)
from showo_data.readers import sample_reader
from showo_data.shards import (
    DAMAGED,
    OpenShards,
    ShardHeader,
    Storage,
    index_path,
    load_index,
    write_shard,
)
from showo_dist.models.encoders import RECORD, ClipTower, condition_pixels
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.runtime.numerics import autocast
from showo_dist.runtime.ranks import Ranks

_FLOATS = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Everything that decides the content of encoded shards.

    Attributes:
        tokenizer: digest of the tokenizer's encoder; None: write no codes.
        resolution: side in pixels to which images are resized for the tokenizer; None without a tokenizer.
        resize: ``short`` (and crop) or ``squash``, see :func:`showo_data.vq_transform`.
        condition_scale: also encode RecA's condition, the image shrunk by this factor; None: do not.
        resize_back: enlarge the condition to the image's size again.
        keep_images: keep the images beside their encodings.
        precision: ``fp32``, or ``bf16``, which changes some codes whose latents are near 0.
        clip: digest of the CLIP tower; None: write no features.
        clip_sees: ``processed``: the image as CLIP's own processor prepares it, for understanding;
            ``tokenized``: the tokenizer's image, for RecA's reconstruction.
        features: dtype of stored features; fp16 takes half the space and rounds.
    """

    tokenizer: str | None
    resolution: int | None
    resize: Literal["short", "squash"] = "short"
    condition_scale: int | None = None
    resize_back: bool = False
    keep_images: bool = False
    precision: str = "fp32"
    clip: str | None = None
    clip_sees: Literal["processed", "tokenized"] = "processed"
    features: Literal["fp32", "fp16"] = "fp32"


@dataclass(frozen=True)
class FrozenEncoders:
    """The encoding networks, at least one, in eval mode on one device.

    Attributes:
        vq: the image tokenizer, for codes.
        clip: the CLIP tower, for features.
    """

    vq: MAGVITv2 | None = None
    clip: ClipTower | None = None


@dataclass
class EncodeReport:
    """Counts of one rank.

    Attributes:
        written, skipped: shards written, and shards skipped as finished.
        samples, unreadable: samples, and those without a readable image.
        bad: samples that cannot be copied, by reason.
        first_bad: shard and key of the first of them.
    """

    written: int = 0
    skipped: int = 0
    samples: int = 0
    unreadable: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""


def encode_shards(
    urls: str | Iterable[str],
    out: str | Path,
    encoders: FrozenEncoders,
    settings: EncodeSettings,
    ranks: Ranks,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    storage: Storage | None = None,
) -> EncodeReport:
    """Encode this rank's part of the shards: shard numbers rank, rank + world, … Finished shards are skipped.

    Args:
        urls: image shards, as paths, URLs or brace patterns.
        out: folder of the encoded shards, which have the names of their image shards.
        encoders: on the rank's device.
        settings: the content to write.
        ranks: this process and the number of processes that share the work.
        batch_size: images per forward pass.
        progress: called with (samples done, samples of this rank).
        storage: access to remote image shards.

    Raises:
        ValueError: two shards have one name, or ``out`` was begun with other settings.
    """
    folder, headers = Path(out), load_index(urls, storage)
    _check_names(headers)

    def begin() -> None:
        claim(folder, RECORD, asdict(settings), "encoded shards")
        _refuse_other_sources(folder, headers)

    ranks.first_alone(begin)
    report, own = EncodeReport(), headers[ranks.rank :: ranks.world]
    total, done = sum(header.samples for header in own), 0
    encoder = _Encoder(encoders, settings, ranks.device, report, storage)
    for header in own:
        target = folder / Path(header.path).name
        if _is_finished(target, header):
            report.skipped += 1
        else:
            write_shard(target, encoder.samples(header, batch_size), origin=header.sha256)
            report.written += 1
        done += header.samples
        progress(done, total)
    ranks.barrier()
    return report


def _check_names(headers: Sequence[ShardHeader]) -> None:
    seen: dict[str, str] = {}
    for header in headers:
        name = Path(header.path).name
        if name in seen:
            raise ValueError(f"two shards are called {name}: {seen[name]} and {header.path}")
        seen[name] = header.path


def _is_finished(target: Path, header: ShardHeader) -> bool:
    """Whether the encoded shard is there, with its index, which is written last, and all samples."""
    if not target.is_file() or not index_path(str(target)).is_file():
        return False
    return load_index(str(target))[0].samples == header.samples


def _refuse_other_sources(folder: Path, headers: Sequence[ShardHeader]) -> None:
    """A shard of the same name and number of samples may be of another data set, or of an older source."""
    for header in headers:
        target = folder / Path(header.path).name
        if not _is_finished(target, header):
            continue
        (found,) = load_index(str(target))
        if found.origin not in ("", header.sha256):
            raise ValueError(
                f"{target}: was made of another shard than {header.path}, or of that before it changed: "
                "choose another --out, or remove it"
            )


@dataclass
class _Encoder:
    """Yields the samples of a shard with codes and features in place of their images."""

    encoders: FrozenEncoders
    settings: EncodeSettings
    device: torch.device
    report: EncodeReport
    storage: Storage | None

    def samples(self, header: ShardHeader, batch_size: int) -> Iterator[dict[str, Any]]:
        files = OpenShards(limit=1, storage=self.storage)
        for start in range(0, header.samples, batch_size):
            numbers = range(start, min(start + batch_size, header.samples))
            samples = [self._read(files, header.path, i) for i in numbers]
            yield from self._encoded(samples, batch_size)
        files.close()

    def _read(self, files: OpenShards, shard: str, number: int) -> dict[str, Any]:
        """Read all members of a sample; a mark if it cannot be copied.

        Raises:
            OSError: the shard cannot be read, or has changed.
        """
        table = files.table(shard)
        key = table.key(number)
        try:
            read = sample_reader(files, shard, number)
            return {
                "__key__": key,
                **{m.extension: read(m.extension) for m in table.members(number)},
            }
        except BadSampleError as bad:
            self.report.bad[bad.reason] += 1
            self.report.first_bad = self.report.first_bad or f"{shard}, {key!r}"
            return {"__key__": key, DAMAGED: b""}

    def _encoded(self, samples: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
        """Encode all images of the samples, up to ``most`` images at a time."""
        read = [self._images(sample) for sample in samples]
        self.report.samples += len(samples)
        self.report.unreadable += sum(not images for images in read)
        images = [
            (sample, part, pixels)
            for sample, parts in zip(samples, read, strict=True)
            for part, pixels in parts.items()
        ]
        for start in range(0, len(images), most):
            batch = images[start : start + most]
            columns = self._columns([pixels for _, _, pixels in batch])
            for i, (sample, part, _) in enumerate(batch):
                members = {name: _npy(values_B[i]) for name, values_B in columns.items()}
                # The two images of an edit are codes in every model.
                edit = part in (SOURCE, TARGET)
                self._replace(sample, part, {CODES: members[CODES]} if edit else members)
        return samples

    def _images(self, sample: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Pixels of the only image, under the empty name, of both of an edit, or of the numbered ones.

        None if one is unreadable.
        """

        def is_there(part: str) -> bool:
            return first_of(within(part, sample.get), IMAGES) is not None

        edit = list(filter(is_there, (SOURCE, TARGET)))
        parts = edit or list(takewhile(is_there, map(numbered, count())))
        if edit and self.encoders.vq is None:
            raise ValueError("an edit's images become codes: name an image tokenizer (--tokenizer)")
        pixels = {part: self._pixels(within(part, sample.get)) for part in parts or [""]}
        return {part: p for part, p in pixels.items() if p is not None and all(pixels.values())}

    def _pixels(self, read: Reader) -> dict[str, Tensor] | None:
        """Pixels of an image as the networks take them: ``tokenized``, ``processed``; None if unreadable."""
        settings, pixels = self.settings, {}
        try:
            image = read_image(read)
            if settings.resolution is not None:
                pixels["tokenized"] = vq_transform(settings.resolution, settings.resize)(image)
            if self.encoders.clip is not None:
                pixels["processed"] = clip_transform(self.encoders.clip.resolution)(image)
        except (BadSampleError, ValueError):
            return None
        return pixels

    def _columns(self, images: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
        """Encode a batch; return the new members by extension, each with one row per sample."""
        columns: dict[str, np.ndarray] = {}
        with autocast(self.settings.precision, self.device):
            if self.encoders.vq is not None:
                pixels_B3HW = torch.stack([p["tokenized"] for p in images]).to(self.device)
                columns |= self._code_columns(self.encoders.vq, pixels_B3HW)
            if self.encoders.clip is not None:
                pixels_B3HW = torch.stack([p[self.settings.clip_sees] for p in images]).to(
                    self.device
                )
                features_BSC = self.encoders.clip(pixels_B3HW).float().cpu().numpy()
                columns[FEATURES] = features_BSC.astype(_FLOATS[self.settings.features])
        return columns

    def _code_columns(self, vq: MAGVITv2, pixels_B3HW: Tensor) -> dict[str, np.ndarray]:
        """``codes.npy`` and, if set, ``condition.npy``."""
        small = np.uint16 if vq.config.codebook_size <= 2**16 else np.int32  # half the size on disk
        images = {CODES: pixels_B3HW}
        if self.settings.condition_scale is not None:
            scale, back = self.settings.condition_scale, self.settings.resize_back
            images[CONDITION] = condition_pixels(pixels_B3HW, scale, back)
        return {name: vq.encode(p).cpu().numpy().astype(small) for name, p in images.items()}

    def _replace(self, sample: dict[str, Any], part: str, members: dict[str, bytes]) -> None:
        for extension in () if self.settings.keep_images else IMAGES:
            sample.pop(part + extension, None)
        sample.update({part + name: member for name, member in members.items()})


def _npy(values: np.ndarray) -> bytes:
    """The array as the bytes of an npy file."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()

"""The samples of one flow by position: read from their shard, decoded and transformed, or skipped."""

import random
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from showo_data.images import UnfitImageError
from showo_data.members import (
    CODES,
    CONDITION,
    FEATURES,
    IMAGE_MARKER,
    IMAGES,
    SOURCE,
    SOURCE_CODES,
    TARGET,
    TARGET_CODES,
    BadSampleError,
    Encoded,
    Reader,
    check_places,
    first_of,
    numbered,
    read_codes,
    read_conversation,
    read_document,
    read_features,
    read_image,
    read_texts,
    within,
)
from showo_data.readers import ExactReader, RawReader, ResampledReader, reason_of
from showo_data.samples import UNEXPECTED, FlowSpec, Sample, Skipped

# Member of an encoded sample → attribute of a Sample, and the function that reads it.
_ENCODED: dict[Encoded, tuple[str, Callable[..., Tensor | None]]] = {
    CODES: ("codes_N", partial(read_codes, extension=CODES)),
    CONDITION: ("condition_codes_G", partial(read_codes, extension=CONDITION)),
    FEATURES: ("features_SC", read_features),
    SOURCE_CODES: ("condition_codes_G", partial(read_codes, extension=SOURCE_CODES)),
    TARGET_CODES: ("codes_N", partial(read_codes, extension=TARGET_CODES)),
}
# The image of a sample with one, and its attribute of a Sample.
_IMAGE = ("", "image_3HW")
# Member of an encoded edit → the image that it replaces, and that image's attribute of a Sample.
_IMAGES: dict[Encoded, tuple[str, str]] = {
    SOURCE_CODES: (SOURCE, "source_3HW"),
    TARGET_CODES: (TARGET, "image_3HW"),
}
# Member of an encoded sample with numbered images → attribute of a Sample.
_SEVERAL: dict[Encoded, str] = {CODES: "codes_MN", FEATURES: "features_MSC"}
# Samples of which at least one must fit the model when a run starts.
_FIRST = 8


def _stored(reader: ExactReader) -> set[str]:
    """The members of a single image in the first shard, numbered or not."""
    return {name.removeprefix(numbered(0)) for name in reader.extensions()}


def _markers(conversation: list[tuple[str, str]]) -> int:
    """The number of places of images in a conversation."""
    return sum(value.count(IMAGE_MARKER) for _, value in conversation)


class Source:
    """Map from position to sample of one flow; shards are opened when a sample is read."""

    def __init__(self, spec: FlowSpec) -> None:
        """Load the index of every shard, and build those that are missing; resampling needs none.

        Raises:
            OSError: a shard does not exist, or has no index and cannot be read.
            ValueError: the shards hold no samples, or they hold images and the flow has no transform, or
                none of the first samples fits the model.
        """
        self.spec = spec
        self.reader: RawReader
        if spec.sampling == "resampled":
            self.reader = ResampledReader(spec)
            return
        self.reader = exact = ExactReader(spec)
        if spec.kind != "text" and spec.transform is None:
            missing = next((m for m in spec.encoded if m not in _stored(exact)), None)
            if missing is not None:
                raise ValueError(
                    f"flow {spec.flow!r} needs a transform: "
                    f"{exact.shards[0].path!r} holds images, not {missing!r}"
                )
        if spec.fits and _stored(exact).intersection(spec.fits):
            self._check_first()

    def __len__(self) -> int:
        """Samples in one epoch; 0 without epochs (resampling)."""
        return len(self.reader)

    def __getitem__(self, position: int) -> Sample | Skipped:
        """Return the sample at ``position`` ≥ 0, or the reason why it is skipped."""
        # Data may hold anything, and one sample must not end a run: this is the one place that catches all.
        shard = key = detail = ""
        samples = 1
        try:
            raw = self.reader.read(position)
            shard, key = raw.shard, raw.key
            if raw.reason is None:
                return self._build(position, shard, key, raw.read)
            reason, detail, samples = raw.reason, raw.detail, raw.samples
        except BadSampleError as bad:
            reason, detail = bad.reason, bad.detail
        except UnfitImageError as unfit:
            reason = unfit.reason
        except OSError as error:
            reason = reason_of(error)
        except Exception as error:
            reason, detail = UNEXPECTED, f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return Skipped(self.spec.flow, position, shard, key, reason, detail, samples)

    def _check_first(self) -> None:
        """Refuse shards that were encoded for another model, of which no sample fits."""
        bad = None
        for position in range(min(_FIRST, len(self))):
            try:
                raw = self.reader.read(position)
                for member, fit in self.spec.fits.items():
                    _ENCODED[member][1](raw.read, fit=fit)
                    _ENCODED[member][1](within(numbered(0), raw.read), fit=fit)
                return
            except BadSampleError as error:
                bad = bad or (error, raw)
            except OSError:
                return  # counted when it is met again
        if bad is not None and bad[0].detail:
            misfit, raw = bad
            raise ValueError(
                f"flow {self.spec.flow!r}: none of its first {position + 1} samples fits the model: "
                f"in {raw.shard}, sample {raw.key!r}, {misfit.detail}; encode the images with this "
                "config's networks and sizes (showo-dist encode), or change the config"
            )

    def _build(self, position: int, shard: str, key: str, read: Reader) -> Sample:
        sample = Sample(self.spec.flow, position, key, shard=shard)
        if self.spec.kind == "conversation" and self._has(0, read):
            self._add_numbered(sample, cache(read))
            return sample
        if self.spec.kind != "text":
            self._add_image(sample, read)
        if self.spec.kind in ("caption", "text", "edit"):
            text = self._text(position, shard, key, read)
            # A caption file ends in a line feed, which would be trained on; a document is kept as it is.
            sample.text = text if self.spec.kind == "text" else text.strip()
        elif self.spec.kind == "conversation":
            sample.conversation = read_conversation(read)
            # An image without a number is before its conversation, with a marker or without one.
            places = max(1, _markers(sample.conversation))
            check_places(places, [0], places)
        return sample

    def _text(self, position: int, shard: str, key: str, read: Reader) -> str:
        """Return the external caption or else the sample's own text; of several, the position chooses one."""
        outside = self.spec.captions.find(shard, key) if self.spec.captions else None
        texts = read_texts(read) if outside is None else outside
        if not texts:
            raise BadSampleError("no-caption")
        if len(texts) == 1:
            return texts[0]
        # From the position alone, so that a resumed run chooses the same on any number of ranks.
        draw = random.Random(f"text/{self.spec.seed}/{self.spec.flow}/{position}")
        return draw.choice(texts)

    def _has(self, number: int, read: Reader) -> bool:
        """Whether a sample has a numbered image, or what replaces it."""
        members = within(numbered(number), read)
        return any(members(extension) for extension in (*self.spec.encoded, *IMAGES))

    def _add_numbered(self, sample: Sample, read: Reader) -> None:
        """Add the texts of a conversation or document, and its numbered images, or what replaces them all."""
        sample.document = read_document(read)
        if sample.document is None:
            sample.conversation = read_conversation(read)
            places = _markers(sample.conversation)
        else:
            places = sample.document.count(None)
        limit = self.spec.max_images
        present = [n for n in range(min(places, limit) + 1) if self._has(n, read)]
        check_places(places, present, limit)
        images = [within(numbered(number), read) for number in present]
        for member in self.spec.encoded:  # of a conversation, at most one
            fit, read_member = self.spec.fits.get(member), _ENCODED[member][1]
            found = [t for image in images if (t := read_member(image, fit=fit)) is not None]
            if len(found) == len(images):
                setattr(sample, _SEVERAL[member], torch.stack(found))
                return
        transform = self.spec.transform
        if transform is None or any(first_of(image, IMAGES) is None for image in images):
            missing = next(iter(self.spec.encoded), "image")
            raise BadSampleError(f"no-{missing.partition('.')[0]}")
        sample.images_M3HW = torch.stack([transform(read_image(image)) for image in images])

    def _add_image(self, sample: Sample, read: Reader) -> None:
        """Add the encoded members, and the transformed image that a missing one would replace."""
        fits = self.spec.fits
        found = {m: _ENCODED[m][1](read, fit=fits.get(m)) for m in self.spec.encoded}
        for member, tensor in found.items():
            setattr(sample, _ENCODED[member][0], tensor)
        missing = [member for member, tensor in found.items() if tensor is None]
        if found and not missing:
            return
        images: dict[tuple[str, str], str]
        images = {_IMAGES.get(m, _IMAGE): m for m in reversed(missing)} or {_IMAGE: "image"}
        for (part, attribute), name in images.items():
            image = within(part, read)
            # A shard that was encoded for another flow has no image either: report the missing member.
            encoded = bool(part) or len(missing) < len(found)
            if self.spec.transform is None or (encoded and first_of(image, IMAGES) is None):
                raise BadSampleError(f"no-{name.partition('.')[0]}")
            setattr(sample, attribute, self.spec.transform(read_image(image)))

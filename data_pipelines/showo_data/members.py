"""Decode the members of a sample; a member that cannot be used raises :class:`BadSampleError`."""

import io
import math
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from showo_data.images import UnfitImageError, decode
from showo_data.text import parse_json

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "text", "caption")
CODES: Final = "codes.npy"
CONDITION: Final = "condition.npy"
FEATURES: Final = "features.npy"
# The two images of an edit, and what replaces them.
SOURCE: Final = "source."
TARGET: Final = "target."
SOURCE_CODES: Final = "source.codes.npy"
TARGET_CODES: Final = "target.codes.npy"
JSON = "json"
# Where the images of a conversation are that has numbered ones, 0.jpg, 1.jpg and so on.
IMAGE_MARKER: Final = "<image>"
EDIT_CODES: Final = (SOURCE_CODES, TARGET_CODES)
Encoded = Literal[
    "codes.npy", "condition.npy", "features.npy", "source.codes.npy", "target.codes.npy"
]

# Roles whose turns are questions; every other role answers.
HUMAN = ("human", "user")

# Returns the bytes of the member with an extension, or None if the sample has none.
Reader = Callable[[str], bytes | None]


class BadSampleError(Exception):
    """The sample cannot be used.

    Args:
        reason: a short code (see docs/data.md).
        detail: what was found and what was expected, for the log; empty if the reason says it all.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Fit:
    """The size of an encoded member that fits the model.

    Attributes:
        shape: (N,) for image codes, (S, C) for features.
        codebook: codes are below it; None for features.
        keys: the settings that decide the size, for messages.
    """

    shape: tuple[int, ...]
    codebook: int | None = None
    keys: str = ""

    def __str__(self) -> str:
        size = f"the shape {self.shape}"
        if self.codebook is not None:
            size = f"{self.shape[0]} codes from 0 to {self.codebook - 1}"
        return f"{size} ({self.keys})" if self.keys else size


def read_image(read: Reader) -> Image.Image:
    """Decode the image of a sample."""
    data = first_of(read, IMAGES)
    if data is None:
        raise BadSampleError("no-image")
    try:
        return decode(data)
    except UnfitImageError as unfit:
        raise BadSampleError(unfit.reason) from None
    except Exception as error:  # Pillow raises unrelated types on broken data
        raise BadSampleError("broken-image") from error


def read_codes(read: Reader, extension: str, fit: Fit | None = None) -> Tensor | None:
    """Read the stored image codes: int64 (N,), also where a grid is stored; None if the sample has none."""
    codes = _read_array(read, extension, "broken-codes", "iu")
    if codes is None:
        return None
    if fit is not None:
        _check_codes(codes, extension, fit)
    return torch.from_numpy(codes.reshape(-1).astype(np.int64))


def read_features(read: Reader, fit: Fit | None = None) -> Tensor | None:
    """Read the stored CLIP features: fp32 (S, C); None if the sample has none."""
    features = _read_array(read, FEATURES, "broken-features", "f")
    if features is None:
        return None
    if features.ndim != 2 or (fit is not None and features.shape != fit.shape):
        detail = f"{FEATURES} has the shape {features.shape}, expected {fit or 'two axes'}"
        raise BadSampleError("broken-features", detail)
    features_SC = torch.from_numpy(features.astype(np.float32))
    if not torch.isfinite(features_SC.sum()):
        raise BadSampleError("broken-features", f"{FEATURES} has values that are not finite")
    return features_SC


def _check_codes(codes: np.ndarray, extension: str, fit: Fit) -> None:
    """Check number, shape and range of image codes; the code of the mask token is out of range."""
    (count,), side = fit.shape, math.isqrt(fit.shape[0])
    shape = tuple(length for length in codes.shape if length != 1) or (1,)
    if codes.size != count or shape not in {(count,), (side, side)}:
        found = f"{codes.size} codes" if codes.ndim == 1 else f"codes of the shape {codes.shape}"
        raise BadSampleError("broken-codes", f"{extension} has {found}, expected {fit}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or (fit.codebook is not None and high >= fit.codebook):
        found = f"the code {low if low < 0 else high}"
        raise BadSampleError("broken-codes", f"{extension} has {found}, expected {fit}")


def _read_array(read: Reader, extension: str, reason: str, kinds: str) -> np.ndarray | None:
    """Read a member in NumPy's format whose dtype is one of ``kinds``; None if the sample has none.

    The array is read-only. Its header may claim anything, so that it is compared with the bytes first.
    """
    data = read(extension)
    if data is None:
        return None
    try:
        stream = io.BytesIO(data)
        old = npy.read_magic(stream) == (1, 0)
        header = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        size = len(data) - stream.tell()
        if dtype.kind not in kinds or min(shape, default=1) < 0:
            raise ValueError(f"{dtype} {shape}")
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{shape} numbers of {dtype} are not {size} bytes")
        flat = np.frombuffer(data, dtype, offset=stream.tell()) if size else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # NumPy evaluates the header, which raises unrelated types
        detail = " ".join(f"{extension}: {error}".split())[:200]
        raise BadSampleError(reason, detail) from error


def read_texts(read: Reader) -> tuple[str, ...]:
    """Return the sample's texts: a text member, else ``captions`` or ``caption`` of its JSON.

    Blank texts are left out, and where nothing else is in one place, the next one is read.
    """
    for extension in TEXTS:
        data = read(extension)
        if data is not None and not is_blank(text := _utf8(data)):
            return (text,)
    content = _read_json(read, "no-text")
    captions, caption = content.get("captions"), content.get("caption")
    texts = _texts_in(captions) or (_texts_in(caption) if isinstance(caption, str) else ())
    if not texts:
        raise BadSampleError("no-text")
    return texts


def _texts_in(value: object) -> tuple[str, ...]:
    """Return the texts of a list, or the one text, that are not blank; none if there is anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in values):
        return ()
    return tuple(text for text in map(_encodable, values) if not is_blank(text))


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen: no character but spaces, controls and formats."""
    return not any(map(str.isprintable, text.strip()))


def read_conversation(read: Reader) -> list[tuple[str, str]]:
    """Return a LLaVA conversation as (role, value).

    Roles are those stored; questions of "human" or "user" and answers alternate, and a question is first.
    """
    rounds = _read_json(read, "no-conversation").get("conversations")
    if not rounds:
        raise BadSampleError("no-conversation")
    try:
        stored = [(turn["from"], turn["value"]) for turn in rounds]
    except (TypeError, KeyError):
        raise BadSampleError("malformed-conversation") from None
    if not all(isinstance(word, str) for turn in stored for word in turn):
        raise BadSampleError("malformed-conversation")
    turns = [(role, _encodable(value)) for role, value in stored]
    asks = [role in HUMAN for role, _ in turns]
    if not asks[0]:
        raise BadSampleError("conversation-without-human-first")
    if any(before == after for before, after in pairwise(asks)):
        raise BadSampleError("malformed-conversation")
    if all(is_blank(value) for _, value in turns[1::2]):  # nothing to learn
        raise BadSampleError("no-conversation")
    return turns


def read_document(read: Reader) -> list[str | None] | None:
    """Return the texts of an interleaved document, None where an image is; None if the JSON has no ``texts``.

    Texts next to each other are joined by a blank line.
    """
    stored = _read_json(read, "no-conversation").get("texts")
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(isinstance(t, str | None) for t in stored):
        raise BadSampleError("malformed-document")
    texts: list[str | None] = []
    for text in stored:
        if text and texts and texts[-1]:
            texts[-1] += f"\n\n{_encodable(text)}"
        elif text != "":
            texts.append(text and _encodable(text))
    if all(text is None or is_blank(text) for text in texts):
        raise BadSampleError("no-text")
    return texts


def check_places(places: int, present: list[int], limit: int) -> None:
    """Compare the places of images in a text with the numbers of the images that are ``present``."""
    if places > limit:
        detail = f"{places} images, at most {limit} (dataset.max_images)"
        raise BadSampleError("too-many-images", detail)
    if len(present) > places:
        raise BadSampleError("image-without-marker", f"more images than {places} markers")
    if present != list(range(len(present))):
        raise BadSampleError("no-image", f"of {places} images, only numbers {present}")
    if len(present) < places:
        raise BadSampleError("marker-without-image", f"{places} markers, {len(present)} images")


def numbered(number: int) -> str:
    """Return the beginning of the names of the members of image ``number``, counted from 0."""
    return f"{number}."


def within(part: str, read: Reader) -> Reader:
    """Return a reader of the members of one of several images: of ``source.jpg`` or ``0.jpg`` as ``jpg``."""
    return lambda extension: read(part + extension)


def first_of(read: Reader, extensions: tuple[str, ...]) -> bytes | None:
    """Return the first member of those ``extensions`` that is not empty; None if there is none."""
    return next((data for extension in extensions if (data := read(extension))), None)


def _read_json(read: Reader, reason_if_absent: str) -> Mapping[str, Any]:
    data = read(JSON)
    if data is None:
        raise BadSampleError(reason_if_absent)
    try:
        value = parse_json(_utf8(data))
    except ValueError:
        raise BadSampleError("broken-json") from None
    if not isinstance(value, dict):
        raise BadSampleError("broken-json")
    return value


def _utf8(data: bytes) -> str:
    """Decode UTF-8, with or without the byte-order mark that Windows programs write."""
    try:
        return data.removeprefix(
            BOM_UTF8
        ).decode()  # "utf-8-sig" is slower, as it is not written in C
    except UnicodeDecodeError:
        raise BadSampleError("not-utf8") from None


def _encodable(text: str) -> str:
    """Return the text; JSON can hold halves of surrogate pairs, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSampleError("not-utf8") from None
    return text

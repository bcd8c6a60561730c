"""Decode the members of a sample; a member that cannot be used raises :class:`BadSampleError`."""

import io
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.lib.format import read_array
from PIL import Image
from torch import Tensor

from showo_data.images import UnfitImageError, decode

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "text", "caption")
CODES: Final = "codes.npy"
CONDITION: Final = "condition.npy"
FEATURES: Final = "features.npy"
JSON = "json"
Encoded = Literal["codes.npy", "condition.npy", "features.npy"]

# Returns the bytes of the member with an extension, or None if the sample has none.
Reader = Callable[[str], bytes | None]


class BadSampleError(Exception):
    """The sample cannot be used; the argument is the reason, a short code (see docs/data.md)."""


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


def read_codes(read: Reader, extension: str) -> Tensor | None:
    """Read the stored image codes: int64 (N,); None if the sample has none."""
    codes = _read_array(read, extension, "broken-codes")
    if codes is None:
        return None
    if not np.issubdtype(codes.dtype, np.integer):
        raise BadSampleError("broken-codes")
    return torch.from_numpy(codes.reshape(-1).astype(np.int64))


def read_features(read: Reader) -> Tensor | None:
    """Read the stored CLIP features: fp32 (S, C); None if the sample has none."""
    features = _read_array(read, FEATURES, "broken-features")
    if features is None:
        return None
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise BadSampleError("broken-features")
    return torch.from_numpy(features.astype(np.float32))


def _read_array(read: Reader, extension: str, reason: str) -> np.ndarray | None:
    """Read a member in NumPy's format; None if the sample has none."""
    data = read(extension)
    if data is None:
        return None
    try:
        # Not np.load, which also opens archives. MemoryError: a header may claim any number of entries.
        return read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise BadSampleError(reason) from error


def read_texts(read: Reader) -> tuple[str, ...]:
    """Return the sample's texts: a text member, else ``captions`` or ``caption`` of its JSON."""
    data = first_of(read, TEXTS)
    if data is not None:
        return (_utf8(data),)
    content = _read_json(read, "no-text")
    captions = content.get("captions", [content.get("caption")])
    if isinstance(captions, str):
        captions = [captions]
    if not captions or not isinstance(captions, list):
        raise BadSampleError("no-text")
    if not all(isinstance(caption, str) for caption in captions):
        raise BadSampleError("no-text")
    return tuple(captions)


def read_conversation(read: Reader) -> list[tuple[str, str]]:
    """Return a LLaVA conversation as (role, value); the roles alternate, the first is "human"."""
    rounds = _read_json(read, "no-conversation").get("conversations")
    if not rounds:
        raise BadSampleError("no-conversation")
    try:
        turns = [(turn["from"], turn["value"]) for turn in rounds]
    except (TypeError, KeyError):
        raise BadSampleError("malformed-conversation") from None
    if not all(isinstance(word, str) for turn in turns for word in turn):
        raise BadSampleError("malformed-conversation")
    if turns[0][0] != "human":
        raise BadSampleError("conversation-without-human-first")
    if any(before[0] == after[0] for before, after in pairwise(turns)):
        raise BadSampleError("malformed-conversation")
    return turns


def first_of(read: Reader, extensions: tuple[str, ...]) -> bytes | None:
    """Return the first member that exists of those ``extensions``; None if none does."""
    for extension in extensions:
        data = read(extension)
        if data is not None:
            return data
    return None


def _read_json(read: Reader, reason_if_absent: str) -> Mapping[str, Any]:
    data = read(JSON)
    if data is None:
        raise BadSampleError(reason_if_absent)
    try:
        value = json.loads(_utf8(data))
    # ValueError also for a number with thousands of digits, RecursionError for deep nesting.
    except (ValueError, RecursionError):
        raise BadSampleError("broken-json") from None
    if not isinstance(value, dict):
        raise BadSampleError("broken-json")
    return value


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadSampleError("not-utf8") from None

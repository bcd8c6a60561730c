"""Build sequences from text ids, image codes and features, and pack them into one micro-batch."""

from showo_dist.config.flows import FLOWS
from showo_dist.sequences.pack import TOKEN_MULTIPLE, PackedBatch, Sequence, image_first, pack
from showo_dist.sequences.text import TextEncoder
from showo_dist.sequences.vocabulary import Vocabulary

__all__ = [
    "FLOWS",
    "TOKEN_MULTIPLE",
    "PackedBatch",
    "Sequence",
    "TextEncoder",
    "Vocabulary",
    "image_first",
    "pack",
]

"""From text ids, image codes and features to one packed micro-batch."""

from showo_dist.sequences.pack import PackedBatch, pack
from showo_dist.sequences.sequence import FLOWS, Sequence
from showo_dist.sequences.text import TextEncoder
from showo_dist.sequences.vocabulary import Vocabulary

__all__ = ["FLOWS", "PackedBatch", "Sequence", "TextEncoder", "Vocabulary", "pack"]

"""What the pipelines hand out: samples, the reasons why others are absent, and what a flow asks for.

Counts what was skipped, by reason and shard."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from showo_data.captions import ExternalCaptions
from showo_data.images import Transform
from showo_data.members import CODES, Encoded
from showo_data.shards import Storage

Kind = Literal["caption", "conversation", "text", "image"]
KINDS: tuple[Kind, ...] = ("caption", "conversation", "text", "image")
TENSORS = ("image_3HW", "codes_N", "condition_codes_G", "features_PC")  # attributes of a sample


@dataclass(slots=True)
class Sample:
    """One sample of a flow; what its kind does not need is None.

    A shard that was encoded gives what its flow needs (``FlowSpec.encoded``) and no image: ``codes_N``,
    int64 image codes; ``condition_codes_G``, those of the condition image; ``features_PC``, fp32 features.
    ``conversation`` is a list of (role, value), roles as stored ("human", "gpt"), the first a human's.
    ``shard`` is the path or URL that it came from.
    """

    flow: str
    position: int
    key: str
    image_3HW: Tensor | None = None
    codes_N: Tensor | None = None
    condition_codes_G: Tensor | None = None
    features_PC: Tensor | None = None
    text: str | None = None
    conversation: list[tuple[str, str]] | None = None
    shard: str = ""

    def pin_memory(self) -> "Sample":
        """Move the tensors to pinned memory (called by the data loader)."""
        for name in TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.pin_memory())
        return self


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that is absent. ``reason`` is one of a few short codes such as "broken-image"."""

    flow: str
    position: int
    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Weighted:
    """One source of a mixture: shards, and how often they are drawn from, relative to the others.

    Each source of a mixture has its own epochs and its own order, which does not depend on the weights.
    """

    urls: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """What one flow reads.

    Attributes:
        flow: its name, as losses and positions are reported.
        kind: "caption" (image, text), "conversation" (image, LLaVA rounds), "text", or "image".
        urls: shards, as paths, URLs or brace patterns.
        mixture: several weighted sources instead of ``urls``.
        batch: samples per rank and micro-step, bad ones counted.
        transform: from the decoded image to ``Sample.image_3HW``; may be None for text and encoded shards.
        encoded: members that stand for the image in a sample that has them all.
        captions: captions outside the shards; None: captions are members of the samples.
        seed: of the order of the samples.
        streams: canonical streams an epoch is cut into.
        window: samples within which a stream is shuffled.
        sampling: "exact", or "resampled" as :mod:`showo_data.readers` says.
        storage: how shards are reached.
    """

    flow: str
    kind: Kind
    urls: tuple[str, ...] = ()
    mixture: tuple[Weighted, ...] = ()
    batch: int
    transform: Transform | None = None
    encoded: tuple[Encoded, ...] = (CODES,)
    captions: ExternalCaptions | None = None
    seed: int = 0
    streams: int = 8
    window: int = 1000
    sampling: Literal["exact", "resampled"] = "exact"
    storage: Storage = field(default_factory=Storage)

    @property
    def parts(self) -> tuple[Weighted, ...]:
        """The sources, at least one."""
        return self.mixture or (Weighted(self.urls),)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"flow {self.flow!r}: kind must be one of {KINDS}, not {self.kind!r}")
        if self.batch < 1:
            raise ValueError(f"flow {self.flow!r}: batch must be at least 1, not {self.batch}")
        if self.sampling not in ("exact", "resampled"):
            raise ValueError(
                f"flow {self.flow!r}: sampling must be exact or resampled, not {self.sampling!r}"
            )
        if self.urls and self.mixture:
            raise ValueError(f"flow {self.flow!r}: give urls or a mixture, not both")


# Fewer samples than this say nothing about a fraction: one early bad sample must not stop a run.
_ENOUGH = 200


class BadSamples:
    """Bad samples seen so far; adding is cheap, reporting is one line."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tried = 0

    def add(self, skipped: Iterable[Skipped], good: int = 0) -> None:
        """Count every one of ``skipped``, and ``good`` samples that were read beside them."""
        bad = Counter((item.reason, item.shard) for item in skipped)
        self.counts.update(bad)
        self.tried += bad.total() + good

    @classmethod
    def merged(cls, parts: Iterable["BadSamples"]) -> "BadSamples":
        """The sum of what several ranks have counted."""
        whole = cls()
        for part in parts:
            whole.counts.update(part.counts)
            whole.tried += part.tried
        return whole

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.counts.total()

    def exceeds(self, fraction: float) -> bool:
        """Whether more than ``fraction`` of the samples are bad; a start of 200 samples is taken as given."""
        return self.total > fraction * max(self.tried, _ENOUGH)

    def by_reason(self) -> dict[str, int]:
        """Counts per reason, the most frequent first."""
        return self._sums(0)

    def by_shard(self) -> dict[str, int]:
        """Counts per shard, the worst first."""
        return self._sums(1)

    def summary(self) -> str:
        """One line: how many, why, and the three worst shards."""
        if not self.counts:
            return "no sample was skipped"
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.by_reason().items())
        worst = ", ".join(f"{shard} {n}" for shard, n in list(self.by_shard().items())[:3])
        return f"{self.total} samples skipped: {reasons}; most in {worst}"

    def _sums(self, part: int) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for name, count in self.counts.items():
            sums[name[part]] += count
        return dict(sums.most_common())

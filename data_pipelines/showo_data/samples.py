"""Samples, skipped samples and their counts, and the settings of a flow's data.

Letters: M images of one sample; others as in docs/architecture.md.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from showo_data.captions import ExternalCaptions
from showo_data.images import Transform
from showo_data.members import CODES, Encoded, Fit
from showo_data.shards import Storage

Kind = Literal["caption", "conversation", "text", "image", "edit"]
KINDS: tuple[Kind, ...] = ("caption", "conversation", "text", "image", "edit")
# Reason of a sample that raises what no reader expects.
UNEXPECTED = "unexpected-error"
# Attributes of a sample.
TENSORS = (
    *("image_3HW", "source_3HW", "codes_N", "condition_codes_G", "features_SC"),
    *("images_M3HW", "codes_MN", "features_MSC"),
)


@dataclass(slots=True)
class Sample:
    """One sample of a flow; attributes that its kind does not need are None.

    Attributes:
        flow, position: the flow, and the position of its stream.
        key: of the sample in its shard.
        image_3HW: the transformed image, of an edit the target; None if the sample is encoded
            (``FlowSpec.encoded``).
        source_3HW: the transformed source image of an edit; None if it is encoded.
        codes_N: int64, codes of the image.
        condition_codes_G: int64, codes of RecA's condition image, or of the source image of an edit.
        features_SC: fp32, CLIP features, S feature slots of C channels.
        images_M3HW: the transformed numbered images of a conversation or document; None if it has a single
            image without a number, or is encoded.
        codes_MN, features_MSC: the same as codes, or as CLIP features.
        text: caption, plain text or instruction.
        conversation: (role, value) in turn; roles as stored ("human", "gpt"), the first is "human". With
            numbered images, the values hold an ``<image>`` in the place of each.
        document: texts of an interleaved document in order, None in the place of each image.
        shard: path or URL of the shard.
    """

    flow: str
    position: int
    key: str
    image_3HW: Tensor | None = None
    source_3HW: Tensor | None = None
    codes_N: Tensor | None = None
    condition_codes_G: Tensor | None = None
    features_SC: Tensor | None = None
    images_M3HW: Tensor | None = None
    codes_MN: Tensor | None = None
    features_MSC: Tensor | None = None
    text: str | None = None
    conversation: list[tuple[str, str]] | None = None
    document: list[str | None] | None = None
    shard: str = ""

    @property
    def numbered(self) -> bool:
        """Whether the images are numbered, and their places marked."""
        return not (
            self.images_M3HW is None and self.codes_MN is None and self.features_MSC is None
        )


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that cannot be used.

    Attributes:
        reason: a short code such as "broken-image" (see docs/data.md).
        detail: what was found and what was expected; empty if the reason says it all.
        samples: how many samples it stands for: those of a shard that is read as a whole and lost.
    """

    flow: str
    position: int
    shard: str
    key: str
    reason: str
    detail: str = field(default="", compare=False)
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Weighted:
    """One source of a mixture: its shards, and its weight relative to the other sources.

    Each source has its own epochs and its own order, which does not depend on the weights.
    """

    urls: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """The data of one flow.

    Attributes:
        flow: name, under which losses and positions are reported.
        kind: "caption" (image, text), "conversation" (image or numbered images, LLaVA rounds or document),
            "text", "image", or "edit" (source image, target image, instruction).
        urls: shards, as paths, URLs or brace patterns.
        mixture: weighted sources, instead of ``urls``.
        batch: samples per rank and micro-step, including the skipped ones.
        transform: decoded image → ``Sample.image_3HW``; may be None for text and encoded shards.
        encoded: members that replace the image in a sample that has all of them; empty: the image is always
            read (not of kind "edit").
        max_images: most numbered images of a sample.
        fits: the sizes of encoded members that fit the model; other members are not compared.
        captions: where to find captions outside the shards; None: they are members of the samples.
        seed: of the order of the samples.
        streams: number of streams that an epoch is cut into.
        window: samples of a stream that are shuffled together.
        sampling: "exact" or "resampled"; see :mod:`showo_data.readers`.
        storage: how to access the shards.
    """

    flow: str
    kind: Kind
    urls: tuple[str, ...] = ()
    mixture: tuple[Weighted, ...] = ()
    batch: int
    transform: Transform | None = None
    encoded: tuple[Encoded, ...] = (CODES,)
    max_images: int = 1
    fits: Mapping[Encoded, Fit] = field(default_factory=dict)
    captions: ExternalCaptions | None = None
    seed: int = 0
    streams: int = 8
    window: int = 1000
    sampling: Literal["exact", "resampled"] = "exact"
    storage: Storage = field(default_factory=Storage)

    @property
    def parts(self) -> tuple[Weighted, ...]:
        """The sources; ``urls`` are one with weight 1."""
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


# A fraction of fewer samples than this means nothing: one early bad sample must not stop a run.
_ENOUGH = 200


class BadSamples:
    """Counts of skipped samples by reason and shard, and of all samples tried.

    Attributes:
        counts: per reason and shard.
        tried: good and bad samples.
        examples: per reason, the first sample that says what was found and expected.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.examples: dict[str, str] = {}
        self.tried = 0

    def add(self, skipped: Iterable[Skipped], good: int = 0) -> None:
        """Count the ``skipped`` samples, and ``good`` ones that were read in the same micro-step."""
        skipped = list(skipped)
        bad = Counter[tuple[str, str]]()
        for item in skipped:
            bad[item.reason, item.shard] += item.samples
            if item.detail:
                self.examples.setdefault(item.reason, f"{item.shard} {item.key!r}: {item.detail}")
        self.counts.update(bad)
        self.tried += bad.total() + good

    @classmethod
    def merged(cls, parts: Iterable["BadSamples"]) -> "BadSamples":
        """Return the sum of the counts of several ranks."""
        whole = cls()
        for part in parts:
            whole.counts.update(part.counts)
            whole.tried += part.tried
            whole.examples = part.examples | whole.examples
        return whole

    @property
    def total(self) -> int:
        """Samples skipped."""
        return self.counts.total()

    def exceeds(self, fraction: float) -> bool:
        """Whether more than ``fraction`` of the samples were skipped; fewer than 200 tried count as 200."""
        return self.total > fraction * max(self.tried, _ENOUGH)

    def by_reason(self) -> dict[str, int]:
        """Return the counts per reason, the largest first."""
        return self._sums(0)

    def by_shard(self) -> dict[str, int]:
        """Return the counts per shard, the largest first."""
        return self._sums(1)

    def summary(self) -> str:
        """Describe in one line how many samples were skipped, why, and in which shards most."""
        if not self.counts:
            return "no sample was skipped"
        examples = {reason: f" ({example})" for reason, example in self.examples.items()}
        reasons = ", ".join(
            f"{reason} {n}{examples.get(reason, '')}" for reason, n in self.by_reason().items()
        )
        worst = ", ".join(f"{shard} {n}" for shard, n in list(self.by_shard().items())[:3])
        return f"{self.total} samples skipped: {reasons}; most in {worst}"

    def _sums(self, part: int) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for name, count in self.counts.items():
            sums[name[part]] += count
        return dict(sums.most_common())

"""Write the mini world as a data set: image shards, plain-text shards, prompts."""

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from showo_data.files import claim, written_aside
from showo_data.mini.drawing import draw, patchwork
from showo_data.mini.language import WORDINGS, Wording, caption, plain_text, questions
from showo_data.mini.prompts import prompts
from showo_data.mini.world import Scene, scene
from showo_data.shards import index_path, load_index, write_shard

# First scene of the validation shards, beyond the numbers of any training shard.
VALIDATION_FROM = 10**9
_SETTINGS = "mini.json"


@dataclass(frozen=True, kw_only=True)
class MiniSettings:
    """The size of a mini world; equal settings give equal bytes.

    Attributes:
        images: training images, each with a caption and a conversation; and as many patchworks.
        texts: plain texts.
        validation: images for evaluation, none of which is a training image.
        prompts_per_tag: evaluation prompts in each of the six categories.
        shard_size: samples per shard.
        seed: of everything.
        captions: "mixed", "sparse" or "complete" (:data:`showo_data.mini.language.WORDINGS`). With the last
            two, descriptions in conversations and captions of validation images are complete.
        skew: of the training images (:func:`showo_data.mini.world.scene`); validation images are even.
    """

    images: int = 10_000
    texts: int = 4_000
    validation: int = 500
    prompts_per_tag: int = 20
    shard_size: int = 1_000
    seed: int = 0
    captions: str = "mixed"
    skew: float = 0.0

    def __post_init__(self) -> None:
        if self.captions not in WORDINGS:
            raise ValueError(
                f"captions must be one of {', '.join(WORDINGS)}, not {self.captions!r}"
            )
        if not 0 <= self.skew < 1:
            raise ValueError(f"skew must be at least 0 and below 1, not {self.skew}")
        for name in ("images", "texts", "validation", "prompts_per_tag", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Part:
    """One shard to write, with the samples ``first`` to ``first + count - 1``."""

    path: Path
    first: int
    count: int
    sample: Callable[[int, int], dict[str, Any]]


def write_mini(
    out: str | Path, settings: MiniSettings, progress: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Write train, text, patchwork and val shards with their indices, and ``prompts.jsonl``, to ``out``.

    Shards that exist and are complete are kept. ``progress`` is called with (samples done, all samples).

    Raises:
        ValueError: ``out`` holds a mini world with other settings.
    """
    folder = Path(out)
    claim(folder, _SETTINGS, _noted(settings), "a mini world")
    write_parts(_parts(folder, settings), settings.seed, progress)
    lines = [json.dumps(prompt) for prompt in prompts(settings.seed, settings.prompts_per_tag)]
    with written_aside(folder / "prompts.jsonl") as stream:
        stream.write("\n".join([*lines, ""]).encode())


def _noted(settings: MiniSettings) -> dict[str, Any]:
    """The settings, without captions and skew at their defaults: older folders do not have these."""
    default = MiniSettings()
    return {
        name: value
        for name, value in asdict(settings).items()
        if name not in ("captions", "skew") or value != getattr(default, name)
    }


def _parts(folder: Path, settings: MiniSettings) -> list[Part]:
    wording = settings.captions
    told = "mixed" if wording == "mixed" else "complete"
    train = partial(image_sample, captions=wording, told=told, skew=settings.skew)
    kinds = (
        ("train", 0, settings.images, train),
        ("text", 0, settings.texts, text_sample),
        ("patchwork", 0, settings.images, patchwork_sample),
        (
            "val",
            VALIDATION_FROM,
            settings.validation,
            partial(image_sample, captions=told, told=told),
        ),
    )
    return parts_of(folder, kinds, settings.shard_size)


def parts_of(
    folder: Path,
    kinds: Iterable[tuple[str, int, int, Callable[[int, int], dict[str, Any]]]],
    shard_size: int,
) -> list[Part]:
    """The shards of each kind, in order.

    Args:
        folder: of the shards.
        kinds: name, first number, count, and what makes a sample of seed and number.
        shard_size: samples per shard.
    """
    parts = []
    for name, first, count, sample in kinds:
        for number, begin in enumerate(range(0, count, shard_size)):
            length = min(shard_size, count - begin)
            parts.append(Part(folder / f"{name}-{number:06d}.tar", first + begin, length, sample))
    return parts


def write_parts(parts: list[Part], seed: int, progress: Callable[[int, int], None]) -> None:
    """Write the shards that are missing or incomplete; ``progress`` gets (samples done, all samples)."""
    total, done = sum(part.count for part in parts), 0
    for part in parts:
        if not _complete(part):
            write_shard(part.path, _samples(part, seed))
        done += part.count
        progress(done, total)


def _complete(part: Part) -> bool:
    if not part.path.exists() or not index_path(str(part.path)).exists():
        return False
    return load_index(str(part.path))[0].samples == part.count


def _samples(part: Part, seed: int) -> Iterator[dict[str, Any]]:
    return (part.sample(seed, part.first + i) for i in range(part.count))


def image_sample(
    seed: int, index: int, captions: str = "mixed", told: str = "mixed", skew: float = 0.0
) -> dict[str, Any]:
    """Return scene number ``index`` as a sample: png, txt (caption) and json (conversation, objects).

    Args:
        seed, index, skew: of the scene.
        captions: wording of the caption.
        told: wording of descriptions in the conversation.
    """
    drawn = scene(seed, index, skew)
    rng = random.Random(f"words/{seed}/{index}")
    return {
        "__key__": f"{index:010d}",
        "png": _png(draw(drawn)),
        "txt": caption(drawn, rng, WORDINGS[captions]),
        "json": {
            "conversations": _conversation(drawn, rng, WORDINGS[told]),
            "objects": [asdict(thing) for thing in drawn.objects],
        },
    }


def patchwork_sample(seed: int, index: int) -> dict[str, Any]:
    """Return patchwork number ``index``, for the image tokenizer, as a sample: png alone."""
    return {"__key__": f"{index:010d}", "png": _png(patchwork(seed, index))}


def _png(image: Image.Image) -> bytes:
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    return png.getvalue()


def _conversation(drawn: Scene, rng: random.Random, wording: Wording) -> list[dict[str, str]]:
    """Sample one to three rounds in LLaVA's format; ``<image>`` is in the first question."""
    rounds = questions(drawn, rng, wording)[: rng.randint(1, 3)]
    turns = []
    for number, (question, answer) in enumerate(rounds):
        image = "" if number else "<image>\n"
        turns.append({"from": "human", "value": image + question})
        turns.append({"from": "gpt", "value": answer})
    return turns


def text_sample(seed: int, index: int) -> dict[str, Any]:
    """Return plain text number ``index`` as a sample."""
    return {"__key__": f"{index:010d}", "txt": plain_text(random.Random(f"text/{seed}/{index}"))}

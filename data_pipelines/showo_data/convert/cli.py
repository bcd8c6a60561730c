"""The commands ``showo-dist shards from-…``."""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from showo_data.captions import ExternalCaptions
from showo_data.convert.edits import NAMES, edit_items
from showo_data.convert.imagenet import imagenet_items
from showo_data.convert.images import folder_items, image_items
from showo_data.convert.interleaved import interleaved_items
from showo_data.convert.items import Item, Note
from showo_data.convert.llava import llava_items
from showo_data.convert.recaption import recaptioned_items
from showo_data.convert.text import text_items
from showo_data.convert.writing import DIGEST, Report, Target, convert
from showo_data.shards.storage import add_storage_options, storage_of

Parser = argparse.ArgumentParser
_FILES = "paths, brace patterns or wildcards (** for any depth)"
# Arguments that do not influence the content of a shard.
_STORAGE = ("cache_dir", "cache_gb", "retries", "timeout_s", "allow_pipe")
_NOT_CONTENT = ("out", "prefix", "shard_size", "limit", "part", *_STORAGE)


@dataclass(frozen=True, slots=True)
class Converter:
    """One command: its help, a function that adds its arguments, and one that yields its inputs."""

    help: str
    arguments: Callable[[Parser], None]
    items: Callable[[argparse.Namespace], Iterator[Item | Note]]
    images: bool = True


def add_converters(actions: Any) -> None:
    """Add a parser for each converter to the subparsers ``actions`` of ``showo-dist shards``."""
    for name, converter in CONVERTERS.items():
        parser = actions.add_parser(name, help=converter.help, description=converter.help)
        converter.arguments(parser)
        if converter.images:
            parser.add_argument(
                "--max-side",
                type=int,
                metavar="PIXELS",
                help="make larger images smaller (JPEG 95); default: bytes are copied as they are",
            )
        parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
        parser.add_argument("--prefix", default="train", help="default %(default)s")
        parser.add_argument("--shard-size", type=int, default=1000, help="default %(default)s")
        parser.add_argument("--limit", type=int, help="convert only so many inputs")
        parser.add_argument(
            "--part",
            type=_part,
            default=(0, 1),
            metavar="I/N",
            help="write every N-th shard, from number I on, 0 ≤ I < N: for N commands side by side",
        )


def _part(text: str) -> tuple[int, int]:
    """Parse ``I/N``; :class:`Target` checks the range."""
    number, _, parts = text.partition("/")
    return int(number), int(parts)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run a conversion with a progress line; prints the result and the shard pattern for the config.

    Raises:
        ValueError, OSError: errors that the user can correct.
    """
    content = vars(arguments).items()
    target = Target(
        out=arguments.out,
        prefix=arguments.prefix,
        shard_size=arguments.shard_size,
        limit=arguments.limit,
        part=arguments.part,
        settings={name: value for name, value in content if name not in _NOT_CONTENT}
        | _side_files(arguments),
    )
    if getattr(arguments, "max_side", None) is not None and arguments.max_side < 1:
        raise ValueError(f"--max-side must be at least 1, not {arguments.max_side}")
    with _progress(console) as progress:
        task = progress.add_task(f"{arguments.action} to {target.out}", total=None)

        def show(report: Report) -> None:
            progress.update(task, completed=report.inputs)

        report = convert(CONVERTERS[arguments.action].items(arguments), target, show)
    console.print(escape(report.summary()), soft_wrap=True)
    last = f"{report.all_shards - 1:06d}"
    pattern = target.out / f"{target.prefix}-{{000000..{last}}}.tar"
    console.print(escape(f"for the config: '{pattern}'"), soft_wrap=True)
    return 0


def _side_files(arguments: argparse.Namespace) -> dict[str, str]:
    """The digests of the files that give all samples their captions."""
    digests = {}
    for name in ("names", "journeydb"):
        if path := getattr(arguments, name, None):
            with open(path, "rb") as stream:
                digests[name + DIGEST] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed} inputs"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def _imagenet_arguments(parser: Parser) -> None:
    parser.add_argument("source", help="folder of class folders or class tars, or the tar of those")
    parser.add_argument(
        "--names", required=True, help="LOC_synset_mapping.txt, synset_words.txt or class JSON"
    )
    parser.add_argument("--synonyms", choices=("first", "random"), default="first")
    parser.add_argument("--seed", type=int, default=0, help="of the order; default %(default)s")


def _imagenet(a: argparse.Namespace) -> Iterator[Item]:
    return imagenet_items(a.source, a.names, synonyms=a.synonyms, seed=a.seed, max_side=a.max_side)


def _captions_arguments(parser: Parser) -> None:
    parser.add_argument("urls", nargs="+", metavar="URLS", help="shards, paths or brace patterns")
    add_storage_options(parser)
    parser.add_argument("--sa1b", metavar="FOLDER", help="captions NAME.txt")
    parser.add_argument("--laion12m", metavar="FOLDER", help="captions SHARD/KEY.caption")
    parser.add_argument("--cc12m", metavar="FOLDER", help="captions SHARD/NAME.caption")
    parser.add_argument("--journeydb", metavar="JSON", help="{key: [caption, ...]}")
    parser.add_argument(
        "--for",
        dest="flow",
        choices=("t2i", "mmu"),
        required=True,
        help="t2i: first sentence or whole caption, without openings; mmu: the whole caption",
    )


def _captions(a: argparse.Namespace) -> Iterator[Item]:
    outside = ExternalCaptions(a.sa1b, a.laion12m, a.cc12m, variants=a.flow == "t2i")
    return recaptioned_items(
        a.urls, outside, journeydb=a.journeydb, max_side=a.max_side, storage=storage_of(a)
    )


def _text_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILES", help=f".parquet or .jsonl: {_FILES}")
    parser.add_argument("--column", default="content", help="default %(default)s")
    parser.add_argument(
        "--max-chars", type=int, default=8000, help="longest piece; default %(default)s"
    )
    parser.add_argument("--newlines", choices=("keep", "space", "remove"), default="space")


def _text(a: argparse.Namespace) -> Iterator[Item]:
    return text_items(a.files, column=a.column, max_chars=a.max_chars, newlines=a.newlines)


def _llava_arguments(parser: Parser) -> None:
    parser.add_argument("json", help="list of items with image and conversations")
    parser.add_argument("--images", required=True, help="folder that the items' paths start from")


def _llava(a: argparse.Namespace) -> Iterator[Item]:
    return llava_items(a.json, a.images, max_side=a.max_side)


def _interleaved_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILES", help=f".parquet or .jsonl: {_FILES}")
    parser.add_argument("--images", help="folder of the images' paths; default: the file's own")
    parser.add_argument(
        "--max-images", type=int, metavar="N", help="cut documents into pieces of at most N images"
    )
    parser.add_argument(
        "--drop-missing",
        action="store_true",
        help="leave out images without a file; default: the documents that name them",
    )


def _interleaved(a: argparse.Namespace) -> Iterator[Item]:
    return interleaved_items(
        a.files,
        images=a.images,
        max_images=a.max_images,
        drop_missing=a.drop_missing,
        max_side=a.max_side,
    )


def _edits_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILES", help=f".parquet or .jsonl: {_FILES}")
    parser.add_argument("--images", help="folder of the images' paths; default: the file's own")
    for part, names in NAMES.items():
        text = f"its column or key; default: the first of {', '.join(names)}"
        parser.add_argument(f"--{part}", metavar="NAME", help=text)


def _edits(a: argparse.Namespace) -> Iterator[Item]:
    columns = {part: getattr(a, part) for part in NAMES}
    return edit_items(a.files, images=a.images, columns=columns, max_side=a.max_side)


def _parquet_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILES", help=_FILES)
    parser.add_argument("--image", default="image", help="image column; default %(default)s")
    parser.add_argument("--text", help="caption column; default: images alone")


def _parquet(a: argparse.Namespace) -> Iterator[Item]:
    return image_items(a.files, image=a.image, text=a.text, max_side=a.max_side)


def _folder_arguments(parser: Parser) -> None:
    parser.add_argument("source", help="folder of images, captions in x.txt beside x.jpg")


def _folder(a: argparse.Namespace) -> Iterator[Item | Note]:
    return folder_items(a.source, max_side=a.max_side)


CONVERTERS = {
    "from-imagenet": Converter(
        "ImageNet-1k, captioned by class name", _imagenet_arguments, _imagenet
    ),
    "from-captions": Converter(
        "shards and captions outside them (SA-1B, LAION-12M, CC12M, JourneyDB)",
        _captions_arguments,
        _captions,
    ),
    "from-text": Converter(
        "plain text in Parquet or JSON lines", _text_arguments, _text, images=False
    ),
    "from-llava": Converter("LLaVA JSON and its images", _llava_arguments, _llava),
    "from-interleaved": Converter(
        "documents with images among the text (OBELICS, MMC4)", _interleaved_arguments, _interleaved
    ),
    "from-edits": Converter(
        "source images, instructions and target images", _edits_arguments, _edits
    ),
    "from-parquet": Converter("images embedded in Parquet", _parquet_arguments, _parquet),
    "from-folder": Converter("a folder of images", _folder_arguments, _folder),
}

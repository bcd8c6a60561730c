"""``showo-dist generate``, ``inpaint``, ``extrapolate`` and ``reconstruct``: images from a command line."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from showo_dist.generation.edits import check_direction, growth, masked_places
from showo_dist.generation.inputs import Failures, image_paths, opened, read_parts, read_prompts
from showo_dist.generation.output import Album
from showo_dist.generation.pipeline import Pipeline
from showo_dist.generation.request import (
    Request,
    add_sampling,
    complain,
    one_each,
    parser,
    split_texts,
)
from showo_dist.generation.understand import main_understand
from showo_dist.logging.grids import labelled_grid
from showo_dist.logging.progress import progress_display

Item = TypeVar("Item")
# (items of one batch, seed, index of the first) -> an image for each
GenerateBatch = Callable[[list[Item], int, int], list[Image.Image]]
Describe = Callable[[Item], dict[str, Any]]


def main_generate(argv: Sequence[str]) -> int:
    """Text to image; ``mode=…`` of the published demo leads to the other tools."""
    made = parser("generate", "Generate images from texts.")
    add_sampling(made)
    made.add_argument("--prompt", action="append", help="may be repeated")
    made.add_argument("--prompts-file", help="one prompt per line")
    made.add_argument("--parts", help="JSON lines of prompts with images among the text")
    made.add_argument("--samples", type=int, help="images per prompt; default 1")
    request = Request.read("generate", made, argv)
    other = {
        "inpainting": main_inpaint,
        "extrapolation": main_extrapolate,
        "mmu": main_understand,
    }.get(request.config.inference.mode)
    if other is not None:
        return other(argv)
    return _generate_parts(request) if request.arguments.parts else _generate(request)


def _generate(request: Request) -> int:
    prompts = _prompts(request)
    pipeline = request.load()
    _warn_about(prompts, pipeline)
    items = [prompt for prompt in prompts for _ in range(request.config.inference.samples)]
    _generate_all(
        request,
        items,
        lambda part, seed, first: pipeline.generate(part, None, seed, len(part), first),
        lambda prompt: {"prompt": prompt},
    )
    return 0


def _generate_parts(request: Request) -> int:
    failures, rows = Failures(), []
    for row in read_parts(request.arguments.parts):
        try:
            rows.append((row, opened(row)))
        except ValueError as error:
            failures.add(error)
    pipeline = request.load()
    _generate_all(
        request,
        [item for item in rows for _ in range(request.config.inference.samples)],
        lambda part, seed, first: pipeline.generate_from_parts(
            [parts for _, parts in part], pipeline.options, seed, len(part), first
        ),
        lambda item: {"prompt": " ".join(f"<{v}>" if k == "image" else v for k, v in item[0])},
    )
    return failures.exit_code


def main_inpaint(argv: Sequence[str]) -> int:
    """Regenerate what a mask covers."""
    made = parser("inpaint", "Regenerate what a mask covers in white.")
    add_sampling(made)
    made.add_argument("--image", action="append", help="may be repeated")
    made.add_argument("--mask", action="append", help="one for all images, or one each")
    made.add_argument("--prompt", action="append", help="one for all images, or one each")
    request = Request.read("inpaint", made, argv)
    arguments, inference = request.arguments, request.config.inference
    paths = image_paths(arguments.image or _named(inference.image_path, "--image"))
    masks = arguments.mask or _named(inference.inpainting_mask_path, "--mask")
    masks = one_each(masks, len(paths), "--mask")
    texts = one_each(arguments.prompt or [inference.prompt or ""], len(paths), "--prompt")
    pipeline, failures = request.load(), Failures()
    _warn_about(texts, pipeline)
    items = []
    for path, mask_path, text in zip(paths, masks, texts, strict=True):
        image, mask = failures.image(path), failures.image(Path(mask_path))
        if image is None or mask is None:
            continue
        try:
            masked_places(mask, image, pipeline.resolution, pipeline.side)
        except ValueError as error:
            failures.add(ValueError(f"{mask_path}: {error}"))
            continue
        items.append((image, mask, text, {"image": str(path), "mask": mask_path, "prompt": text}))

    def generate_batch(part: list[Any], seed: int, first: int) -> list[Image.Image]:
        images, covers, words, _ = (list(column) for column in zip(*part, strict=True))
        return pipeline.inpaint(images, covers, words, None, seed, len(part), first)

    _generate_all(request, items, generate_batch, lambda item: item[3])
    return failures.exit_code


def main_extrapolate(argv: Sequence[str]) -> int:
    """Carry images on beyond their edges."""
    made = parser("extrapolate", "Carry images on beyond their edges.")
    add_sampling(made)
    made.add_argument("--image", action="append", help="may be repeated")
    made.add_argument(
        "--direction",
        action="append",
        help="left, right, up, down; one step each, or 'left *** up'",
    )
    made.add_argument("--prompt", action="append", help="one for all steps, or one each")
    made.add_argument("--offset", type=int, help="codes that a step adds beyond half an image")
    request = Request.read("extrapolate", made, argv)
    arguments, inference = request.arguments, request.config.inference
    paths = image_paths(arguments.image or _named(inference.image_path, "--image"))
    directions = split_texts(
        arguments.direction or _named(inference.extra_direction, "--direction")
    )
    texts = split_texts(arguments.prompt or [inference.prompt or ""])
    texts = one_each(texts, len(directions), "--prompt")
    offset = inference.offset if arguments.offset is None else arguments.offset
    for direction in directions:
        check_direction(direction)
    pipeline, failures = request.load(), Failures()
    growth(pipeline.side, offset)
    _warn_about(texts, pipeline)
    read = [(path, failures.image(path)) for path in paths]
    items = [(path, image) for path, image in read if image is not None]
    about = {"directions": directions, "prompts": texts, "offset": offset}

    def generate_batch(part: list[Any], seed: int, first: int) -> list[Image.Image]:
        images = [image for _, image in part]
        return pipeline.extrapolate(images, directions, texts, None, seed, len(part), first, offset)

    _generate_all(request, items, generate_batch, lambda item: {"image": str(item[0]), **about})
    return failures.exit_code


def main_reconstruct(argv: Sequence[str]) -> int:
    """RecA's own view: image, understanding of it, image."""
    made = parser("reconstruct", "Generate images anew from the model's understanding of them.")
    add_sampling(made)
    made.add_argument("--image", action="append", help="file or folder; may be repeated")
    request = Request.read("reconstruct", made, argv)
    named = request.arguments.image or _named(request.config.inference.image_path, "--image")
    if request.arguments.guidance is None:  # the flow is trained without
        request.config.training.guidance_scale = 0.0
    pipeline, failures = request.load(), Failures()
    read = [(path, failures.image(path)) for path in image_paths(named)]
    items = [(path, image) for path, image in read if image is not None]
    rows: list[list[Image.Image]] = []

    def generate_batch(part: list[Any], seed: int, first: int) -> list[Image.Image]:
        images = [image for _, image in part]
        rebuilt = pipeline.reconstruct(images, pipeline.options, seed, len(part), first)
        rows.extend(
            map(list, zip(images, pipeline.tokenizer_roundtrip(images), rebuilt, strict=True))
        )
        return rebuilt

    folder = _generate_all(request, items, generate_batch, lambda item: {"image": str(item[0])})
    if rows:
        titles = ["image", "tokenizer alone", "rebuilt"]
        labelled_grid(rows, titles).save(folder / "comparison.png")
    return failures.exit_code


def _generate_all(
    request: Request,
    items: list[Item],
    generate_batch: GenerateBatch[Item],
    describe: Describe[Item],
) -> Path:
    """Every item once per seed, batch by batch; each batch is written when it is generated."""
    album = request.album("images.jsonl", request.sampling())
    total = len(items) * len(request.seeds)
    progress = progress_display(request.name, total, unit="image")
    done = 0
    try:
        for seed in request.seeds:
            for first, part in _batches(items, request.batch):
                for number, image in enumerate(generate_batch(part, seed, first)):
                    _keep(album, image, first + number, seed, describe(part[number]))
                    done += 1
                progress.log(done, {})
    finally:
        progress.close()
        album.close()
    print(f"{done} images in {album.folder}")
    return album.folder


def _keep(album: Album, image: Image.Image, index: int, seed: int, about: dict[str, Any]) -> None:
    caption = str(about.get("prompt") or about.get("image"))
    album.add(image, f"{index:05d}-seed{seed}", caption, {**about, "seed": seed, "index": index})


def _batches(items: list[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    for start in range(0, len(items), size):
        yield start, items[start : start + size]


def _prompts(request: Request) -> list[str]:
    arguments, config = request.arguments, request.config
    if arguments.prompt or arguments.prompts_file:
        named = read_prompts(arguments.prompts_file) if arguments.prompts_file else []
        return [*(arguments.prompt or []), *named]
    if config.inference.prompt is not None:
        return [config.inference.prompt]
    path = config.dataset.params.validation_prompts_file
    if path is None:
        raise ValueError("no prompt: give --prompt, --prompts-file or validation_prompts_file=FILE")
    return read_prompts(path)


def _warn_about(texts: Sequence[str], pipeline: Pipeline) -> None:
    """Say which prompts are empty and which are cut."""
    for number, text in enumerate(texts, start=1):
        tokens = len(pipeline.text.encode(text)) + 2  # the task token and bos count as well
        if not text.strip():
            complain(f"prompt {number} is empty: generated without a condition")
        elif tokens > pipeline.budget:
            complain(f"prompt {number} has {tokens} tokens: cut to {pipeline.budget}")


def _named(value: str | None, option: str) -> list[str]:
    if value is None:
        raise ValueError(f"{option} is missing")
    return [value]

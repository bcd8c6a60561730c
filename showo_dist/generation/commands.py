"""The commands ``showo-dist generate``, ``edit``, ``inpaint``, ``extrapolate`` and ``reconstruct``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from showo_dist.generation.conversation import Part
from showo_dist.generation.edits import check_direction, growth, masked_places, read_image
from showo_dist.generation.pipeline import Pipeline, batches
from showo_dist.generation.request import (
    Failures,
    Request,
    add_sampling,
    image_paths,
    one_each,
    open_parts,
    parser,
    print_error,
    read_edits,
    read_parts,
    read_prompts,
    refuse_beside,
    required,
    split_texts,
)
from showo_dist.generation.sampling import sampling_options
from showo_dist.generation.understand import main_understand
from showo_dist.logging.grids import labelled_grid
from showo_dist.logging.progress import progress_display

Item = TypeVar("Item")
# (items of one batch, seed, index of the first) -> one image per item
GenerateBatch = Callable[[list[Item], int, int], list[Image.Image]]
Describe = Callable[[Item], dict[str, Any]]
_COMPARED = 48  # images on a sheet


def main_generate(argv: Sequence[str]) -> int:
    """Generate images from texts; ``mode=…`` of the published demo calls the other commands."""
    made = parser("generate", "Generate images from texts.")
    add_sampling(made)
    made.add_argument("--prompt", action="append", help="may be repeated")
    made.add_argument("--prompts-file", help="one prompt per line")
    made.add_argument("--parts", help="JSON lines of prompts with images among the text")
    made.add_argument("--samples", type=int, help="images per prompt; default 1")
    request = Request.read("generate", made, argv)
    refuse_beside(request.arguments, "parts", "prompt", "prompts_file")
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
            rows.append((row, open_parts(row)))
        except ValueError as error:
            failures.add(error)
    pipeline = request.load()
    # Without the option, prompts with images as CLIP features are generated without guidance.
    options = None if request.arguments.guidance is None else pipeline.options

    def describe(item: tuple[list[tuple[str, str]], list[Part]]) -> dict[str, Any]:
        prompt = " ".join(f"<{value}>" if kind == "image" else value for kind, value in item[0])
        free = pipeline.clip is not None and any(kind == "image" for kind, _ in item[0])
        return {"prompt": prompt, **({"guidance": 0.0} if free else {})}

    _generate_all(
        request,
        [item for item in rows for _ in range(request.config.inference.samples)],
        lambda part, seed, first: pipeline.generate_from_parts(
            [parts for _, parts in part], options, seed, len(part), first
        ),
        describe,
    )
    return failures.exit_code


def main_edit(argv: Sequence[str]) -> int:
    """Change images as instructions say."""
    made = parser("edit", "Change images as instructions say.")
    add_sampling(made)
    made.add_argument("--image", action="append", help="file or folder; may be repeated")
    made.add_argument(
        "--prompt", action="append", help="one instruction for all images, or one each"
    )
    made.add_argument("--edits", help='JSON lines {"source": PATH, "instruction": TEXT}')
    request = Request.read("edit", made, argv)
    refuse_beside(request.arguments, "edits", "image", "prompt")
    edits = _edits(request)
    pipeline, failures = request.load(), Failures()
    _warn_about([text for _, text in edits], pipeline)
    # Read again when it is their turn: thousands of photos do not fit in memory.
    items = [(path, text) for path, text in edits if failures.image(path) is not None]
    rows: list[list[Image.Image]] = []

    def generate_batch(part: list[Any], seed: int, first: int) -> list[Image.Image]:
        images, texts = [read_image(path) for path, _ in part], [text for _, text in part]
        results = pipeline.edit(images, texts, None, seed, len(part), first)
        rows.extend(map(list, zip(images, results, strict=True)))
        del rows[_COMPARED:]
        return results

    folder = _generate_all(
        request, items, generate_batch, lambda item: {"image": str(item[0]), "prompt": item[1]}
    )
    if rows:
        texts = [text for _, text in items] * len(request.seeds)
        grid = labelled_grid(rows, ["image", "edited"], texts[: len(rows)])
        grid.save(folder / "comparison.png")
    return failures.exit_code


def _edits(request: Request) -> list[tuple[Path, str]]:
    """Return the images and instructions of the options, else of the config."""
    arguments, inference = request.arguments, request.config.inference
    if arguments.edits:
        return read_edits(arguments.edits)
    paths = image_paths(arguments.image or required(inference.image_path, "--image"))
    texts = arguments.prompt or required(inference.prompt, "--prompt")
    return list(zip(paths, one_each(texts, len(paths), "--prompt"), strict=True))


def main_inpaint(argv: Sequence[str]) -> int:
    """Regenerate the part of each image that a mask covers."""
    made = parser("inpaint", "Regenerate the part of an image that a mask covers in white.")
    add_sampling(made)
    made.add_argument("--image", action="append", help="may be repeated")
    made.add_argument("--mask", action="append", help="one for all images, or one each")
    made.add_argument("--prompt", action="append", help="one for all images, or one each")
    request = Request.read("inpaint", made, argv)
    arguments, inference = request.arguments, request.config.inference
    paths = image_paths(arguments.image or required(inference.image_path, "--image"))
    masks = arguments.mask or required(inference.inpainting_mask_path, "--mask")
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
    """Extend images beyond their edges."""
    made = parser("extrapolate", "Extend images beyond their edges.")
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
    paths = image_paths(arguments.image or required(inference.image_path, "--image"))
    directions = split_texts(
        arguments.direction or required(inference.extra_direction, "--direction")
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
    """Regenerate images from the model's understanding of them, and compare."""
    made = parser("reconstruct", "Regenerate images from the model's understanding of them.")
    add_sampling(made)
    made.add_argument("--image", action="append", help="file or folder; may be repeated")
    request = Request.read("reconstruct", made, argv)
    named = request.arguments.image or required(request.config.inference.image_path, "--image")
    if request.arguments.guidance is None:  # the flow is trained without an unconditional half
        request.config.training.guidance_scale = 0.0
        # A schedule of the guidance has no effect now.
        sampling_options(request.config).changed(request.arguments)
    pipeline, failures = request.load(), Failures()
    items = [path for path in image_paths(named) if failures.image(path) is not None]
    rows: list[list[Image.Image]] = []

    def generate_batch(part: list[Path], seed: int, first: int) -> list[Image.Image]:
        images = [read_image(path) for path in part]
        results = pipeline.reconstruct(images, pipeline.options, seed, len(part), first)
        decoded = pipeline.tokenizer_roundtrip(images)
        rows.extend(map(list, zip(images, decoded, results, strict=True)))
        del rows[_COMPARED:]
        return results

    folder = _generate_all(request, items, generate_batch, lambda path: {"image": str(path)})
    if rows:
        titles = ["image", "tokenizer alone", "reconstructed"]
        labelled_grid(rows, titles).save(folder / "comparison.png")
    return failures.exit_code


def _generate_all(
    request: Request,
    items: list[Item],
    generate_batch: GenerateBatch[Item],
    describe: Describe[Item],
) -> Path:
    """Generate every item once per seed, and write each batch as soon as it is generated.

    Returns:
        The folder of the results.
    """
    album = request.album("images.jsonl", request.sampling())
    total = len(items) * len(request.seeds)
    progress = progress_display(request.name, total, unit="image")
    done = 0
    try:
        for seed in request.seeds:
            for first, part in batches(items, request.batch):
                for number, image in enumerate(generate_batch(part, seed, first)):
                    about = {**describe(part[number]), "seed": seed, "index": first + number}
                    caption = str(about.get("prompt") or about.get("image"))
                    album.add(image, f"{first + number:05d}-seed{seed}", caption, about)
                    done += 1
                progress.log(done, {})
    finally:
        progress.close()
        album.close()
    print(f"{done} images in {album.folder}")
    return album.folder


def _prompts(request: Request) -> list[str]:
    """Return the prompts of the options, else of ``prompt=``, else of ``validation_prompts_file=``."""
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
    """Report prompts that are empty or too long on stderr."""
    for number, text in enumerate(texts, start=1):
        tokens = len(pipeline.text.encode(text)) + 2  # the task token and bos count too
        if not text.strip():
            print_error(f"prompt {number} is empty: generated without a condition")
        elif tokens > pipeline.budget:
            print_error(f"prompt {number} has {tokens} tokens: cut to {pipeline.budget}")

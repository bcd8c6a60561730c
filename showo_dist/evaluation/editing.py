"""Editing benchmarks: ImgEdit (arXiv 2505.20275) and GEdit-Bench (arXiv 2504.17761).

Each reads its published instructions and images, and writes edited images where its own scorer reads them.
"""

import shlex
from collections import Counter
from functools import partial
from pathlib import Path

from showo_data.convert.items import find_files
from showo_data.convert.parquet import ParquetFiles, ParquetRows
from showo_data.images import decode
from showo_data.members import BadSampleError
from showo_data.text import inside, parse_json, plain_name, read_text
from showo_dist.evaluation.generating import ImageFile
from showo_dist.evaluation.job import Job
from showo_dist.evaluation.results import Scores
from showo_dist.evaluation.text_to_image import Prompt, TextToImage, a_folder_per_sample, keys
from showo_dist.generation.output import save_image


def _no_scores(out: Path, prompts: int, samples: int) -> Scores:
    """The result files of these scorers are not read."""
    return {}


# ImgEdit, basic benchmark: {KEY: {id, prompt, edit_type}} in, KEY.png out.


def read_imgedit(path: Path, images: Path) -> list[Prompt]:
    """Read the instructions of ``basic_edit.json``, in its order; ``id`` is a path in the folder ``images``.

    Raises:
        ValueError: it is not such an object, or an image is missing.
    """
    text = read_text(path)
    try:
        entries = parse_json(text).items()
        prompts = [
            Prompt(key, entry["prompt"], entry, inside(images, entry["id"]).read_bytes)
            for key, entry in entries
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a JSON object of objects with id and prompt ({error!r})"
        ) from None
    missing = [p.metadata["id"] for p in prompts if not (images / p.metadata["id"]).is_file()]
    if missing:
        raise ValueError(f"--images {images}: has no {missing[0]}, and {len(missing)} are missing")
    return prompts


def score_imgedit(job: Job, out: Path) -> str:
    """The command in ``Benchmark/Basic`` of ImgEdit's checkout; its judge is a paid service."""
    options = {
        "--result_img_folder": out / "images",
        "--edit_json": job.arguments.prompts.resolve(),
        "--origin_img_root": job.arguments.images.resolve(),
        "--prompts_json": "PROMPTS",
    }
    words = [str(word) for option in options.items() for word in option]
    return shlex.join(["python", "basic_bench.py", *words])


IMGEDIT = TextToImage(
    help="ImgEdit's instructions to KEY.png",
    prompts_help="ImgEdit's basic_edit.json",
    samples=1,
    most_samples=None,
    read=read_imgedit,
    files=a_folder_per_sample,
    owned=("images", "images-*"),
    scorer=score_imgedit,
    scores=_no_scores,
    images_help="ImgEdit's folder of original images (Benchmark/singleturn)",
)

# GEdit-Bench: Parquet in, fullset/TASK/LANGUAGE/KEY.png and KEY_SRCIMG.png out.

_COLUMNS = ("key", "task_type", "instruction", "instruction_language")
# As in the published example, the image as it was uploaded is edited; `input_image` was resized.
_IMAGES = ("input_image_raw", "input_image")


def read_gedit(path: Path) -> list[Prompt]:
    """Read the rows of GEdit-Bench, one Parquet file or all of a folder, in order.

    Raises:
        ValueError: a column is missing, or a row holds no text or no image.
        FileNotFoundError: there is no Parquet file.
    """
    paths = find_files([str(path / "*.parquet") if path.is_dir() else str(path)])
    names = ParquetRows(paths[0], _COLUMNS).names
    image = next((name for name in _IMAGES if name in names), _IMAGES[0])
    files = ParquetFiles([*_COLUMNS, image])
    prompts = [_gedit_prompt(files, image, *place) for place in files.places(paths)]
    stems = Counter(map(_gedit_stem, prompts))
    for stem, count in stems.items():
        if count > 1:
            raise ValueError(f"{path}: {count} rows would be the file {stem}.png")
    return prompts


def _gedit_prompt(files: ParquetFiles, image: str, path: str, number: int) -> Prompt:
    try:
        row = files.row(path, number)
        metadata = {name: row[name] for name in _COLUMNS}
        _gedit_bytes(files, image, path, number)
        for name in ("task_type", "instruction_language"):
            plain_name(row[name])
        source = partial(_gedit_bytes, files, image, path, number)
        return Prompt(row["key"], row["instruction"], metadata, source)
    except (BadSampleError, ValueError, TypeError) as error:
        raise ValueError(f"{path}, row {number}: {error}") from None


def _gedit_bytes(files: ParquetFiles, image: str, path: str, number: int) -> bytes:
    value = files.row(path, number)[image]
    if not (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)):
        raise ValueError(f"{image} holds no bytes")
    data: bytes = value["bytes"]
    return data


def _gedit_stem(prompt: Prompt) -> str:
    about = prompt.metadata
    return f"fullset/{about['task_type']}/{about['instruction_language']}/{prompt.name}"


def gedit_files(index: int, prompt: Prompt, samples: int) -> list[ImageFile]:
    """One file."""
    (key,) = keys(index, samples)
    return [ImageFile(f"{_gedit_stem(prompt)}.png", prompt.text, (key,), source=prompt.source)]


def write_sources(prompts: list[Prompt], out: Path) -> None:
    """Write each source image beside its edited one, where the scorer reads it."""
    for prompt in prompts:
        path = out / f"{_gedit_stem(prompt)}_SRCIMG.png"
        if prompt.source is not None and not path.is_file():
            save_image(decode(prompt.source()), path, {})


def score_gedit(job: Job, out: Path) -> str:
    """The commands in ``GEdit-Bench`` of Step1X-Edit's checkout; its judge is a paid service."""
    model, scores = ["--model_name", out.name, "--backbone", "gpt4o"], str(out / "scores")
    score = ["--edited_images_dir", str(out.parent), "--save_dir", scores, *model]
    # The language is a part of the files' names, and the scorer's own default is all.
    count = ["--save_path", scores, "--language", "all", *model]
    return "\n".join(
        shlex.join(["python", *command])
        for command in (["run_gedit_score.py", *score], ["calculate_statistics.py", *count])
    )


GEDIT = TextToImage(
    help="GEdit-Bench's instructions to its folders",
    prompts_help="GEdit-Bench's Parquet file, or the folder of all of them",
    samples=1,
    most_samples=1,
    read=read_gedit,
    files=gedit_files,
    owned=("fullset", "scores"),
    scorer=score_gedit,
    scores=_no_scores,
    prepare=write_sources,
)

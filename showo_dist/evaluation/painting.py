"""Prompts to picture files that say how they were made."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from showo_dist.generation.paint import PaintOptions
from showo_dist.generation.pipeline import Pipeline
from showo_dist.logging.progress import progress_display


def paint_prompts(
    pipeline: Pipeline, prompts: list[str], options: PaintOptions, seed: int, batch: int
) -> list[Image.Image]:
    """One picture per prompt, progress shown; arguments as in :meth:`Pipeline.paint_texts`."""
    progress = progress_display("painting", len(prompts), unit="picture")
    pictures: list[Image.Image] = []
    try:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            pictures += pipeline.paint_texts(part, options, seed, batch, first_index=start)
            progress.log(len(pictures), {})
    finally:
        progress.close()
    return pictures


def save_picture(picture: Image.Image, path: Path, settings: Mapping[str, object]) -> None:
    """Write a PNG that carries ``settings`` as text entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = PngInfo()
    for key, value in settings.items():
        notes.add_itxt(key, str(value))
    picture.save(path, pnginfo=notes)

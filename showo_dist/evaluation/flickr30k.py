"""Flickr30k captions for the COCO caption scorer: Karpathy's test split, or any COCO annotation file."""

import shlex
from pathlib import Path
from typing import Any

from showo_data.text import inside
from showo_dist.evaluation.generating import Question
from showo_dist.evaluation.job import write_json
from showo_dist.evaluation.understanding import Understanding, one_line, read_json, wrong_layout

QUESTION = "Describe the picture in one short sentence."
_SPLIT = "test"


def read(path: Path, images: Path | None) -> list[Question]:
    """Read ``dataset_flickr30k.json`` (its test split), or COCO's ``images`` and ``annotations``.

    Raises:
        ValueError: it is neither.
    """
    assert images is not None
    entries = read_json(path)
    try:
        entries = _coco_images(entries) if "annotations" in entries else _test_split(entries)
        return [
            Question(inside(images, name), QUESTION, {"image_id": number, "references": captions})
            for number, name, captions in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        expected = "Karpathy's images with split, imgid, filename and sentences, or COCO's layout"
        raise wrong_layout(path, expected, error) from None


def _test_split(entries: Any) -> list[tuple[int, str, list[str]]]:
    return [
        (entry["imgid"], entry["filename"], [sentence["raw"] for sentence in entry["sentences"]])
        for entry in entries["images"]
        if entry["split"] == _SPLIT
    ]


def _coco_images(entries: Any) -> list[tuple[int, str, list[str]]]:
    captions: dict[int, list[str]] = {}
    for annotation in entries["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return [
        (entry["id"], entry["file_name"], captions.get(entry["id"], []))
        for entry in entries["images"]
    ]


def write(asked: list[Question], answers: list[str], questions: Path, out: Path) -> list[Path]:
    """Write the captions by ``image_id``, and the true captions in COCO's layout, which the scorer needs."""
    captions, references = out / "captions.json", out / "references.json"
    write_json(
        captions,
        [
            {"image_id": item.record["image_id"], "caption": one_line(answer)}
            for item, answer in zip(asked, answers, strict=True)
        ],
    )
    numbers = [item.record["image_id"] for item in asked]
    pairs = [
        (item.record["image_id"], text) for item in asked for text in item.record["references"]
    ]
    annotations = [
        {"id": number, "image_id": image, "caption": text}
        for number, (image, text) in enumerate(pairs)
    ]
    images = [{"id": number} for number in numbers]
    write_json(references, {"images": images, "annotations": annotations})
    return [captions, references]


def scorer(written: list[Path], questions: Path) -> str:
    """A command that needs the package ``pycocoevalcap``."""
    captions, references = map(str, written)
    program = (
        "from pycocotools.coco import COCO; from pycocoevalcap.eval import COCOEvalCap; "
        f"true = COCO({references!r}); COCOEvalCap(true, true.loadRes({captions!r})).evaluate()"
    )
    return shlex.join(["python", "-c", program])


FLICKR30K = Understanding(
    help="a caption for each Flickr30k test image",
    questions_help="Karpathy's dataset_flickr30k.json, or a COCO caption file",
    suffix="",
    max_new_tokens=48,
    read=read,
    write=write,
    owned=("captions.json", "references.json"),
    scorer=scorer,
    images_help="folder of the Flickr30k images",
)

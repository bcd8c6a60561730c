"""The model class for lmms-eval gives the pipeline's own answers. Skipped without the package."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

from showo_data.mini import draw, scene
from showo_dist.generation.pipeline import Pipeline

QUESTIONS = ["what is shown?", "how many circles are there?", "is there a red square?"]


def requests(images: list[Any], **options: object) -> list[Instance]:
    return [
        Instance(
            request_type="generate_until",
            arguments=(QUESTIONS[n], options, lambda doc: doc, n, "mini", "test"),
            idx=0,
            metadata={"task": "mini", "doc_id": n, "repeats": 1},
        )
        for n in range(len(images))
    ]


def loaded(checkpoint: Path, images: list[Any]) -> Any:
    """The model as lmms-eval makes it, with a task of some documents."""
    made = get_model("showo_dist").create_from_arg_string(
        f"pretrained={checkpoint}", {"batch_size": "2", "max_batch_size": None, "device": "cpu"}
    )
    made.task_dict["mini"] = {"test": images}
    return made


def test_answers_are_the_pipelines(checkpoint: Path) -> None:
    images = [[draw(scene(0, number))] for number in range(3)]
    model = loaded(checkpoint, images)
    wanted = [
        answer
        for start in (0, 2)
        for answer in Pipeline.load(checkpoint, device="cpu").ask(
            [image for (image,) in images[start : start + 2]],
            QUESTIONS[start : start + 2],
            max_new_tokens=7,
        )
    ]
    assert any(wanted)
    assert model.generate_until(requests(images, max_new_tokens=7)) == wanted
    end = wanted[0][1:3]
    found = model.generate_until(requests(images[:1], max_new_tokens=7, until=[end]))
    assert found == [wanted[0].partition(end)[0].strip()]


def test_what_is_no_image_is_named(checkpoint: Path) -> None:
    model = loaded(checkpoint, [["film.mp4"]])
    with pytest.raises(ValueError, match="task mini: has a str"):
        model.generate_until(requests([["film.mp4"]]))

"""The answer files of the understanding benchmarks have the layout that their scorers read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showo_data.mini import draw, scene
from showo_dist.evaluation import mmmu
from showo_dist.evaluation.cli import main
from showo_dist.evaluation.generating import Question
from showo_dist.sequences.train_tokenizer import train
from tests.tiny import TEXT_TOKENS


def _image(path: Path, index: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(scene(0, index)).save(path)
    return path


def _evaluate(framework: str, checkpoint: Path, questions: Path, out: Path, *more: str) -> Path:
    images = [] if framework == "mmmu" else ["--images", str(questions.parent / "images")]
    arguments = ["--framework", framework, str(checkpoint), "--questions", str(questions), *images]
    options = ["--max-new-tokens", "3", "--batch", "2", "--device", "cpu", "--out", str(out)]
    assert main([*arguments, *options, *more]) == 0
    return out


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    path = tmp_path / "coco_pope_random.json"
    entries = [
        {"question_id": n, "image": f"{n % 2}.png", "text": f"Is there a cat {n}?", "label": "yes"}
        for n in range(1, 6)
    ]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    for number in range(2):
        _image(tmp_path / "images" / f"{number}.png", number)
    return path


def test_pope_lines_keep_their_order(checkpoint: Path, pope: Path, tmp_path: Path) -> None:
    out = _evaluate("pope", checkpoint, pope, tmp_path / "out")
    lines = (out / "coco_pope_random_answers.json").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [a["question_id"] for a in answers] == [1, 2, 3, 4, 5]
    assert [a["question"] for a in answers] == [f"Is there a cat {n}?" for n in range(1, 6)]
    assert all(isinstance(a["answer"], str) for a in answers)


def test_no_question_is_asked_twice(
    checkpoint: Path, pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _evaluate("pope", checkpoint, pope, tmp_path / "out")
    part = out / "parts" / "000001.json"
    whole = (out / "coco_pope_random_answers.json").read_text()
    (out / "parts" / "000000.json").write_text('["kept", "as it was"]')
    part.unlink()
    capsys.readouterr()
    _evaluate("pope", checkpoint, pope, out)
    assert "answers: batch 1/1" in capsys.readouterr().out and part.is_file()
    again = (out / "coco_pope_random_answers.json").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in again[:2]] == ["kept", "as it was"]
    assert again[2:] == whole.splitlines()[2:]
    with pytest.raises(ValueError, match=r"suffix .*, not ' in one word'.*--replace"):
        _evaluate("pope", checkpoint, pope, out, "--suffix", " in one word")
    tokenizer = tmp_path / "text"
    train(iter(["another text altogether"] * 9), TEXT_TOKENS).save_pretrained(tokenizer)
    with pytest.raises(ValueError, match=r"text_tokenizer .*--replace"):
        _evaluate("pope", checkpoint, pope, out, "--tokenizer", str(tokenizer))
    draw(scene(1, 7)).resize((90, 90)).save(tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match=r"inputs .*--replace"):
        _evaluate("pope", checkpoint, pope, out)


def test_missing_and_broken_images_are_named(checkpoint: Path, pope: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.png: no such image \(1 of 2 missing\)"):
        _evaluate("pope", checkpoint, pope, tmp_path / "out")
    (tmp_path / "images" / "1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1\.png: not an image that can be read"):
        _evaluate("pope", checkpoint, pope, tmp_path / "out")


def test_mme_lines_get_a_fourth_column(checkpoint: Path, tmp_path: Path) -> None:
    questions = tmp_path / "Your_Results"
    questions.mkdir()
    lines = ["1.png\tIs it red? Please answer yes or no.\tYes", "1.png\tIs it blue?\tNo"]
    (questions / "color.txt").write_text("\n".join(lines) + "\n")
    (questions / "OCR.txt").write_text("2.png\tIs there text?\tNo\n")
    _image(tmp_path / "images" / "color" / "1.png")
    _image(tmp_path / "images" / "OCR" / "images" / "2.png", 1)
    out = _evaluate("mme", checkpoint, questions, tmp_path / "out")
    written = (out / "results" / "color.txt").read_text().splitlines()
    assert [line.rpartition("\t")[0] for line in written] == lines
    assert (out / "results" / "OCR.txt").read_text().count("\t") == 3
    (questions / "count.txt").write_text("3.png\thow many?\n")
    with pytest.raises(ValueError, match=r"count\.txt: expected .* in line 1 .*2 columns"):
        _evaluate("mme", checkpoint, questions, tmp_path / "other")


def test_gqa_predictions(checkpoint: Path, tmp_path: Path) -> None:
    questions = tmp_path / "testdev_balanced_questions.json"
    questions.write_text(
        json.dumps(
            {
                "20": {"question": "What?", "imageId": "n1"},
                "3": {"question": "Who?", "imageId": "n1"},
            }
        )
    )
    _image(tmp_path / "images" / "n1.jpg")
    out = _evaluate("gqa", checkpoint, questions, tmp_path / "out")
    predictions = _json(out / "testdev_balanced_predictions.json")
    assert [p["questionId"] for p in predictions] == ["20", "3"]
    assert all(p["prediction"] == p["prediction"].lower().rstrip(".") for p in predictions)


def test_vqav2_results(checkpoint: Path, tmp_path: Path) -> None:
    questions = tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    entry = {"question_id": 70, "image_id": 7, "question": "What is it?"}
    questions.write_text(json.dumps({"data_subtype": "test-dev2015", "questions": [entry]}))
    _image(tmp_path / "images" / "COCO_test2015_000000000007.jpg")
    out = _evaluate("vqav2", checkpoint, questions, tmp_path / "out")
    (result,) = _json(out / "vqa_OpenEnded_mscoco_test-dev2015_results.json")
    assert result["question_id"] == 70 and isinstance(result["answer"], str)


def test_flickr30k_captions_and_their_references(checkpoint: Path, tmp_path: Path) -> None:
    questions = tmp_path / "dataset_flickr30k.json"
    images = [
        {
            "split": split,
            "imgid": n,
            "filename": f"{n}.jpg",
            "sentences": [{"raw": f"a {n}"}, {"raw": "b"}],
        }
        for n, split in enumerate(["train", "test", "test"])
    ]
    questions.write_text(json.dumps({"images": images}))
    for number in (1, 2):
        _image(tmp_path / "images" / f"{number}.jpg", number)
    out = _evaluate("flickr30k", checkpoint, questions, tmp_path / "karpathy")
    assert [c["image_id"] for c in _json(out / "captions.json")] == [1, 2]
    references = _json(out / "references.json")
    assert references["images"] == [{"id": 1}, {"id": 2}]
    assert [(a["image_id"], a["caption"]) for a in references["annotations"]] == [
        (1, "a 1"), (1, "b"), (2, "a 2"), (2, "b")
    ]  # fmt: skip
    coco = {**references, "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)]}
    questions.write_text(json.dumps(coco))
    other = _evaluate("flickr30k", checkpoint, questions, tmp_path / "coco")
    assert _json(other / "references.json") == references
    assert _json(other / "captions.json") == _json(out / "captions.json")


def _mmmu_row(name: str, kind: str, options: list[str], image: bytes) -> dict[str, Any]:
    return {
        "id": name,
        "question": "<image 1> What is it?",
        "options": str(options),
        "answer": "B",
        "question_type": kind,
        "image_1": {"bytes": image, "path": "1.png"},
    }


def test_mmmu_subjects(checkpoint: Path, tmp_path: Path) -> None:
    image = _image(tmp_path / "1.png").read_bytes()
    for subject, kind, options in [
        ("Art_Theory", "multiple-choice", ["it's a <image 1>", "two"]),
        ("Math", "open", []),
    ]:
        rows = [_mmmu_row(f"validation_{subject}_{n}", kind, options, image) for n in (1, 2)]
        folder = tmp_path / "MMMU" / subject
        folder.mkdir(parents=True)
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "validation-00000-of-00001.parquet")
    out = _evaluate("mmmu", checkpoint, tmp_path / "MMMU", tmp_path / "out", "--limit", "3")
    choices = _json(out / "outputs" / "Art_Theory" / "output.json")
    assert [entry["id"] for entry in choices] == [
        "validation_Art_Theory_1",
        "validation_Art_Theory_2",
    ]
    assert choices[0]["all_choices"] == ["A", "B"]
    assert choices[0]["index2ans"] == {"A": "it's a", "B": "two"}
    assert {"question_type", "answer", "response"} <= choices[0].keys()
    (opened,) = _json(out / "outputs" / "Math" / "output.json")
    assert opened["question_type"] == "open" and "all_choices" not in opened


@pytest.mark.parametrize(
    ("kind", "answer", "wanted"),
    [
        ("open", "['24/7', '3.429']", ["24/7", "3.429"]),
        ("open", "24/7", "24/7"),
        ("open", "[0, 1)", "[0, 1)"),
        ("open", "[0, 1]", "[0, 1]"),
        ("multiple-choice", "['A']", "['A']"),
    ],
)
def test_mmmu_answers_that_are_several(
    kind: str, answer: str, wanted: str | list[str], tmp_path: Path
) -> None:
    """The scorer takes the answers of a list one by one, and a text as one answer."""
    record = {"id": "validation_Math_1", "question_type": kind, "answer": answer}
    (path,) = mmmu.write([Question(b"", "q", record)], ["24/7"], tmp_path, tmp_path)
    assert _json(path) == [{**record, "answer": wanted, "response": "24/7"}]


@pytest.mark.parametrize("framework", ["gqa", "vqav2", "flickr30k", "pope"])
def test_other_layouts_are_named(framework: str, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"questions\.json: expected"):
        _evaluate(framework, checkpoint, path, tmp_path / "out")

"""Prompts and questions of any origin: read as UTF-8, refused in one line, never a path out of a folder."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from showo_dist.evaluation import dpg, flickr30k, geneval, mini, mmmu, vqa, wise
from showo_dist.evaluation.cli import main

BOM = b"\xef\xbb\xbf"
# Names from data that would be, or lead to, other files than OUT/images/NAME.png.
NAMES = ["../x", "a/b", "/etc/x", "..", ".", "", "a\\b", "a\0b", "a\nb", "n" * 300, "\ud83d"]


def _csv(folder: Path, name: str) -> Path:
    path = folder / "dpg_bench.csv"
    path.write_bytes(f'item_id,text\n"{name}",a cat\n'.encode("utf-8", "surrogatepass"))
    return path


def _list(folder: Path, name: object, prompt: object = "a cat") -> Path:
    path = folder / "wise.json"
    path.write_text(json.dumps([{"prompt_id": name, "Prompt": prompt}]))
    return path


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^.*wise\.json: .*cannot be the name of a file.*$"):
        wise.read_prompts(_list(tmp_path, name))
    with pytest.raises(ValueError, match=r"dpg_bench\.csv: .*(name of a file|not UTF-8)"):
        dpg.read_prompts(_csv(tmp_path, name))
    row = {"id": f"validation_{name}_1", "question": "what?", "options": "[]", "answer": "A"}
    row |= {"question_type": "open", "image_1": {"bytes": b"", "path": ""}}
    if "\ud83d" not in name:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "validation-0.parquet")
        with pytest.raises(ValueError, match=r"validation-0\.parquet: .*row 0"):
            mmmu.read(tmp_path, None)


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "a\0b", "", None, 3])
def test_images_are_looked_for_in_their_folder(tmp_path: Path, name: object) -> None:
    files: dict[str, Any] = {
        "pope": {"question_id": 1, "image": name, "text": "a cat?"},
        "coco": {
            "images": [{"id": 1, "file_name": name}],
            "annotations": [{"image_id": 1, "caption": "x"}],
        },
    }
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    images = tmp_path / "images"
    for read in (
        lambda: vqa.read_pope(tmp_path / "pope", images),
        lambda: flickr30k.read(tmp_path / "coco", images),
    ):
        with pytest.raises(ValueError, match=rf"^{tmp_path}/.*: expected .*$"):
            read()


def test_folders_in_names_of_images_are_kept(tmp_path: Path) -> None:
    (tmp_path / "pope").write_text('{"question_id": 1, "image": "a/b.jpg", "text": "a cat?"}')
    (question,) = vqa.read_pope(tmp_path / "pope", tmp_path / "images")
    assert question.image == tmp_path / "images" / "a" / "b.jpg"


BAD_TEXTS = [None, 3, ["a"], "", " ", "half \ud83d of a pair"]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_prompts_that_are_no_text_are_named(tmp_path: Path, text: object) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "tag": "x", "include": []}\n' + json.dumps({"prompt": text}))
    with pytest.raises(ValueError, match=r"^.*prompts\.jsonl:2: .*$"):
        geneval.read_prompts(path)
    with pytest.raises(ValueError, match=r"^.*prompts\.jsonl:2: .*$"):
        mini.read_prompts(path, None)
    with pytest.raises(ValueError, match=r"^.*wise\.json: .*$"):
        wise.read_prompts(_list(tmp_path, 1, text))
    path.write_text(json.dumps({"question_id": 1, "image": "a.jpg", "text": text}))
    with pytest.raises(ValueError, match=r"prompts\.jsonl: .*in line 1"):
        vqa.read_pope(path, tmp_path)


@pytest.mark.parametrize("value", ["7" * 5000, "[" * 100_000, "\0", "{"], ids=range(4))
def test_json_that_cannot_be_parsed_is_named(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(value)
    readers = (
        geneval.read_prompts,
        wise.read_prompts,
        lambda p: mini.read_prompts(p, None),
        lambda p: vqa.read_pope(p, tmp_path),
        lambda p: vqa.read_gqa(p, tmp_path),
        lambda p: vqa.read_vqav2(p, tmp_path),
        lambda p: flickr30k.read(p, tmp_path),
    )
    for read in readers:
        with pytest.raises(ValueError, match=r"a\.json"):
            read(path)


def test_byte_order_marks_and_line_separators(tmp_path: Path) -> None:
    text = "a cat\u2028and\u0085a dog"
    line = json.dumps(
        {"prompt": text, "question_id": 1, "image": "a", "text": text}, ensure_ascii=False
    )
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(BOM + f"{line}\r\n{line}\r\n".encode())
    assert [prompt.text for prompt in geneval.read_prompts(path)] == [text, text]
    assert [question.text for question in vqa.read_pope(path, tmp_path)] == [text, text]
    path.write_bytes(BOM + json.dumps([{"Prompt": text, "prompt_id": 1}]).encode())
    assert [prompt.text for prompt in wise.read_prompts(path)] == [text]
    table = tmp_path / "dpg_bench.csv"
    table.write_bytes(BOM + f'item_id,text\r\n1,"{text}"\r\n'.encode())
    assert [(prompt.name, prompt.text) for prompt in dpg.read_prompts(table)] == [("1", text)]


def test_files_of_macos_are_ignored_and_others_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BOM + b"a cat")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7\xff")
    assert [(prompt.name, prompt.text) for prompt in dpg.read_prompts(tmp_path)] == [("a", "a cat")]
    (tmp_path / "a.txt").write_text("x.jpg\twhat?\tyes\n")
    assert [question.text for question in vqa.read_mme(tmp_path, tmp_path)] == ["what?"]
    (tmp_path / "a.json").write_text('[{"Prompt": "a", "prompt_id": 1}]')
    (tmp_path / "._a.json").write_bytes(b"\0\5\x16\7\xff")
    assert len(wise.read_prompts(tmp_path)) == 1
    (tmp_path / "a.txt").write_bytes(b"x.jpg\tcaf\xe9?\tyes\n")
    for read in (dpg.read_prompts, lambda path: vqa.read_mme(path, path)):
        with pytest.raises(ValueError, match=r"a\.txt: not UTF-8 \(line 1\)"):
            read(tmp_path)


def test_a_table_without_a_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    for table in ("item_id,text\na\n", "item_id,text\na,\n", f"item_id,text\na,{'x' * 200_000}\n"):
        path.write_text(table)
        with pytest.raises(ValueError, match=r"^.*dpg_bench\.csv: .*$"):
            dpg.read_prompts(path)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    argv = ["--framework", "geneval", "x", "--prompts", "x", "--out", str(tmp_path), "--seed", "-1"]
    with pytest.raises(ValueError, match="--seed -1: expected 0 or more"):
        main(argv)

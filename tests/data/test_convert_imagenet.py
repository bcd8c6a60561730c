"""ImageNet-1k in each layout it comes in, and each file of class names."""

import json
from pathlib import Path

import numpy as np
import pytest

from showo_data.cli import main_shards
from showo_data.convert import Target, convert, imagenet_items
from showo_data.convert.imagenet import read_class_names
from tests.data.converting import files, image, same_image, samples, tar_of

CLASSES = {
    "n01440764": ("tench", "Tinca tinca"),
    "n01443537": ("goldfish", "Carassius auratus"),
    "n01484850": ("great white shark", "white shark", "man-eater"),
}
PER_CLASS = 7


def _name(wnid: str, index: int) -> str:
    return f"{wnid}_{index}.JPEG"


def _content() -> dict[str, list[bytes]]:
    """Class → its images, all different."""
    return {
        wnid: [image(10 * number + index, side=8 + index) for index in range(PER_CLASS)]
        for number, wnid in enumerate(CLASSES)
    }


def _class_tars() -> dict[str, bytes]:
    return {
        f"{wnid}.tar": tar_of({_name(wnid, i): data for i, data in enumerate(images)})
        for wnid, images in _content().items()
    }


def _source(layout: str, folder: Path) -> Path:
    if layout == "big tar":
        path = folder / "ILSVRC2012_img_train.tar"
        path.write_bytes(tar_of(_class_tars()))
        return path
    source = folder / "train"
    source.mkdir()
    if layout == "class tars":
        for name, data in _class_tars().items():
            (source / name).write_bytes(data)
        return source
    for wnid, images in _content().items():
        (source / wnid).mkdir()
        (source / wnid / "README").write_text("no image")
        for index, data in enumerate(images):
            (source / wnid / _name(wnid, index)).write_bytes(data)
    return source


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_text("".join(f"{wnid} {', '.join(words)}\n" for wnid, words in CLASSES.items()))
    return path


@pytest.mark.parametrize("layout", ["folders", "class tars", "big tar"])
def test_every_image_with_its_class(tmp_path: Path, names: Path, layout: str) -> None:
    out = tmp_path / "out"
    command = ["from-imagenet", str(_source(layout, tmp_path)), "--names", str(names)]
    assert main_shards([*command, "--out", str(out), "--shard-size", "8"]) == 0
    expected = sorted(
        (words[0], data)
        for words, images in zip(CLASSES.values(), _content().values(), strict=True)
        for data in images
    )
    stored = files(out)
    found = samples(out, "caption")
    assert len(found) == 21 and len(list(out.glob("*.tar"))) == 3
    assert sorted((found[key].text, stored[f"{key}.jpg"]) for key in found) == expected
    assert all(same_image(found[key], stored[f"{key}.jpg"]) for key in found)


def test_all_layouts_give_the_same_shards(tmp_path: Path, names: Path) -> None:
    results = []
    for layout in ("folders", "class tars", "big tar"):
        folder = tmp_path / layout.replace(" ", "-")
        folder.mkdir()
        convert(imagenet_items(_source(layout, folder), names), Target(out=folder / "out"))
        results.append((folder / "out" / "train-000000.tar").read_bytes())
    assert results[0] == results[1] == results[2]


def test_classes_are_mixed_by_the_seed(tmp_path: Path, names: Path) -> None:
    source = _source("folders", tmp_path)

    def classes(seed: int) -> list[str]:
        items = imagenet_items(source, names, seed=seed)
        return [str(item.load()[0]["txt"]) for item in items]

    first = classes(0)
    assert first == classes(0) != classes(1)
    changes = np.count_nonzero(np.array(first[1:]) != np.array(first[:-1]))
    assert changes > PER_CLASS, "a run of one class after the other has two changes"


def test_a_random_synonym_is_drawn_by_position(tmp_path: Path, names: Path) -> None:
    out = tmp_path / "out"
    items = imagenet_items(_source("folders", tmp_path), names, synonyms="random")
    convert(items, Target(out=out))
    texts = {sample.text for sample in samples(out, "caption").values()}
    assert texts <= {word for words in CLASSES.values() for word in words}
    assert len(texts) > 3, "more than one name of some class"
    again = {key: sample.text for key, sample in samples(out, "caption").items()}
    assert again == {key: sample.text for key, sample in samples(out, "caption").items()}
    other = {key: sample.text for key, sample in samples(out, "caption", seed=1).items()}
    assert other != again


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{wnid} {', '.join(words)}\n" for wnid, words in CLASSES.items()),
        "".join(f"{i}: {', '.join(words)}\n" for i, words in enumerate(CLASSES.values())),
        json.dumps(
            {
                i: [wnid, ", ".join(words).replace("great white", "great_white")]
                for i, (wnid, words) in enumerate(CLASSES.items())
            }
        ),
    ],
    ids=["lines", "numbers", "json"],
)
def test_class_names_in_each_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names"
    path.write_text(text)
    assert list(read_class_names(path).values()) == list(CLASSES.values())
    source = _source("folders", tmp_path)
    found = {
        (Path(item.name).parent.name, item.load()[0]["txt"])
        for item in imagenet_items(source, path)
    }
    assert found == {(wnid, words[0]) for wnid, words in CLASSES.items()}


@pytest.mark.parametrize("text", ["", "tench", '{"0": "tench"}', "[1]", "{"])
def test_files_without_class_names_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"class names .*names: expected lines such as"):
        read_class_names(path)


def test_an_unknown_class_is_named(tmp_path: Path, names: Path) -> None:
    """Also what happens when the folder above the classes is given."""
    source = _source("folders", tmp_path)
    (source / "val").mkdir()
    (source / "val" / "x.JPEG").write_bytes(image(1))
    with pytest.raises(ValueError, match=r"class 'val' has no name in .*LOC_synset_mapping"):
        list(imagenet_items(source, names))


def test_sources_without_classes_are_refused(tmp_path: Path, names: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder or tar"):
        list(imagenet_items(tmp_path / "gone", names))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither class folders with images nor class tars"):
        list(imagenet_items(tmp_path / "empty", names))


def test_bad_images_are_counted(
    tmp_path: Path, names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _source("folders", tmp_path)
    (source / "n01440764" / _name("n01440764", 0)).write_bytes(b"rubbish")
    command = ["from-imagenet", str(source), "--names", str(names), "--out", str(tmp_path / "out")]
    assert main_shards(command) == 0
    printed = capsys.readouterr().out
    assert "1 shards, 20 samples of 21 inputs" in printed
    assert f"skipped 1: broken-image, first {source}/n01440764/n01440764_0.JPEG" in printed
    assert f"for the config: '{tmp_path}/out/train-{{000000..000000}}.tar'" in printed


def test_names_by_number_need_all_classes(tmp_path: Path) -> None:
    """The number of a class is known from its place among all of them alone."""
    source, numbered = _source("folders", tmp_path), tmp_path / "names.txt"
    words = [name for name, *_ in CLASSES.values()]
    lines = [f"{number}: {name}\n" for number, name in enumerate(words)]
    numbered.write_text("".join(lines))
    (source / "lost+found").mkdir()
    found = {item.load()[0]["txt"] for item in imagenet_items(source, numbered)}
    assert found == set(words)
    numbered.write_text("".join([*lines, f"{len(words)}: one more\n"]))
    with pytest.raises(
        ValueError, match=rf"numbers {len(words) + 1} classes, but {len(words)} have"
    ):
        list(imagenet_items(source, numbered))


def test_tars_beside_folders(tmp_path: Path, names: Path) -> None:
    """Another folder does not hide them; a class that is there twice is refused."""
    source = _source("class tars", tmp_path)
    (source / "lost+found").mkdir()
    assert len(list(imagenet_items(source, names))) == PER_CLASS * len(CLASSES)
    wnid = next(iter(CLASSES))
    (source / wnid).mkdir()
    (source / wnid / "a.jpg").write_bytes(image(1))
    with pytest.raises(ValueError, match=f"class {wnid} is there as a folder and as a tar"):
        list(imagenet_items(source, names))


def test_other_names_for_the_same_images_are_refused(tmp_path: Path, names: Path) -> None:
    command = ["from-imagenet", str(_source("folders", tmp_path)), "--names", str(names)]
    assert main_shards([*command, "--out", f"{tmp_path}/out"]) == 0
    names.write_text(names.read_text() + "n99999999 another\n")
    with pytest.raises(ValueError, match=r"with other settings, names_sha256 \w{8}…, not \w{8}"):
        main_shards([*command, "--out", f"{tmp_path}/out"])

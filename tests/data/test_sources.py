"""Samples of every kind; and what cannot be used is skipped with its reason, never replaced."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from showo_data import BadSamples, FlowSpec, Sample, Skipped, Source, vq_transform
from showo_data.members import CODES, CONDITION, FEATURES, Fit
from showo_data.shards import files, load_index, write_shard


def _png(colour: str = "red", side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


def _npy(values: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values, **options))
    return stream.getvalue()


def _only(folder: Path, kind: Any, members: dict[str, Any], **options: Any) -> Sample | Skipped:
    """The single sample of a shard that holds ``members``."""
    shard = folder / "a.tar"
    write_shard(shard, [{"__key__": "key", **members}])
    options = {"transform": vq_transform(8), **options}
    return Source(FlowSpec(flow="f", kind=kind, urls=(str(shard),), batch=1, **options))[0]


CHAT = [
    {"from": "human", "value": "<image>\nwhat?"},
    {"from": "gpt", "value": "that"},
    {"from": "human", "value": "why?"},
    {"from": "gpt", "value": "so"},
]


@pytest.mark.parametrize("image", ["png", "jpg", "jpeg", "webp", "PNG"])
@pytest.mark.parametrize("text", ["txt", "text", "caption"])
def test_caption(tmp_path: Path, image: str, text: str) -> None:
    sample = _only(tmp_path, "caption", {image: _png(), text: "ein Kreis é".encode()})
    assert isinstance(sample, Sample)
    assert (sample.flow, sample.position, sample.key, sample.text) == ("f", 0, "key", "ein Kreis é")
    assert sample.image_3HW is not None and sample.image_3HW.shape == (3, 8, 8)
    assert sample.conversation is None and sample.codes_N is None


def test_caption_from_json(tmp_path: Path) -> None:
    sample = _only(tmp_path, "caption", {"png": _png(), "json": {"caption": "words"}})
    assert isinstance(sample, Sample) and sample.text == "words"


def test_one_of_several_captions_is_drawn_by_the_position(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": "key", "png": _png(), "json": {"captions": ["a", "b", "c"]}}])

    def drawn(seed: int) -> list[str | None]:
        source = Source(
            FlowSpec(
                flow="f",
                kind="caption",
                urls=(str(shard),),
                batch=1,
                seed=seed,
                transform=vq_transform(8),
            )
        )
        return [
            item.text for item in map(source.__getitem__, range(90)) if isinstance(item, Sample)
        ]

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(18 <= drawn(0).count(text) <= 42 for text in "abc"), (
        "a third each, within 2.7 deviations"
    )


def test_conversation(tmp_path: Path) -> None:
    sample = _only(tmp_path, "conversation", {"png": _png(), "json": {"conversations": CHAT}})
    assert isinstance(sample, Sample)
    assert sample.conversation == [(turn["from"], turn["value"]) for turn in CHAT]
    assert sample.image_3HW is not None and sample.text is None


def test_text_needs_no_image(tmp_path: Path) -> None:
    sample = _only(tmp_path, "text", {"txt": b"words"}, transform=None)
    assert isinstance(sample, Sample) and sample.text == "words" and sample.image_3HW is None


def test_codes_replace_the_image(tmp_path: Path) -> None:
    members = {
        "png": b"never decoded",
        "codes.npy": _npy([[1, 2], [3, 4]], dtype=np.uint16),
        "condition.npy": _npy([7, 8], dtype=np.int32),
    }
    sample = _only(tmp_path, "image", members, transform=None, encoded=(CODES, CONDITION))
    assert isinstance(sample, Sample) and sample.image_3HW is None
    assert sample.codes_N is not None and sample.condition_codes_G is not None
    assert sample.codes_N.dtype == torch.int64
    assert sample.codes_N.tolist() == [1, 2, 3, 4]
    assert sample.condition_codes_G.tolist() == [7, 8]


def test_features_replace_the_image(tmp_path: Path) -> None:
    stored = np.arange(6, dtype=np.float16).reshape(3, 2) / 8
    members = {
        "png": b"never decoded",
        "features.npy": _npy(stored),
        "json": {"conversations": CHAT},
    }
    sample = _only(tmp_path, "conversation", members, encoded=(FEATURES,))
    assert isinstance(sample, Sample) and sample.image_3HW is None and sample.codes_N is None
    assert sample.features_SC is not None and sample.features_SC.dtype == torch.float32
    assert np.array_equal(sample.features_SC.numpy(), stored)


def test_the_image_is_read_where_not_all_of_it_was_encoded(tmp_path: Path) -> None:
    members = {"png": _png(), "codes.npy": _npy([1, 2])}
    sample = _only(tmp_path, "image", members, encoded=(CODES, FEATURES))
    assert isinstance(sample, Sample)
    assert sample.codes_N is not None and sample.image_3HW is not None
    assert sample.features_SC is None


BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "no-image": ("caption", {"txt": b"a"}),
    "broken-image": ("image", {"png": b"not an image"}),
    "no-text": ("text", {"png": _png()}),
    "not-utf8": ("text", {"txt": b"\xff\xfe\xfd"}),
    "broken-json": ("conversation", {"png": _png(), "json": b"{"}),
    "no-conversation": ("conversation", {"png": _png(), "json": {"conversations": []}}),
    "malformed-conversation": ("conversation", {"png": _png(), "json": {"conversations": ["hi"]}}),
    "conversation-without-human-first": (
        "conversation",
        {"png": _png(), "json": {"conversations": CHAT[1:]}},
    ),
    "broken-codes": ("image", {"codes.npy": _npy([object()], dtype=object)}),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_samples_are_skipped_with_their_reason(tmp_path: Path, reason: str) -> None:
    kind, members = BAD[reason]
    skipped = _only(tmp_path, kind, members)
    assert skipped == Skipped("f", 0, str(tmp_path / "a.tar"), "key", reason)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"codes.npy": _npy([1])}, "no-features"),
        ({"features.npy": _npy([[0.5]])}, "no-codes"),
        ({}, "no-image"),
        ({"codes.npy": _npy([1]), "features.npy": _npy([0.5])}, "broken-features"),
        ({"codes.npy": _npy([1]), "features.npy": _npy([[1]])}, "broken-features"),
        ({"codes.npy": _npy([1]), "features.npy": _npy([[0.5]])[:-1]}, "broken-features"),
    ],
)
def test_what_an_encoded_sample_lacks(
    tmp_path: Path, members: dict[str, bytes], reason: str
) -> None:
    members = {"txt": b"words", **members}
    skipped = _only(tmp_path, "caption", members, encoded=(CODES, FEATURES))
    assert skipped == Skipped("f", 0, str(tmp_path / "a.tar"), "key", reason)


@pytest.mark.parametrize(
    ("kind", "members", "reason"),
    [
        ("image", {"png": _png()[:-30]}, "broken-image"),
        ("image", {"png": b""}, "no-image"),
        ("text", {"json": {"caption": 3}}, "no-text"),
        ("text", {"json": b"[1]"}, "broken-json"),
        ("text", {"json": b'"\xff"'}, "not-utf8"),
        ("conversation", {"png": _png()}, "no-conversation"),
        (
            "conversation",
            {"png": _png(), "json": {"conversations": [{"from": "human", "value": 3}]}},
            "malformed-conversation",
        ),
        (
            "conversation",
            {"png": _png(), "json": {"conversations": [CHAT[0], CHAT[2], CHAT[1]]}},
            "malformed-conversation",
        ),
        ("text", {"json": {"captions": []}}, "no-text"),
        ("text", {"json": {"captions": ["a", 3]}}, "no-text"),
        ("image", {"codes.npy": _npy([0.5])}, "broken-codes"),
        ("image", {"codes.npy": b""}, "broken-codes"),
    ],
)
def test_more_ways_to_be_bad(tmp_path: Path, kind: str, members: Any, reason: str) -> None:
    skipped = _only(tmp_path, kind, members)
    assert isinstance(skipped, Skipped) and skipped.reason == reason


def test_a_image_of_too_many_pixels_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 255)
    skipped = _only(tmp_path, "image", {"png": _png(side=16)})
    assert isinstance(skipped, Skipped) and skipped.reason == "image-too-large"


def test_a_line_that_would_grow_too_large_is_skipped(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (20_000, 1)).save(stream, "PNG")
    members = {"png": stream.getvalue()}
    skipped = _only(tmp_path, "image", members, transform=vq_transform(512))
    assert isinstance(skipped, Skipped) and skipped.reason == "image-too-large"


def test_codes_with_a_pickle_inside_are_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    skipped = _only(tmp_path, "image", {"codes.npy": _npy([Trap()], dtype=object)})
    assert isinstance(skipped, Skipped) and skipped.reason == "broken-codes"
    assert not (tmp_path / "executed").exists()


def _text_source(shard: Path) -> Source:
    return Source(FlowSpec(flow="f", kind="text", urls=(str(shard),), batch=1, streams=1, window=1))


def test_a_member_stored_twice_is_skipped(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("a.txt", "b.txt", "a.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            tar.addfile(entry, io.BytesIO(b"x"))
    source = _text_source(shard)
    reasons = {item.reason for item in (source[0], source[1]) if isinstance(item, Skipped)}
    assert reasons == {"duplicate-member"}
    assert sum(isinstance(item, Sample) for item in (source[0], source[1])) == 1


def test_a_shard_truncated_during_a_run(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": f"{i}", "txt": b"x" * 600} for i in range(4)])
    source = _text_source(shard)
    with shard.open("r+b") as stream:
        stream.truncate(3 * 512 + 700)
    items = [source[p] for p in range(4)]
    assert {item.reason for item in items if isinstance(item, Skipped)} == {"changed-shard"}
    assert not any(isinstance(item, Sample) for item in items)


def test_an_open_shard_truncated_during_a_run(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": f"{i}", "txt": b"x" * 600} for i in range(4)])
    source = _text_source(shard)
    assert isinstance(source[0], Sample)
    with shard.open("r+b") as stream:
        stream.truncate(3 * 512 + 700)
    items = [source[p] for p in range(4)]
    assert [isinstance(item, Sample) for item in items].count(True) == 1
    reasons = {item.reason for item in items if isinstance(item, Skipped)}
    assert reasons == {"truncated"}


def test_a_shard_deleted_during_a_run(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": "a", "txt": b"x"}])
    source = _text_source(shard)
    shard.unlink()
    skipped = source[0]
    assert isinstance(skipped, Skipped) and skipped.reason == "unreadable-shard"


def test_images_without_a_transform_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"flow 'f' needs a transform: .*a\.tar' holds images"):
        _only(tmp_path, "image", {"png": _png()}, transform=None)


def test_empty_shards_are_refused(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "a.tar", "w").close()
    with pytest.raises(ValueError, match=r"flow 'f': the shards .* hold no samples"):
        _text_source(tmp_path / "a.tar")


@pytest.mark.parametrize("options", [{"kind": "video"}, {"batch": 0}])
def test_impossible_flows_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"flow 'f': (kind|batch) must be"):
        FlowSpec(**{"flow": "f", "kind": "text", "urls": (), "batch": 1, **options})


def test_every_sample_of_the_mini_world_is_good(mini: Path) -> None:
    urls = (f"{mini}/train-{{000000..000002}}.tar",)
    for kind in ("caption", "conversation", "image"):
        source = Source(
            FlowSpec(flow="f", kind=kind, urls=urls, batch=1, transform=vq_transform(64))  # type: ignore[arg-type]
        )
        items = [source[p] for p in range(len(source))]
        assert len(items) == sum(header.samples for header in load_index(urls)) == 50
        assert all(isinstance(item, Sample) for item in items)
        assert len({item.key for item in items}) == 50


def test_the_summary_names_reasons_and_worst_shards() -> None:
    bad = BadSamples()
    assert bad.summary() == "no sample was skipped"
    bad.add([Skipped("f", p, "x.tar", "k", "no-text") for p in range(3)])
    bad.add([Skipped("f", 9, "y.tar", "k", reason) for reason in ("no-text", "broken-json")])
    assert (bad.total, bad.by_reason()) == (5, {"no-text": 4, "broken-json": 1})
    assert bad.summary() == (
        "5 samples skipped: no-text 4, broken-json 1; most in x.tar 3, y.tar 2"
    )


def test_json_that_is_no_text_is_kept_apart(tmp_path: Path) -> None:
    """Objects of the mini world beside the conversation do not disturb it."""
    members = {"png": _png(), "json": json.dumps({"conversations": CHAT, "objects": [1]}).encode()}
    assert isinstance(_only(tmp_path, "conversation", members), Sample)


def _several(count: int, **others: Any) -> dict[str, Any]:
    colours = ("red", "green", "blue", "white")
    return {f"{number}.png": _png(colours[number]) for number in range(count)} | others


def _asked(question: str) -> dict[str, Any]:
    turns = [("human", question), ("gpt", "that")]
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


DOCUMENT = {"texts": ["", "a", None, "b", "c", None, None, "d"]}


@pytest.mark.parametrize(
    "content", [_asked("<image>a <image> or <image>?"), DOCUMENT], ids=["rounds", "document"]
)
def test_numbered_images(tmp_path: Path, content: dict[str, Any]) -> None:
    sample = _only(tmp_path, "conversation", _several(3, json=content), max_images=3)
    assert isinstance(sample, Sample) and sample.numbered and sample.image_3HW is None
    assert sample.images_M3HW is not None and sample.images_M3HW.shape == (3, 3, 8, 8)
    transform = vq_transform(8)
    for number, colour in enumerate(("red", "green", "blue")):
        wanted = transform(Image.new("RGB", (16, 16), colour))
        assert torch.equal(sample.images_M3HW[number], wanted)
    if content is DOCUMENT:
        assert sample.document == ["a", None, "b\n\nc", None, None, "d"]
        assert sample.conversation is None
    else:
        assert sample.document is None
        assert sample.conversation == [("human", "<image>a <image> or <image>?"), ("gpt", "that")]


@pytest.mark.parametrize("keeps_images", [False, True])
def test_encoded_members_replace_all_numbered_images_or_none(
    tmp_path: Path, keeps_images: bool
) -> None:
    codes = {f"{number}.codes.npy": _npy(np.full(4, number)) for number in range(2)}
    images = _several(2) if keeps_images else {}
    members = {**codes, **images, "json": _asked("<image> <image>")}
    sample = _only(tmp_path, "conversation", members, max_images=2)
    assert isinstance(sample, Sample) and sample.images_M3HW is None
    assert sample.codes_MN is not None and sample.codes_MN.tolist() == [[0] * 4, [1] * 4]
    del members["1.codes.npy"]
    (tmp_path / "b").mkdir()
    sample = _only(tmp_path / "b", "conversation", members, max_images=2)
    if keeps_images:
        assert isinstance(sample, Sample) and sample.codes_MN is None
        assert sample.images_M3HW is not None and len(sample.images_M3HW) == 2
    else:
        assert isinstance(sample, Skipped) and sample.reason == "marker-without-image"


THREE = _asked("<image><image><image>")
NUMBERED_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("marker-without-image", _several(2, json=THREE)),
    ("marker-without-image", {"png": _png(), "json": _asked("<image> or <image>?")}),
    ("image-without-marker", _several(4, json=THREE)),
    ("image-without-marker", _several(1, json=_asked("none"))),
    ("no-image", {k: v for k, v in _several(3, json=THREE).items() if k != "1.png"}),
    ("no-image", {k: v for k, v in _several(3, json=THREE).items() if k != "0.png"}),
    ("marker-without-image", _several(3, json=THREE) | {"2.png": b""}),
    ("broken-image", _several(3, json=THREE) | {"1.png": b"rubbish"}),
    ("too-many-images", _several(4, json=_asked("<image>" * 4))),
    ("too-many-images", _several(3, json={"texts": ["a", *[None] * 9_999]})),
    ("marker-without-image", _several(1, json={"texts": ["a", None, None]})),
    ("malformed-document", _several(1, json={"texts": [None, 3]})),
    ("malformed-document", _several(1, json={"texts": {"a": None}})),
    ("no-text", _several(1, json={"texts": [None, " \n"]})),
    ("not-utf8", _several(1, json={"texts": [None, "\ud800"]})),
    ("no-conversation", _several(1)),
    ("broken-json", _several(1, json=b"{")),
    ("broken-codes", {"0.codes.npy": b"no array", "json": _asked("<image>")}),
    ("no-codes", {"0.codes.npy": _npy([1]), "1.png": _png(), "json": _asked("<image><image>")}),
]


@pytest.mark.parametrize(("reason", "members"), NUMBERED_FAULTS)
def test_numbered_images_that_cannot_be_used(
    tmp_path: Path, reason: str, members: dict[str, Any]
) -> None:
    found = _only(tmp_path, "conversation", members, max_images=3)
    assert isinstance(found, Skipped) and found.reason == reason, found
    if reason == "too-many-images":
        assert "dataset.max_images" in found.detail


def test_a_misfit_of_numbered_codes_is_found_at_the_start(tmp_path: Path) -> None:
    members = {"0.codes.npy": _npy([1, 2, 3]), "json": _asked("<image>")}
    with pytest.raises(ValueError, match=r"codes\.npy has 3 codes, expected 4 codes"):
        _only(tmp_path, "conversation", members, fits={CODES: Fit((4,), 9)})


def test_all_shards_that_the_streams_read_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the index of a shard would be read again for every sample."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (65536, 65536))
    urls = tuple(str(tmp_path / f"{number}.tar") for number in range(80))
    for url in urls:
        write_shard(url, [{"__key__": f"k{i}", "txt": "x"} for i in range(5)])
    spec = FlowSpec(flow="f", kind="text", urls=urls, batch=1, streams=80, window=1)
    source, read = Source(spec), []
    load = files.load_indexed
    monkeypatch.setattr(files, "load_indexed", lambda *a: read.append(a[0]) or load(*a))
    assert all(isinstance(source[p], Sample) for p in range(400))
    assert len(read) == 80

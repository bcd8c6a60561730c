"""Blank texts, and texts that no tokenizer can read, are skipped; a good one beside them is used."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showo_data import FlowSpec, Sample, Skipped, Source, vq_transform
from showo_data.captions import ExternalCaptions, short_or_long
from showo_data.shards import write_shard


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def _read(folder: Path, kind: Any, members: dict[str, Any], **options: Any) -> Sample | Skipped:
    """The only sample of a shard."""
    write_shard(folder / "a.tar", [{"__key__": "key", "png": _png(), **members}])
    urls = (str(folder / "a.tar"),)
    return Source(
        FlowSpec(flow="f", kind=kind, urls=urls, batch=1, transform=vq_transform(8), **options)
    )[0]


BLANK = ["", " ", "\n\t \r\n", "\u00a0\u3000", "\ufeff", "\u200b", "\0"]


@pytest.mark.parametrize("kind", ["caption", "text"])
@pytest.mark.parametrize("blank", BLANK, ids=ascii)
@pytest.mark.parametrize("place", ["txt", "caption", "captions", "one of captions"])
def test_a_blank_text_is_no_text(tmp_path: Path, kind: str, blank: str, place: str) -> None:
    members: dict[str, Any] = {
        "txt": {"txt": blank.encode()},
        "caption": {"json": {"caption": blank}},
        "captions": {"json": {"captions": blank}},
        "one of captions": {"json": {"captions": [blank, blank]}},
    }[place]
    item = _read(tmp_path, kind, members)
    assert isinstance(item, Skipped) and item.reason == "no-text"


@pytest.mark.parametrize("kind", ["caption", "text"])
@pytest.mark.parametrize(
    "members",
    [
        {"json": {"captions": None, "caption": "good"}},
        {"json": {"captions": [], "caption": "good"}},
        {"json": {"captions": "", "caption": "good"}},
        {"json": {"captions": [" ", ""], "caption": "good"}},
        {"json": {"captions": ["", "good", "\n"]}},
        {"txt": b"", "json": {"caption": "good"}},
        {"txt": b" \n", "json": {"captions": ["good"]}},
        {"txt": b"", "text": b" ", "caption": b"good"},
        {"txt": b"\xef\xbb\xbfgood"},
        {"json": b"\xef\xbb\xbf" + json.dumps({"caption": "good"}).encode()},
    ],
    ids=str,
)
def test_the_good_text_beside_a_blank_one_is_used(
    tmp_path: Path, kind: str, members: dict[str, Any]
) -> None:
    for seed in range(5):
        item = _read(tmp_path, kind, members, seed=seed)
        assert isinstance(item, Sample) and item.text == "good"


def test_blank_captions_outside_the_shard(tmp_path: Path) -> None:
    (tmp_path / "key-SA1B.txt").write_text(" \u3000\nsecond line")
    write_shard(tmp_path / "a.tar", [{"__key__": "key-SA1B", "png": _png(), "txt": b"its own"}])
    spec = FlowSpec(
        flow="f",
        kind="caption",
        urls=(str(tmp_path / "a.tar"),),
        batch=1,
        transform=vq_transform(8),
        captions=ExternalCaptions(sa1b=str(tmp_path), variants=True),
    )
    item = Source(spec)[0]
    assert isinstance(item, Skipped) and item.reason == "no-caption"
    assert short_or_long("In the image,  . It is red.") == (" . It is red.",)


SURROGATES = ["\ud800", "a \udfff b", "\udc80" * 3]


@pytest.mark.parametrize("half", SURROGATES, ids=ascii)
def test_half_of_a_surrogate_pair_is_not_utf8(tmp_path: Path, half: str) -> None:
    chats = [[("human", half), ("gpt", "b")], [("human", "a"), ("gpt", half)]]
    cases: list[tuple[str, object]] = [
        ("text", {"caption": half}),
        ("caption", {"captions": ["a", half]}),
        *(
            ("conversation", {"conversations": [{"from": r, "value": v} for r, v in chat]})
            for chat in chats
        ),
    ]
    for kind, content in cases:
        item = _read(tmp_path, kind, {"json": json.dumps(content).encode()})
        assert isinstance(item, Skipped) and item.reason == "not-utf8"


def _chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"json": {"conversations": [{"from": role, "value": value} for role, value in turns]}}


def test_conversations_without_an_answer_that_says_anything(tmp_path: Path) -> None:
    for answers in ([("gpt", " \n")], []):
        silent = _read(tmp_path, "conversation", _chat(("human", "a?"), *answers))
        assert isinstance(silent, Skipped) and silent.reason == "no-conversation"
    half = _chat(("human", "a?"), ("gpt", ""), ("human", "b?"), ("gpt", "b"))
    assert isinstance(_read(tmp_path, "conversation", half), Sample)


def test_questions_of_users_are_questions(tmp_path: Path) -> None:
    item = _read(tmp_path, "conversation", _chat(("user", "a?"), ("assistant", "a")))
    assert isinstance(item, Sample)
    assert item.conversation == [("user", "a?"), ("assistant", "a")]
    twice = _read(tmp_path, "conversation", _chat(("user", "a?"), ("human", "b?"), ("gpt", "b")))
    assert isinstance(twice, Skipped) and twice.reason == "malformed-conversation"


@pytest.mark.parametrize("members", [{"txt": b" a cat\r\n"}, {"json": {"captions": ["a cat\n"]}}])
def test_a_caption_has_no_space_around_it_and_a_document_keeps_it(
    tmp_path: Path, members: dict[str, Any]
) -> None:
    """A caption file ends in a line feed, which would be trained on."""
    images = {"source.png": _png(), "target.png": _png()}
    for kind in ("caption", "edit"):
        item = _read(tmp_path, kind, members | images, encoded=())
        assert isinstance(item, Sample) and item.text == "a cat"
    item = _read(tmp_path, "text", members)
    assert isinstance(item, Sample) and item.text in (" a cat\r\n", "a cat\n")

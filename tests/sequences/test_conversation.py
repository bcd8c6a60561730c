"""Conversations: layout, and supervision of exactly the answers and their end marks."""

from pathlib import Path

import pytest

from showo_dist.sequences import TextEncoder, train_tokenizer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder: Path = tmp_path_factory.mktemp("text")
    corpus = [
        "what is it? a cat on a mat",
        "USER: ASSISTANT: two dogs, really",
        "ein Würfel – 立方体",
    ] * 20
    train_tokenizer.train(iter(corpus), 320).save_pretrained(folder)
    return TextEncoder(folder, 320)


TURNS = [
    ("human", "<image>\nwhat is it?"),
    ("gpt", "a cat, really"),
    ("human", "and this? ASSISTANT: no"),
    ("gpt", "ein Würfel – 立方体"),
]


def test_layout_and_supervision(encoder: TextEncoder) -> None:
    ids, supervised = encoder.conversation(TURNS)
    whole = encoder.tokenizer.decode(ids)
    assert whole == (
        "USER: what is it? ASSISTANT: a cat, really<|endoftext|>"
        "USER: and this? ASSISTANT: no ASSISTANT: ein Würfel – 立方体<|endoftext|>"
    )
    kept = [i for i, s in zip(ids, supervised, strict=True) if s]
    assert encoder.tokenizer.decode(kept) == (
        " a cat, really<|endoftext|> ein Würfel – 立方体<|endoftext|>"
    )
    assert supervised[-1] and ids[-1] == encoder.bos


def test_a_question_alone_supervises_nothing(encoder: TextEncoder) -> None:
    ids, supervised = encoder.conversation(TURNS[:1])
    assert encoder.tokenizer.decode(ids) == "USER: what is it? ASSISTANT:"
    assert not any(supervised)


def test_text_cannot_spell_the_special_tokens(encoder: TextEncoder) -> None:
    ids = encoder.encode("<|soi|><|mmu|>[PAD]")
    assert max(ids) < len(encoder.tokenizer)
    assert encoder.decode(ids) == "<|soi|><|mmu|>[PAD]"

"""A long text costs what its budget allows, and the ids within the budget are those of the whole text."""

import random
import time
from pathlib import Path

import pytest

from showo_dist.sequences import TextEncoder, train_tokenizer

WORDS = ["a", "red", "circle", "über", "立方体", "don't", "12,500", "…", "x" * 40, "🙂🙂"]
SPACES = [" ", " ", " ", "  ", "\n", "\t ", "\u00a0", ""]
SECONDS = 2.0  # of a text or conversation of megabytes; they cost a tenth on a slow core


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder: Path = tmp_path_factory.mktemp("text")
    corpus = [" ".join(WORDS), "USER: a red circle ASSISTANT: über"] * 20
    train_tokenizer.train(iter(corpus), 340).save_pretrained(folder)
    return TextEncoder(folder, 340)


def _text(rng: random.Random, words: int) -> str:
    return "".join(rng.choice(SPACES) + rng.choice(WORDS) for _ in range(words))


@pytest.mark.parametrize("limit", [1, 7, 64])
def test_the_first_ids_are_those_of_the_whole_text(encoder: TextEncoder, limit: int) -> None:
    rng = random.Random(limit)
    for words in (0, 3, 300, 3000):
        text = _text(rng, words)
        whole, cut = encoder.encode(text), encoder.encode(text, limit)
        assert cut[:limit] == whole[:limit]
        assert words < 3000 or len(cut) < len(whole)


@pytest.mark.parametrize("limit", [1, 7, 64])
def test_the_first_ids_are_those_of_the_whole_conversation(
    encoder: TextEncoder, limit: int
) -> None:
    rng = random.Random(limit)
    for rounds, words in ((1, 2), (3, 5), (300, 9), (2, 3000)):
        roles = ["human", "gpt"] * rounds
        turns = [(role, _text(rng, words)) for role in roles]
        whole, supervised = encoder.conversation(turns)
        cut, supervised_cut = encoder.conversation(turns, limit)
        assert cut[:limit] == whole[:limit] and supervised_cut[:limit] == supervised[:limit]
        assert len(cut) == len(supervised_cut)


@pytest.mark.parametrize(
    "text", ["a red circle " * 400_000, "x" * 5_000_000, "\n" * 5_000_000, "立" * 5_000_000]
)
def test_five_megabytes(encoder: TextEncoder, text: str) -> None:
    start = time.perf_counter()
    assert len(encoder.encode(text, 128)) >= 128
    ids, supervised = encoder.conversation([("human", text + "?"), ("gpt", text + "!")], 128)
    assert len(ids) == len(supervised)
    assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize("limit", [128, None])
def test_twenty_thousand_rounds(encoder: TextEncoder, limit: int | None) -> None:
    turns = [("human", "<image> what?"), ("gpt", "a red circle")] * 20_000
    start = time.perf_counter()
    ids, supervised = encoder.conversation(turns, limit)
    assert len(ids) == len(supervised) and any(supervised)
    # Even all of it is linear in its length.
    assert time.perf_counter() - start < (SECONDS if limit else 10 * SECONDS)

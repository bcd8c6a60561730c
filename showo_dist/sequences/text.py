"""Encode captions, prompts and conversations as token ids, and mark the answers to supervise."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from showo_dist.sequences.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"
# The one system prompt of the CLIP tuning phase (docs/specification.md, section 7).
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_MARKER = "<image>"
HUMAN = (
    "human",
    "user",
)  # roles that ask; not imported, so that kernels' benchmarks need no data package
# A break between two words, where every tokenizer of ours begins a new token.
_BREAK = re.compile(r"(?<=\S)(?= \S)")


# Noncharacters of Unicode, which texts do not contain: around answers, and in the place of an image.
_MARKS = _START, _STOP, IMAGE_PLACE = "\ufdd0", "\ufdd1", "\ufdd2"
# Llama 3's templates name a day, this one where there is no clock; the same conversation must give the same
# ids on every day.
_DAY = "26 Jul 2024"

# Role, "user" or "assistant", and text, with IMAGE_PLACE for each image.
Message = tuple[str, str]
# Ranges of characters of a text.
Ranges = list[tuple[int, int]]


class Words(NamedTuple):
    """Ids of a text, and for each of them, whether training predicts it."""

    ids: list[int]
    supervised: list[bool]

    def cut(self, limit: int) -> "Words":
        """The first ``limit`` ids."""
        return Words(self.ids[:limit], self.supervised[:limit])


def llava_question(text: str) -> str:
    """Wrap a question as LLaVA conversations do (docs/specification.md, section 7)."""
    return f"USER: {text} ASSISTANT:"


def question_prompt(question: str) -> str:
    """Wrap a question as the model expects it (docs/specification.md, section 9)."""
    return f"USER: \n{question} ASSISTANT:"


class ChatTemplate:
    """A tokenizer's chat template.

    Answers are found by marks around them while the template renders: templates change earlier turns (Qwen3
    drops empty thoughts), so that the text up to an answer need not be the beginning of the whole, and few
    templates have the tags that transformers' own mask of answers needs.

    Args:
        tokenizer: with a template.
        path: of the tokenizer, for messages.

    Attributes:
        end: id of the token that the template puts behind an answer.

    Raises:
        ValueError: there is no template, it cannot be rendered or depends on the day, an answer does not
            follow its generation prompt, or no token of its own ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
        self._tokenizer, self._path = tokenizer, path
        if not tokenizer.chat_template:
            raise self._refused("it has none")
        template = tokenizer.get_chat_template()
        if "strftime_now" in template and "date_string" not in template:
            raise self._refused("its text depends on the day")
        question: list[Message] = [("user", "a question")]
        prompt = self._render(question, asks=True)
        whole = self._render([*question, ("assistant", f"{_START}an answer{_STOP}")])
        before, *_, after = self._split(whole, answers=1)
        self._lead = before.removeprefix(prompt)
        if not before.startswith(prompt) or self._lead.strip():
            raise self._refused("an answer does not follow its generation prompt")
        self.end, self._closing = self._closed_by(after)

    def render(self, messages: Sequence[Message]) -> tuple[str, Ranges]:
        """Render messages; the text ends where an answer begins if the last one is the user's.

        Images at the beginning of the first message come before the text, as in training.

        Returns:
            The text, and for each answer its range of characters, its end token included.

        Raises:
            ValueError: the template fails, or does not give an answer as it is.
        """
        marked = [
            (role, f"{_START}{words}{_STOP}" if role == "assistant" else words)
            for role, words in messages
        ]
        (role, first), *rest = marked
        text, first = _leading(first)
        answers = sum(role == "assistant" for role, _ in messages)
        whole = self._render([(role, first), *rest], messages[-1][0] == "user")
        pieces = self._split(whole, answers)
        ranges: Ranges = []
        for number, piece in enumerate(pieces):
            if number % 2:
                ahead, behind = pieces[number - 1], pieces[number + 1]
                if not (ahead.endswith(self._lead) and behind.startswith(self._closing)):
                    raise self._refused(f"it lays out this answer in another way: {piece[:80]!r}")
                stop = len(text) + len(piece) + len(self._closing)
                ranges.append((len(text) - len(self._lead), stop))
            text += piece
        return text, ranges

    def _render(self, messages: Sequence[Message], asks: bool = False) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": role, "content": words} for role, words in messages],
                    tokenize=False,
                    add_generation_prompt=asks,
                    enable_thinking=False,
                    date_string=_DAY,
                )
            )
        except Exception as error:  # a template is a program and may raise anything
            reason = " ".join(str(error).split())[:200]
            raise self._refused(f"{type(error).__name__}: {reason}") from error

    def _split(self, text: str, answers: int) -> list[str]:
        """Texts and answers in turn."""
        pieces = re.split(f"[{_START}{_STOP}]", text)
        if len(pieces) != 2 * answers + 1:
            raise self._refused(f"it does not give answers as they are: {text[-80:]!r}")
        return pieces

    def _closed_by(self, after: str) -> tuple[int, str]:
        """The token of the tokenizer's own behind an answer, and the text up to its end."""
        encoded = self._tokenizer(after, add_special_tokens=False, return_offsets_mapping=True)
        own = self._tokenizer.added_tokens_decoder
        for token, (start, stop) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if not after[start:stop].strip():
                continue
            if token not in own:
                break
            return token, after[:stop]
        raise self._refused("no token of its own ends an answer")

    def _refused(self, reason: str) -> ValueError:
        return ValueError(
            f"dataset.chat_template = true: not with the template of the tokenizer at {self._path}: {reason}"
        )


def plain(text: str) -> str:
    """The text without the characters that mark places in a template."""
    for mark in _MARKS:  # many times faster than str.translate
        text = text.replace(mark, "")
    return text


class TextEncoder:
    """The language model's text tokenizer.

    It does not know Show-o's special tokens, so a text that contains "<|soi|>" is encoded as plain characters
    and cannot break the layout of a sequence.

    Args:
        path: folder or hub id of a fast tokenizer with ``<|endoftext|>``, or with an eos token.
        text_vocabulary: number of text rows in the model's embedding table (``llm_vocab_size``).
        chat: lay out conversations by the tokenizer's chat template (``dataset.chat_template``).

    Attributes:
        template: the chat template if it is used, else None.
        end_of_text: the token behind a text and behind an answer: ``<|endoftext|>``, else the eos token.
        eos, bos: ids of it, and of the token before a text: the tokenizer's bos, or eos where it has none or
            has ``<|endoftext|>``.

    Raises:
        ValueError: the tokenizer cannot be read, has ids beyond the table's text rows, has neither
            ``<|endoftext|>`` nor an eos token, or its chat template cannot be used.
    """

    def __init__(self, path: str | Path, text_vocabulary: int, chat: bool = False) -> None:
        self.tokenizer = _load_tokenizer(str(path))
        known = self.tokenizer.get_vocab()
        tokens = max(known.values()) + 1  # ids may have gaps
        if tokens > text_vocabulary:
            raise ValueError(
                f"model.showo.llm_vocab_size = {text_vocabulary}: the tokenizer at {path} has "
                f"{tokens} tokens; set llm_vocab_size (and vocab_size) to fit"
            )
        # Show-o's one token for both ends, wherever a tokenizer has it: the language model was trained on it.
        own = END_OF_TEXT if END_OF_TEXT in known else self.tokenizer.eos_token
        if own not in known:
            raise ValueError(f"the tokenizer at {path} has no {END_OF_TEXT} token and no eos token")
        self.end_of_text = str(own)
        self.eos: int = known[own]
        start = own if own == END_OF_TEXT else self.tokenizer.bos_token
        self.bos: int = known.get(start, self.eos)
        self.template = ChatTemplate(self.tokenizer, path) if chat else None

    @property
    def end_of_answer(self) -> int:
        """Id of the token that ends an answer."""
        return self.template.end if self.template else self.eos

    def vocabulary(self, text_vocabulary: int, codebook: int) -> Vocabulary:
        """The id table of a model with this tokenizer; sizes as in :class:`Vocabulary`."""
        return Vocabulary(text_vocabulary, codebook, bos=self.bos, end=self.eos)

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))

    def encode(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of the text, without bos or eos.

        Args:
            text: any text without halves of surrogate pairs.
            limit: number of ids that the caller uses. The rest of a long text need not be encoded, so that
                its cost has a bound; the first ``limit`` ids are those of the whole text.
        """
        if limit is not None:
            text = _beginning(text, limit * self._longest)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; the tokenizer's special tokens are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def conversation(self, turns: Iterable[tuple[str, str]], limit: int | None = None) -> Words:
        """Encode a LLaVA conversation whose image comes before it, and mark its answers.

        Args:
            turns: alternating (role, value) pairs, starting with a human; ``<image>`` markers are removed.
            limit: as in :meth:`encode`.

        Returns:
            Ids of ``USER: q ASSISTANT: a<|endoftext|>…`` with the tokenizer's own end of text, or of the chat
            template's text; and for each id, whether it belongs to an answer or to the end mark after it.

        Raises:
            ValueError: the chat template cannot lay out the conversation.
        """
        unmarked = ((role, value.replace(IMAGE_MARKER, "")) for role, value in turns)
        # Several parts only where removing a marker joined the characters of another one.
        parts = self.around_images(unmarked, limit)
        return Words([i for p in parts for i in p.ids], [s for p in parts for s in p.supervised])

    def around_images(
        self, turns: Iterable[tuple[str, str]], limit: int | None = None
    ) -> list[Words]:
        """Encode the texts before, between and behind the images of a conversation, and mark its answers.

        Args:
            turns: as in :meth:`conversation`, with ``<image>`` where an image is.
            limit: as in :meth:`encode`, for all texts together; images behind it have no text behind them.

        Raises:
            ValueError: as :meth:`conversation`.
        """
        longest = None if limit is None else limit * self._longest
        if self.template:
            text, answers = self.template.render(_messages(turns, longest, behind=2))
        else:
            messages = _messages(turns, longest)
            text, answers = conversation_text(messages, llava_question, self.end_of_text)
        return [self._marked(*part) for part in split_at_images(text, answers)]

    def document(self, texts: Iterable[str | None], limit: int) -> list[Words]:
        """Encode the texts before, between and behind the images of a document, with bos and eos; all count.

        Args:
            texts: in order, None where an image is.
            limit: as in :meth:`encode`.
        """
        ids: list[list[int]] = [[]]
        started = False
        for text in texts:
            if text is None:
                ids.append([])
            elif words := text.strip():
                ids[-1] += ([] if started else [self.bos]) + self.encode(words, limit)
                started = True
        ids[-1].append(self.eos)
        return [Words(part, [True] * len(part)) for part in ids]

    def _marked(self, text: str, answers: Ranges) -> Words:
        """Encode a text as a whole, so that the ids where two turns meet are those of the whole.

        A token is supervised only if it lies inside an answer: one across the boundary is also part of the
        question.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in answers]
        supervised = []
        for start, end in encoded["offset_mapping"]:
            last = bisect_right(starts, start) - 1  # the last answer that begins before the token
            supervised.append(last >= 0 and end <= answers[last][1])
        return Words(encoded["input_ids"], supervised)


def _load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.showo.tokenizer_path = {path}: cannot load a tokenizer: {reason}"
        ) from None
    if not tokenizer.is_fast:
        raise ValueError(
            f"model.showo.tokenizer_path = {path}: a fast tokenizer (tokenizer.json) is needed"
        )
    return tokenizer


def _beginning(text: str, longest: int) -> str:
    """Cut a text at the first break between words behind ``longest`` characters, at twice that at most."""
    if len(text) <= 2 * longest:
        return text
    found = _BREAK.search(text, longest, 2 * longest)
    return text[: found.start() if found else 2 * longest]


def conversation_text(
    messages: Iterable[Message], question: Callable[[str], str], end: str
) -> tuple[str, Ranges]:
    """Join messages to one text; also return the character ranges of the answers with their end marks.

    Images at the beginning of a question come before all of its text.

    Args:
        messages: in order.
        question: puts the text around a question.
        end: follows each answer.
    """
    before, _, after = question("\0").partition("\0")
    text = ""
    answers = []
    for role, words in messages:
        if role == "user":
            images, words = _leading(words)
            text += f"{images}{before}{words}{after}"
        else:
            start = len(text)
            text += f" {words}{end}"
            answers.append((start, len(text)))
    return text, answers


def _leading(words: str) -> tuple[str, str]:
    """The images at the beginning of a text, and the rest."""
    rest = words.lstrip(IMAGE_PLACE)
    return words[: len(words) - len(rest)], rest


def split_at_images(text: str, answers: Ranges) -> list[tuple[str, Ranges]]:
    """The texts before, between and behind the images, each with the ranges of answers in it."""
    parts, start = [], 0
    for words in text.split(IMAGE_PLACE):
        stop = start + len(words)
        inside = [
            (max(first, start) - start, min(last, stop) - start)
            for first, last in answers
            if first < stop and last > start
        ]
        parts.append((words, inside))
        start = stop + 1
    return parts


def _messages(
    turns: Iterable[tuple[str, str]], longest: int | None, behind: int = 0
) -> list[Message]:
    """The turns as messages, up to ``behind`` turns behind ``longest`` characters.

    Chat templates lay out the last turns in their own way; a round behind leaves those within as they are.
    """
    messages: list[Message] = []
    length = beyond = 0
    for role, value in turns:
        # Each text loses its outer whitespace, as in generation.
        words = IMAGE_PLACE.join(plain(part).strip() for part in value.split(IMAGE_MARKER))
        if longest is not None:
            beyond += length > longest
            if beyond > behind:
                break
            words = _beginning(words, longest + words.count(IMAGE_PLACE))
        length += len(words) - words.count(IMAGE_PLACE) + 1  # 1: rounds of blank texts end, too
        messages.append(("user" if role in HUMAN else "assistant", words))
    return messages


def description_prompts() -> list[str]:
    """Prompts that ask for a description of an image, for captioning and RecA."""
    text = (files("showo_dist") / "data" / "description_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]

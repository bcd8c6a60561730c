"""Conversations laid out by a tokenizer's own chat template, with the places of their answers."""

import re
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

# Noncharacters of Unicode, which texts do not contain: around answers, and in the place of an image.
_START, _STOP, IMAGE_PLACE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = dict.fromkeys(map(ord, (_START, _STOP, IMAGE_PLACE)))
# Llama 3's templates name a day, this one where there is no clock; the same conversation must give the same
# ids on every day.
_DAY = "26 Jul 2024"

Message = tuple[str, str]  # role "user" or "assistant", and what it says


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

    def render(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Render messages; the text ends where an answer begins if the last one is the user's.

        Returns:
            The text, and for each answer its range of characters, its end token included.

        Raises:
            ValueError: the template fails, or does not give an answer as it is.
        """
        marked = [
            (role, f"{_START}{words}{_STOP}" if role == "assistant" else words)
            for role, words in messages
        ]
        answers = sum(role == "assistant" for role, _ in messages)
        pieces = self._split(self._render(marked, messages[-1][0] == "user"), answers)
        ranges: list[tuple[int, int]] = []
        text = ""
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
    return text.translate(_MARKS)

"""Text to ids: plain captions, prompts, and conversations with their supervised answers.

Ways to ask for a description of an image, for captioning and for RecA's reconstruction flow."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from showo_dist.sequences.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"
# The one system prompt of the CLIP tuning phase (docs/specification.md, section 7).
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_MARKER = "<image>"
_HUMAN = ("human", "user")


def question_prompt(question: str) -> str:
    """How a question is put to the model (docs/specification.md, section 9)."""
    return f"USER: \n{question} ASSISTANT:"


class TextEncoder:
    """The language model's tokenizer without Show-o's special tokens: text cannot spell them.

    Args:
        path: folder or hub id of a fast tokenizer with ``<|endoftext|>``.
        text_vocabulary: room for text tokens in the model's table (``llm_vocab_size``).

    Raises:
        ValueError: the tokenizer cannot be read, has more tokens than there is room for, or lacks
            ``<|endoftext|>``.
    """

    def __init__(self, path: str | Path, text_vocabulary: int) -> None:
        self.tokenizer = _load_tokenizer(str(path))
        if len(self.tokenizer) > text_vocabulary:
            raise ValueError(
                f"model.showo.llm_vocab_size = {text_vocabulary}: the tokenizer at {path} has "
                f"{len(self.tokenizer)} tokens; set llm_vocab_size (and vocab_size) to fit"
            )
        end: Any = self.tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        if end is None or self.tokenizer.convert_ids_to_tokens(end) != END_OF_TEXT:
            raise ValueError(f"the tokenizer at {path} has no {END_OF_TEXT} token")
        self.bos = int(end)

    def vocabulary(self, text_vocabulary: int, codebook: int) -> Vocabulary:
        return Vocabulary(text=text_vocabulary, codebook=codebook, bos=self.bos)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, nothing added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def conversation(self, turns: Iterable[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """A LLaVA conversation and which of its ids are answers.

        Args:
            turns: (role, value) pairs that alternate, a human first; ``<image>`` markers are removed.

        Returns:
            Ids of ``USER: q ASSISTANT: a<|endoftext|>…`` and, for each, whether it belongs to an answer
            or the end mark after it.
        """
        text, answers = _conversation_text(turns)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        supervised = [any(a <= start and end <= b for a, b in answers) for start, end in offsets]
        return encoded["input_ids"], supervised


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


def _conversation_text(turns: Iterable[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as one string and the character ranges of its answers, end marks included."""
    text = ""
    answers = []
    for role, value in turns:
        value = value.replace(IMAGE_MARKER, "").strip()
        if role in _HUMAN:
            text += f"USER: {value} ASSISTANT:"
        else:
            start = len(text)
            text += f" {value}{END_OF_TEXT}"
            answers.append((start, len(text)))
    return text, answers


def description_prompts() -> list[str]:
    """One prompt per line of the package's data file."""
    text = (files("showo_dist") / "data" / "description_prompts.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]

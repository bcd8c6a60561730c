"""Chat templates: the layout is the tokenizer's own, and answers with their end tokens are supervised."""

import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from showo_dist.sequences import TextEncoder

CHAT = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
WORDS = ["user assistant system what is it? a cat, really and this? two dogs ein Würfel – 立方体"]
# A system prompt of its own, and line breaks behind the end token.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# bos, blanks around an answer, and transformers' tags around it.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{% generation %} {{ m.content | trim }} {{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
# Empty thoughts before the last answer alone, and a prompt that begins them.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "inst": INST, "thinking": THINKING}
TURNS = [
    ("human", "<image>\nwhat is it?"),
    ("gpt", "a cat, really"),
    ("human", "and this? assistant"),
    ("gpt", " ein Würfel – 立方体\n"),
]


def saved(folder: Path, template: str | None) -> Path:
    """A byte-level tokenizer with this template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 8, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": CHAT})
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def encoder(folder: Path, template: str | None, chat: bool = True) -> TextEncoder:
    return TextEncoder(saved(folder, template), 400, chat)


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[r], "content": v.replace("<image>", "").strip()} for r, v in turns]


def theirs(text: TextEncoder, turns: list[tuple[str, str]], **options: Any) -> Any:
    return text.tokenizer.apply_chat_template(
        messages(turns), return_dict=True, enable_thinking=False, **options
    )


def supervised_text(text: TextEncoder, turns: list[tuple[str, str]]) -> str:
    ids, supervised = text.conversation(turns)
    return str(text.tokenizer.decode([i for i, s in zip(ids, supervised, strict=True) if s]))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("rounds", [1, 2])
def test_ids_are_the_templates(tmp_path: Path, name: str, rounds: int) -> None:
    text = encoder(tmp_path, TEMPLATES[name])
    turns = TURNS[: 2 * rounds]
    assert text.conversation(turns)[0] == theirs(text, turns)["input_ids"]
    ids, supervised = text.conversation(turns[:-1])
    assert ids == theirs(text, turns[:-1], add_generation_prompt=True)["input_ids"]
    assert sum(supervised) == sum(text.conversation(turns[:-2])[1] if rounds > 1 else [])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("chatml", "a cat, really<|im_end|>ein Würfel – 立方体<|im_end|>"),
        ("inst", " a cat, really </s> ein Würfel – 立方体 </s>"),
        ("thinking", "a cat, really<|im_end|>ein Würfel – 立方体<|im_end|>"),
    ],
)
def test_answers_and_their_ends_are_supervised(tmp_path: Path, name: str, wanted: str) -> None:
    text = encoder(tmp_path, TEMPLATES[name])
    assert supervised_text(text, TURNS) == wanted
    assert wanted.endswith(str(text.tokenizer.convert_ids_to_tokens(text.end_of_answer)))


def test_the_mask_of_a_template_with_tags(tmp_path: Path) -> None:
    """The same tokens as transformers' mask, where the template's tags reach as far as the end token."""
    text = encoder(tmp_path, INST)
    mask = theirs(text, TURNS, return_assistant_tokens_mask=True)["assistant_masks"]
    assert list(map(int, text.conversation(TURNS)[1])) == list(mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_is_the_beginning_of_its_answer(tmp_path: Path, name: str) -> None:
    """Inference reads what training showed before the answer."""
    text = encoder(tmp_path, TEMPLATES[name])
    for turns in (TURNS[:2], TURNS):
        question, _ = text.conversation(turns[:-1])
        ids, supervised = text.conversation(turns)
        assert ids[: len(question)] == question
        answer = text.tokenizer(turns[-1][1].strip(), add_special_tokens=False)["input_ids"]
        assert supervised[len(question) :][: len(answer)] == [True] * len(answer)
        assert not any(supervised[len(question) - 2 : len(question)])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("limit", [1, 3, 9])
def test_the_first_ids_of_a_long_conversation(tmp_path: Path, name: str, limit: int) -> None:
    text = encoder(tmp_path, TEMPLATES[name])
    turns = [("human", "what is it? " * 30), ("gpt", "a cat, really " * 20)] * 40
    whole, cut = text.conversation(turns), text.conversation(turns, limit)
    assert len(cut[0]) < len(whole[0]) / 4
    assert [part[:limit] for part in cut] == [part[:limit] for part in whole]


def test_off_is_the_published_layout(tmp_path: Path) -> None:
    with_one = encoder(tmp_path / "a", CHATML, chat=False)
    without = encoder(tmp_path / "b", None, chat=False)
    assert with_one.conversation(TURNS) == without.conversation(TURNS)
    assert with_one.end_of_answer == with_one.eos


def test_ids_do_not_depend_on_the_day(tmp_path: Path) -> None:
    """As in Llama 3's templates."""
    day = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    text = encoder(tmp_path, day + "Today: {{ date_string }}\n" + CHATML)
    ids, _ = text.conversation(TURNS[:1])
    assert text.tokenizer.decode(ids).startswith("Today: 26 Jul 2024\n")


def test_marks_in_a_text_are_left_out(tmp_path: Path) -> None:
    text = encoder(tmp_path, CHATML)
    turns = [("human", "what\ufdd0 is it?\ufdd2"), ("gpt", "a \ufdd1cat")]
    assert text.conversation(turns) == text.conversation(
        [("human", "what is it?"), ("gpt", "a cat")]
    )


def test_markers_that_removing_others_joins_are_left_out(tmp_path: Path) -> None:
    text = encoder(tmp_path, CHATML)
    nested = [("human", "<ima<image>ge> hi"), ("gpt", "a cat<<image>image>")]
    assert text.conversation(nested) == text.conversation([("human", "hi"), ("gpt", "a cat")])
    deep = 200_000 * "<ima" + 200_000 * "<image>ge>"
    start = time.process_time()
    assert text.conversation([("human", deep), ("gpt", "a cat")], limit=64).ids
    assert time.process_time() - start < 10  # seconds of CPU time; removal by levels takes hours


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "it has none"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no token of its own ends"),
        (CHATML + "{% if add_generation_prompt %}<think>{% endif %}", "does not follow"),
        ("{{ raise_exception('no chat today') }}", "TemplateError: no chat today"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not give answers as they are"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ strftime_now('%d %b %Y') }}" + CHATML, "depends on the day"),
    ],
)
def test_refusals(tmp_path: Path, template: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=r"dataset\.chat_template = true: .*" + reason) as error:
        encoder(tmp_path, template)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
